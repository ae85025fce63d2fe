"""Published LongCat-Flash checkpoints in Hugging Face transformers, with the MoE of this library inside its model.

    from transformers import AutoModelForCausalLM
    from longcat_ops.integrations.transformers import enabled

    with enabled():
        model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="longcat_ops")

Importing this module loads neither transformers nor torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from ...errors import LongcatShapeError, LongcatUnsupportedError, message
from .names import NAME

__all__ = ["NAME", "VERSIONS", "Fit", "disable", "enable", "enabled", "fit"]

VERSIONS = ("5.23", "5.24")  # of transformers, whose internals change between releases
_EXPECTED = " or ".join(VERSIONS)


class Fit(NamedTuple):
    """Whether the adapter fits the installed transformers: its version (None: not installed), why not, what helps."""

    version: str | None
    fits: bool
    reason: str = ""
    fix: str = ""


def fit() -> Fit:
    """Asks for the version of transformers alone; loads nothing."""
    remedy = f'{sys.executable} -m pip install "transformers=={VERSIONS[-1]}.*"'
    version = getattr(sys.modules.get("transformers"), "__version__", None)
    if version is None:
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version("transformers")
    if not version:
        return Fit(None, False, f"not installed; the adapter is for {_EXPECTED}", remedy)
    if ".".join(version.split(".")[:2]) in VERSIONS:
        return Fit(version, True)
    return Fit(version, False, f"the adapter is for {_EXPECTED}", remedy)


@contextmanager
def enabled(*, default: bool = False) -> Iterator[None]:
    """Inside, transformers takes `experts_implementation="longcat_ops"` for LongCat-Flash and reads its published
    config.json. Blocks may be nested and lie in several threads; the last one to end restores transformers, also when
    an exception ends it. Models that were built inside live on outside.

    Args:
        default: models of LongCat-Flash that name no experts_implementation use longcat_ops, too.
    Raises:
        LongcatUnsupportedError: transformers is missing, of another version, or lacks what is replaced.
        LongcatShapeError: default is no bool.
    """
    patches = _ready(default)
    hold = patches.hold(default)
    try:
        yield
    finally:
        patches.release(hold)


def enable(*, default: bool = False) -> None:
    """`enabled` until `disable` is called; calling it again replaces `default`. Raises as `enabled`."""
    _ready(default).keep(default)


def disable() -> None:
    """Ends `enable`; without one it does nothing. Blocks of `enabled` that are open stay so."""
    from . import patches

    patches.let_go()


def _ready(default: bool) -> ModuleType:
    if not isinstance(default, bool):
        raise LongcatShapeError(message("enabled", "default", repr(default), "True or False"))
    from . import patches

    _require()
    return patches


def _require() -> None:
    found = fit()
    if found.fits:
        try:
            import transformers

            found = fit() if transformers.__version__ != found.version else found  # of the module, not its metadata
        except Exception as error:
            found = Fit(found.version, False, f"importing it raises {type(error).__name__}: {error}", found.fix)
    if not found.fits:
        got = f"version {found.version}" if found.version else "not installed"
        raise LongcatUnsupportedError(
            message("enabled", "transformers", got, f"version {_EXPECTED}", found.reason, found.fix)
        )
