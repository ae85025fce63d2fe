"""Plain torch: each expert's weight is widened to bf16 and multiplied. This is the code one writes without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from products.moe_gemm_problem import Operands, Problem

from .peer import Call, Peer, no_gpu


def bf16(q: Tensor, s: Tensor, rows_of_a_scale: int) -> Tensor:
    """q e4m3 [R, K] with s f32 [R/rows_of_a_scale, K/128]"""
    wide = s.repeat_interleave(rows_of_a_scale, 0)[: len(q)].repeat_interleave(128, 1)[:, : q.shape[1]]
    return (q.float() * wide).bfloat16()


def prepare(problem: Problem) -> list[Call]:
    groups = [(g, slice(*problem.starts[g : g + 2])) for g, count in enumerate(problem.counts) if count]

    def call(o: Operands) -> Call:
        out = problem.empty_out()

        def run() -> None:
            x = bf16(o.x, o.xs, 1)
            for g, rows in groups:
                torch.mm(x[rows], bf16(o.w[g], o.ws[g], 128).T, out=out[rows])

        return Call(run, [out], lambda: out)

    return [call(operands) for operands in problem.copies]


PEER = Peer("torch eager bf16", no_gpu, prepare, rounding=2**-8)  # 2^-9 for each operand
