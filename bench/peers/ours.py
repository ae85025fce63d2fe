"""The ops of this project, in the layout they are made for: compact rows, offsets, no padding; and with split_k, where
experts are few."""

from __future__ import annotations

from functools import partial

import longcat_ops
from longcat_ops import _library
from products import bf16_gemm_problem
from products.moe_gemm_problem import Operands, Problem
from products.problem import Cell

from .peer import Call, Peer, no_gpu


def available() -> str | None:
    if reason := no_gpu():
        return reason
    supported, text = _library.load().device_supported(0)
    return None if supported else text


def hint_of(cell: Cell) -> int | None:
    """A caller that routes under a graph does not know counts, so there is no hint where they differ."""
    return None if cell.skewed else cell.tokens


def prepare(problem: Problem, split_k: int = 1) -> list[Call]:
    hint = hint_of(problem.cell)

    def call(o: Operands) -> Call:
        out, lhs, rhs = problem.empty_out(), (o.x, o.xs), (o.w, o.ws)
        product = partial(longcat_ops.m_grouped_fp8_gemm_nt_offset, lhs, rhs, out, problem.offsets)
        return Call(partial(product, max_m_hint=hint, split_k=split_k), [out], lambda: out)

    return [call(operands) for operands in problem.copies]


def prepare_bf16(problem: bf16_gemm_problem.Problem, split_k: int = 1) -> list[Call]:
    hint = hint_of(problem.cell)

    def call(o: bf16_gemm_problem.Operands) -> Call:
        out = problem.empty_out()
        run = (
            partial(longcat_ops.bf16_gemm_nt, o.x, o.w[0], out)
            if problem.cell.dense
            else partial(longcat_ops.m_grouped_bf16_gemm_nt_offset, o.x, o.w, out, problem.offsets, max_m_hint=hint)
        )
        return Call(partial(run, split_k=split_k), [out], lambda: out)

    return [call(operands) for operands in problem.copies]


PEER = Peer("longcat_ops", available, prepare)
BF16 = Peer("longcat_ops", available, prepare_bf16)
SPLITS, BF16_SPLITS = (
    [Peer(f"longcat_ops, split_k = {pieces}", available, partial(form, split_k=pieces)) for pieces in (2, 4)]
    for form in (prepare, prepare_bf16)
)
