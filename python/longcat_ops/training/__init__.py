"""Training-side pieces that an inference library still needs: today the controller of the router's selection bias."""

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from .bias_controller import BiasController

__all__ = ["BiasController"]
