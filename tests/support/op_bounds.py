"""Bounds on the difference between an op's outputs and the reference's where both round intermediate sums: each library
is free to choose the order of a sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from support import bf16_grouped, bf16_swiglu_oracle, mla_oracle, router_oracle, swiglu_oracle
from support.grouped import ROUNDING, assert_close, gemm, wide

FP8 = torch.float8_e4m3fn
PRODUCTS = ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_offset", "m_grouped_fp8_gemm_nt_masked",
            "m_grouped_fp8_gemm_nt_contiguous")  # fmt: skip
BF16_PRODUCTS = tuple(op.replace("fp8", "bf16") for op in PRODUCTS)
SWIGLU = ("m_grouped_fp8_swiglu_gemm_nt_offset", "m_grouped_bf16_swiglu_gemm_nt_offset")
BOUNDED = {*PRODUCTS, *BF16_PRODUCTS, *SWIGLU, "router_gemm", "mla_query", "mla_decode"}  # by `assert_right`
ROUNDED = {*BOUNDED, "rms_norm", "silu_and_mul", "rms_norm_quant_fp8", "silu_and_mul_quant_fp8", "moe_route",
           "sample_tokens", "filter_drafts"}  # fmt: skip


def assert_right(op: str, arguments: tuple, outputs: list[Tensor]) -> None:
    """Each element of a product is within the bound of its own terms, sum |a| |b|, of the fp64 product."""
    if op in BF16_PRODUCTS:
        a, b, index = arguments[:3]
        for rows, g in _groups(op, b, index):
            assert_close(outputs[0][rows], *bf16_grouped.product(a[rows], b if g is None else b[g]))
        return
    a, sa = arguments[:2]
    if op == "mla_query":
        mla_oracle.assert_query(*arguments)
    elif op == "mla_decode":
        mla_oracle.assert_decoded(*arguments)
    elif op == "router_gemm":
        assert_close(outputs[0], *router_oracle.logits(a, sa))
    elif op in SWIGLU:
        fp8 = op == SWIGLU[0]
        groups = list(_by_offsets(arguments[4 if fp8 else 2]))
        if fp8:
            oracle = swiglu_oracle.expected([(a[rows], sa[rows]) for rows in groups], arguments[2:4])
        else:
            oracle = bf16_swiglu_oracle.expected([a[rows] for rows in groups], arguments[1])
        for rows, (value, bound) in zip(groups, oracle, strict=True):
            swiglu_oracle.assert_hidden([t[rows] for t in outputs], value, bound)
    else:
        b, sb, index = arguments[2:5]
        for rows, g in _groups(op, b, index):
            weight = (b, sb) if g is None else (b[g], sb[g])
            assert_close(outputs[0][rows], *gemm((a[rows], sa[rows]), wide(*weight, block_rows=128)))


def _groups(op: str, b: Tensor, index: object) -> Iterator[tuple[object, int | None]]:
    """(index of the rows, number) of each group; None for a product without groups."""
    if not op.startswith("m_grouped"):
        yield slice(None), None
        return
    if op.endswith("offset"):
        rows = _by_offsets(index)
    elif op.endswith("masked"):
        rows = ((g, slice(m)) for g, m in enumerate(index.tolist()))
    else:
        rows = (index == g for g in range(len(b)))
    yield from ((part, g) for g, part in enumerate(rows))


def _by_offsets(offsets: Tensor) -> Iterator[slice]:
    return (slice(*pair) for pair in zip(offsets.tolist(), offsets.tolist()[1:], strict=False))


def assert_near(arguments: tuple, ours: Tensor, theirs: Tensor) -> None:
    """For sums without cancellation over the last dimension of the first argument: each rounds at most once per term,
    and exp and what follows add at most a relative 2^-21. Rounding to a format may then reach the neighbouring value.
    """
    relative = 2 * (arguments[0].shape[-1] * 2.0**-24 + 2.0**-21)
    a, b = ours.double(), theirs.double()
    if ours.dtype == FP8:  # the next code: 2^-3 of a value, or 2^-9
        limit = torch.maximum(b.abs() * 2.0**-3, torch.tensor(2.0**-9, dtype=b.dtype))
    else:
        limit = b.abs() * (relative + 2 * ROUNDING[ours.dtype])
    assert torch.equal(a.isnan(), b.isnan())
    assert ((a - b).abs() <= limit)[~b.isnan()].all()
