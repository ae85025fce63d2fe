"""The op of this project, in the layout it is made for: compact rows, offsets, no padding; and with split_k, where
experts are few."""

from __future__ import annotations

from functools import partial

import longcat_ops
from longcat_ops import _library
from products.moe_gemm_problem import Operands, Problem

from .peer import Call, Peer, no_gpu


def available() -> str | None:
    if reason := no_gpu():
        return reason
    supported, text = _library.load().device_supported(0)
    return None if supported else text


def prepare(problem: Problem, split_k: int = 1) -> list[Call]:
    # A caller that routes under a graph does not know counts, so there is no hint where they differ.
    hint = None if problem.cell.skewed else problem.cell.tokens

    def call(o: Operands) -> Call:
        out, lhs, rhs = problem.empty_out(), (o.x, o.xs), (o.w, o.ws)
        product = partial(longcat_ops.m_grouped_fp8_gemm_nt_offset, lhs, rhs, out, problem.offsets)
        return Call(partial(product, max_m_hint=hint, split_k=split_k), [out], lambda: out)

    return [call(operands) for operands in problem.copies]


PEER = Peer("longcat_ops", available, prepare)
SPLITS = [Peer(f"longcat_ops, split_k = {pieces}", available, partial(prepare, split_k=pieces)) for pieces in (2, 4)]
