"""The products with SwiGLU whose h or operands are bf16, in the host emulator: operands, oracle and calls by form, and
the unfused kernels that they must equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longcat_ops.testing.op_results import bits
from support import bf16_calls, bf16_swiglu_oracle, gemm_calls, grouped, swiglu_oracle
from support.emulated_kernels import FILLER, apart, assert_gaps_untouched, run
from support.near_oracle import silu_and_mul
from support.swiglu_oracle import Hidden, assert_hidden

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
Part = Any  # rows of one group: a tensor, or an FP8 pair


class Form(NamedTuple):
    """operand: "bf16" or "fp8". quantise: h is e4m3."""

    operand: str
    quantise: bool

    @property
    def op(self) -> str:
        return f"m_grouped_{self.operand}_swiglu_gemm_nt_offset"

    @property
    def _oracle(self) -> Any:
        return bf16_swiglu_oracle if self.operand == "bf16" else swiglu_oracle

    def weights(self, groups: int, width: int, k: int) -> Part:
        return self._oracle.weights(groups, width, k)

    def activations(self, sizes: Sequence[int], k: int) -> list[Part]:
        return (bf16_calls if self.operand == "bf16" else grouped).activations(sizes, k)

    def call(self, parts: Sequence[Part], weights: Part, **options: Any) -> list[Hidden]:
        return self._oracle.run(parts, weights, quantise=self.quantise, op=functools.partial(run, self.op), **options)

    def assert_near(self, outs: Sequence[Hidden], parts: Sequence[Part], weights: Part, mma: str = "exact") -> None:
        """Every element is within the bound of its own terms."""
        for out, oracle in zip(outs, self._oracle.expected(parts, weights, mma == "hopper"), strict=True):
            assert_hidden(out, *oracle)


PLAIN, QUANTISED, OF_FP8 = Form("bf16", False), Form("bf16", True), Form("fp8", False)
FORMS = (PLAIN, QUANTISED, OF_FP8)


def each(change: Callable[[Tensor], Tensor], value: Part) -> Part:
    """The tensor, or each of a pair, changed. e4m3 goes through as bytes."""
    if isinstance(value, tuple):
        return tuple(each(change, t) for t in value)
    return change(value.view(torch.uint8)).view(FP8) if value.dtype == FP8 else change(value)


def sums(form: Form, parts: Sequence[Part], weights: Part) -> list[tuple[Tensor, Tensor]]:
    """The float32 products of gate and of up of each group, by the kernel without SwiGLU."""
    if form.operand == "bf16":
        both = [bf16_calls.offset(parts, half, torch.float32) for half in bf16_swiglu_oracle.halves(weights)]
    else:
        stacks = zip(*(swiglu_oracle.halves(weights, g) for g in range(len(parts))), strict=True)
        both = [gemm_calls.offset(parts, tuple(map(torch.stack, zip(*s, strict=True))), torch.float32) for s in stacks]
    return list(zip(*both, strict=True))


def check_against_unfused(form: Form, parts: Sequence[Part], weights: Part) -> None:
    """h has the bits of the unfused kernels, or is within the error of SwiGLU alone of their products."""
    for out, (gate, up) in zip(form.call(parts, weights), sums(form, parts, weights), strict=True):
        if not form.quantise:
            assert_hidden(out, *silu_and_mul(gate.double(), up.double()))
            continue
        h, sh = (torch.empty_like(t) for t in out)
        run("silu_and_mul_quant_fp8", torch.cat([gate, up], 1), h, sh)
        assert bits(out) == bits([h, sh])


def special(size: int, k: int) -> Tensor:
    """Random bf16 rows, some of them zero, huge, tiny, or with a NaN or an inf."""
    (rows,) = bf16_calls.activations((size,), k)
    rows = rows.clone()
    rows[1 % size] = 0
    rows[2 % size] *= 2.0**40
    rows[3 % size] *= 2.0**-60
    rows[5 % size, 7], rows[6 % size, k - 1] = torch.nan, torch.inf
    return rows


def check_rows_apart(form: Form, width: int, gap: int, start: int) -> None:
    """Nothing between rows and around the groups' rows is written, for any place of h."""
    weights, parts = form.weights(2, width, 128), form.activations((9, 35), 128)
    whole = bits(form.call(parts, weights))
    a = tuple(map(torch.cat, zip(*parts, strict=True))) if form.operand == "fp8" else (torch.cat(parts),)
    offsets = torch.tensor([0, 9, 44], dtype=torch.int32)
    h = apart(48, width, FP8 if form.quantise else BF16, gap, start)  # four rows of no group
    sh = apart(48, -(-width // 128), torch.float32) if form.quantise else None
    operands = (*a, *weights) if form.operand == "fp8" else (*a, weights)
    rows = [torch.cat([t, t[:4]]) if t.dtype != FP8 else each(lambda c: torch.cat([c, c[:4]]), t) for t in a]
    run(form.op, *rows, *operands[len(a) :], offsets, None, True, h, sh)
    written = [t for t in (h, sh) if t is not None]
    spans = (slice(0, 9), slice(9, 44))
    assert bits([[t[span] for t in written] for span in spans]) == whole
    for t in written:
        assert bool((t[44:].contiguous().view(torch.uint8) == FILLER).all())
    assert_gaps_untouched(*written)
