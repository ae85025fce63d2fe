"""DeepGEMM's keywords: each is accepted at the values of DeepGEMM's SM90 kernels, where it changes nothing, and refused
at other values with a list of the accepted ones.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatUnsupportedError
from longcat_ops.ops.deepgemm import _DEEPGEMM
from longcat_ops.testing.op_cases import CASES, public
from longcat_ops.testing.op_results import bits

ACCEPTED: dict[str, list[Any]] = {
    "c": [None],
    "recipe": [None, (1, 128, 128), [1, 128, 128]],
    "recipe_a": [None, (1, 128), [1, 128]],
    "recipe_b": [None, (128, 128), [128, 128]],
    "compiled_dims": ["nk", "mn", "mk", "mnk", "n", "m", "k", ""],
    "disable_ue8m0_cast": [False, True],
    "use_psum_layout": [False],
    "expected_m_for_psum_layout": [None],
}
REFUSED: dict[str, list[Any]] = {
    "c": [torch.zeros(5, 72), 0, False],
    "recipe": [(1, 1, 128), (128, 128, 128), (1, 128), (), 128, "1, 128, 128"],
    "recipe_a": [(128, 128), (1, 32), (1, 128, 128), 1],
    "recipe_b": [(1, 128), (1, 32), (128,), 128],
    "compiled_dims": ["kn", "NK", None, 0],
    "disable_ue8m0_cast": [None, 0, 1, "False"],
    "use_psum_layout": [True, None, 0],
    "expected_m_for_psum_layout": [0, 64, False],
}
EXPECTED = {
    "c": "None",
    "recipe": "None or (1, 128, 128)",
    "recipe_a": "None or (1, 128)",
    "recipe_b": "None or (128, 128)",
    "compiled_dims": "'nk' or 'mn' or 'mk' or 'mnk' or 'n' or 'm' or 'k' or ''",
    "disable_ue8m0_cast": "False or True",
    "use_psum_layout": "False",
    "expected_m_for_psum_layout": "None",
}
COMMON = ("recipe", "recipe_a", "recipe_b", "compiled_dims", "disable_ue8m0_cast")
TAKEN = {
    "fp8_gemm_nt": ("c", *COMMON),
    "m_grouped_fp8_gemm_nt_masked": COMMON,
    "m_grouped_fp8_gemm_nt_contiguous": (*COMMON, "use_psum_layout", "expected_m_for_psum_layout"),
    "bf16_gemm_nt": ("c", "compiled_dims"),
    "m_grouped_bf16_gemm_nt_masked": ("compiled_dims",),
    "m_grouped_bf16_gemm_nt_contiguous": ("compiled_dims", "use_psum_layout", "expected_m_for_psum_layout"),
}
EVERY = [(op, name) for op, names in TAKEN.items() for name in names]


def positional(op: str) -> tuple[Any, ...]:
    """Arguments in DeepGEMM's order: (a, sa), (b, sb), or a, b; out; then those that tell the groups apart."""
    lhs, rhs, *rest = CASES[op]["ragged"]().args
    return lhs, rhs, *(rest or [torch.zeros(5, 72, dtype=torch.bfloat16)])


def test_the_tables_hold_every_keyword() -> None:
    assert _DEEPGEMM.keys() == ACCEPTED.keys() == REFUSED.keys() == EXPECTED.keys()
    assert {name for names in TAKEN.values() for name in names} == _DEEPGEMM.keys()


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_accepted(op: str, name: str) -> None:
    plain = bits(public(op)(*positional(op)))
    assert any(plain[0])
    for value in ACCEPTED[name]:
        arguments = positional(op)
        out = public(op)(*arguments, **{name: value})
        assert out is arguments[2] and bits(out) == plain
        assert longcat_ops.supports(op, *arguments, **{name: value}) == (True, "", "")


@pytest.mark.parametrize("op", TAKEN)
def test_all_at_once(op: str) -> None:
    keywords = {name: ACCEPTED[name][-1] for name in TAKEN[op]}
    assert bits(public(op)(*positional(op), **keywords)) == bits(public(op)(*positional(op)))
    names = [name for name in inspect.signature(public(op)).parameters if name not in ("split_k", "deepgemm")]
    arguments = dict(zip(names, positional(op), strict=True))
    assert bits(public(op)(**arguments, **keywords)) == bits(public(op)(*positional(op)))


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_refused(op: str, name: str) -> None:
    """A bad value is refused before anything is written, with the accepted values; `supports` gives the same text."""
    for value in REFUSED[name]:
        arguments = positional(op)
        before = bits(arguments[2])
        with pytest.raises(LongcatUnsupportedError) as caught:
            public(op)(*arguments, **{name: value})
        got = "a Tensor" if isinstance(value, torch.Tensor) else repr(value)
        reason = f"{op}: argument `{name}` is {got}, expected {EXPECTED[name]} (on SM90)."
        fix = f"{op.replace('contiguous', 'offset')} takes prefix sums" if "psum" in name else ""
        assert str(caught.value) == reason + (f"\n  fix: {fix}" if fix else "")
        assert longcat_ops.supports(op, *arguments, **{name: value}) == (False, reason, fix)
        assert bits(arguments[2]) == before


@pytest.mark.parametrize("op", [*TAKEN, "m_grouped_fp8_gemm_nt_offset", "m_grouped_bf16_gemm_nt_offset"])
def test_keywords_of_other_ops_are_unknown(op: str) -> None:
    """They are refused even at legal values; the offset layout is not DeepGEMM's and takes none of its keywords."""
    arguments = CASES[op]["ragged"]().args
    for name in _DEEPGEMM.keys() - set(TAKEN.get(op, ())):
        with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
            public(op)(*arguments, **{name: ACCEPTED[name][0]})
        with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
            longcat_ops.supports(op, *arguments, **{name: ACCEPTED[name][0]})
