"""router_gemm against fp64: values, bits that depend on the row alone, and the terms of split_bf16x3."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import longcat_ops
from longcat_ops import LongcatShapeError, router_gemm, split_bf16x3
from longcat_ops.testing.op_results import bits
from support.router_oracle import chosen, fma_chain, logits, rms, tokens, weight

DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(0, 8, 8), (1, 1, 8), (7, 13, 72), (8, 96, 128), (9, 100, 200), (33, 768, 64)], ids=str
)
def test_values(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, w = tokens(shape[0], shape[2], dtype), weight(*shape[1:])
    value, bound = logits(x, w)
    for split in (None, split_bf16x3(w)):
        out = router_gemm(x, w, split=split)
        assert out.dtype == torch.float32 and out.shape == shape[:2]
        assert bool(((out.double() - value).abs() <= bound).all())


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0])
def test_as_accurate_as_a_chain_of_float32(sd: float) -> None:
    """And the chosen experts are those of fp64."""
    x, w = tokens(16, 6144), weight(768, 6144, sd)
    value, bound = logits(x, w)
    out = router_gemm(x, w)
    assert rms(out, value) <= rms(fma_chain(x, w), value)
    assert torch.equal(*chosen(out, value, bound))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_a_row_are_its_own(dtype: torch.dtype) -> None:
    x, w = tokens(33, 1000, dtype), weight(100, 1000)
    expected = router_gemm(x, w)
    for rows in (slice(0, 1), slice(5, 7), slice(3, 12), slice(30, 33)):
        assert bits(router_gemm(x[rows], w)) == bits(expected[rows])
    apart = torch.empty(33, 1024, dtype=dtype)[:, 24:].copy_(x)
    assert bits(router_gemm(apart, w)) == bits(expected)
    if dtype == torch.bfloat16:
        assert bits(router_gemm(x.float(), w)) == bits(expected)


def test_the_terms_add_up() -> None:
    w = weight(40, 128) * 10.0 ** torch.linspace(-20, 30, 40)[:, None]
    w[0, 0], w[1, 1] = 0.0, -0.0
    terms = split_bf16x3(w)
    assert terms.shape == (3, 40, 128) and terms.dtype == torch.bfloat16 and terms.is_contiguous()
    assert torch.equal(terms.double().sum(0), w.double())
    assert torch.equal(terms[0], w.bfloat16())
    assert not bool((terms[1].double().abs() > terms[0].double().abs() * 2.0**-8).any())


def test_what_is_not_finite_is_the_first_term() -> None:
    w = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    terms = split_bf16x3(w)
    assert torch.equal(terms.float().nan_to_num(7.0, 8.0, 9.0)[0], w.nan_to_num(7.0, 8.0, 9.0))
    assert not bool(terms[1:].any())


def test_inf_and_nan_show() -> None:
    x, w = tokens(4, 64).abs() + 1, weight(16, 64).abs() + 1
    x[1, 3], x[2, 5] = torch.inf, torch.nan
    w[7, 9] = torch.nan
    out = router_gemm(x, w)
    nan = torch.zeros(4, 16, dtype=torch.bool)
    nan[2], nan[:, 7] = True, True
    assert torch.equal(out.isnan(), nan)
    assert bool((out[1][~nan[1]] == torch.inf).all())


@pytest.mark.parametrize("w", [torch.ones(3, 8, dtype=torch.bfloat16), [1.0]], ids=["bf16", "list"])
def test_terms_of_something_else(w: object) -> None:
    with pytest.raises(LongcatShapeError, match=r"argument `w` is .*, expected torch.float32"):
        split_bf16x3(w)


def test_on_a_gpu_the_terms_are_made_where_none_are_given() -> None:
    """`supports` knows it, and another dtype is the fault of w."""
    x, w = tokens(4, 64), weight(16, 64)
    with FakeTensorMode():
        x, w = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in (x, w))
        assert longcat_ops.supports("router_gemm", x, w) == (True, "", "")
        legal, reason, _ = longcat_ops.supports("router_gemm", x, w.bfloat16())
        assert not legal and "`w` is torch.bfloat16, expected torch.float32" in reason


def test_what_explain_counts() -> None:
    x, w = tokens(4, 64), weight(16, 64)
    read = [longcat_ops.explain("router_gemm", x, w, split=split).bytes_read for split in (None, split_bf16x3(w))]
    assert read == [2 * 4 * 64 + 4 * 16 * 64, 2 * 4 * 64 + 6 * 16 * 64]
