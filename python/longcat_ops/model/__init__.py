"""The LongCat-Flash network: configuration, layers, latent cache, MTP head."""

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from .cache import LatentCache
from .config import LongcatFlashConfig
from .model import LongcatFlashForCausalLM
from .mtp import MTP

__all__ = ["MTP", "LatentCache", "LongcatFlashConfig", "LongcatFlashForCausalLM"]
