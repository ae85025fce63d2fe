"""DeepGEMM's own keywords. The products accept them at the values that DeepGEMM allows on SM90."""

from __future__ import annotations

from typing import Any

from ..errors import LongcatUnsupportedError, message
from .registry import OPS

# What DeepGEMM's own keywords must be for its SM90 kernels with 1x128 by 128x128 scales.
_DEEPGEMM: dict[str, tuple[Any, ...]] = {
    "c": (None,),
    "recipe": (None, (1, 128, 128)),
    "recipe_a": (None, (1, 128)),
    "recipe_b": (None, (128, 128)),
    "compiled_dims": ("nk", "mn", "mk", "mnk", "n", "m", "k", ""),  # a hint to its JIT
    "disable_ue8m0_cast": (False, True),  # scales are float32 here: there is nothing to cast
    "use_psum_layout": (False,),
    "expected_m_for_psum_layout": (None,),
}


def deepgemm_keywords(op: str, keywords: dict[str, Any]) -> None:
    """Accepts those of DeepGEMM's keywords that the op takes at their SM90 values. Raises TypeError for other names, as
    Python does, and LongcatUnsupportedError for other values."""
    for name, value in keywords.items():
        if name not in OPS[op].keywords:
            raise TypeError(f"{op}() got an unexpected keyword argument {name!r}")
        value = tuple(value) if isinstance(value, list) else value
        if not any(value is legal or (type(value) is type(legal) and value == legal) for legal in _DEEPGEMM[name]):
            expected = " or ".join(repr(legal) for legal in _DEEPGEMM[name])
            fix = f"{op.replace('contiguous', 'offset')} takes prefix sums" if "psum" in name else None
            got = "a Tensor" if hasattr(value, "dtype") else repr(value)
            raise LongcatUnsupportedError(message(op, name, got, f"{expected} (on SM90)", fix=fix))
