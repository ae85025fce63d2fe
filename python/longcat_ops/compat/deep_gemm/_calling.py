"""What the adapter's functions share: DeepGEMM's names in the texts of errors, and checks of plain arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import LongcatError, LongcatShapeError, LongcatUnsupportedError, message
from ...ops.deepgemm import deepgemm_keywords
from ...ops.parameters import pair
from ...types import Fp8Pair

# Arguments of the ops, as DeepGEMM's caller knows them.
NAMES = {"out": "d", "sa": "a[1]", "sb": "b[1]"}

_FP4 = {torch.int8, torch.uint8, getattr(torch, "float4_e2m1fn_x2", torch.int8)}  # DeepGEMM packs two codes a byte
_DIMS = frozenset("mnk")


def call(function: Callable[..., Any], names: dict[str, str], *args: Any, **kwargs: Any) -> Any:
    """Calls function(*args, **kwargs); its errors use the caller's names. names: the op's name -> the caller's."""
    try:
        return function(*args, **kwargs)
    except LongcatError as error:
        problem = error
    text = re.sub(rf"\b({'|'.join(names)})\b", lambda match: names[match[0]], str(problem))
    raise type(problem)(text) from None


def operands(op: str, a: Any, b: Any) -> tuple[Fp8Pair, Fp8Pair]:
    """The pairs a and b. Raises LongcatShapeError if one is no pair, LongcatUnsupportedError for packed FP4."""
    pairs = pair(op, "a", a), pair(op, "b", b)
    for name, (values, _) in zip("ab", pairs, strict=True):
        dtype = getattr(values, "dtype", None)
        if dtype in _FP4:
            fix = "per_block_cast_to_fp8 makes FP8 weights"
            got = f"packed FP4 ({dtype})"
            raise LongcatUnsupportedError(message(op, name, got, "torch.float8_e4m3fn: SM90 has no FP4", fix=fix))
    return pairs


def keywords(
    op: str,
    recipe: Sequence[int] | None,
    recipe_a: Sequence[int] | None,
    recipe_b: Sequence[int] | None,
    compiled_dims: str,
    disable_ue8m0_cast: bool,
) -> None:
    """Raises LongcatUnsupportedError for scales in other blocks than 1x128 by 128x128, LongcatShapeError for a keyword
    that means nothing."""
    if isinstance(recipe, tuple | list) and tuple(recipe) == (1, 1, 128):
        context = (
            "It asks for weights with a scale per row, as weight gradients have; ours have one per 128 x 128 block."
        )
        text = message(op, "recipe", "(1, 1, 128)", "None or (1, 128, 128)", context)
        raise LongcatUnsupportedError(text)
    if not isinstance(compiled_dims, str) or not _DIMS.issuperset(compiled_dims):
        raise LongcatShapeError(message(op, "compiled_dims", repr(compiled_dims), "a str of the letters m, n and k"))
    flag(op, "disable_ue8m0_cast", disable_ue8m0_cast)
    deepgemm_keywords(op, {"recipe": recipe, "recipe_a": recipe_a, "recipe_b": recipe_b})


def flag(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise LongcatShapeError(message(op, name, repr(value), "True or False"))


def integer(op: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        span = f"an int of {low} or more" if high is None else f"an int of {low} .. {high}"
        raise LongcatShapeError(message(op, name, repr(value), span))
    return value
