"""cuBLASLt's block-scaled FP8 product behind torch.nn.functional.scaled_mm: 1x128 scales of activations, 128x128 of
weights, one call for each expert that has rows.

It requires scales with the outer dimension first. Those of weights are brought into that order once, as when loading.
Those of activations are given in it, as its quantisation would write them. Rows are padded to 4 for their strides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from products.moe_gemm_problem import Operands, Problem

from .peer import Call, Peer, no_gpu

ROWS = 4


def available() -> str | None:
    if not hasattr(F, "scaled_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.scaled_mm; 2.10 has"
    return no_gpu()


def outer_first(scales: Tensor, rows: int, columns: int) -> Tensor:
    """[rows, columns] with strides (1, rows), zeros beyond what `scales` has."""
    out = torch.zeros(columns, rows, device=scales.device).as_strided((rows, columns), (1, rows))
    out[: scales.shape[0], : scales.shape[1]] = scales
    return out


def prepare(problem: Problem) -> list[Call]:
    groups = [(g, slice(*problem.starts[g : g + 2])) for g, count in enumerate(problem.counts) if count]
    blocks = problem.copies[0].xs.shape[1]
    recipes = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128

    def padded(o: Operands, rows: slice) -> tuple[Tensor, Tensor]:
        count = rows.stop - rows.start
        size = -(-count // ROWS) * ROWS
        x = torch.zeros(size, problem.k, dtype=torch.uint8, device=problem.device)
        x[:count] = o.x[rows].view(torch.uint8)
        return x.view(o.x.dtype), outer_first(o.xs[rows], size, blocks)

    def call(o: Operands) -> Call:
        lhs = [padded(o, rows) for _, rows in groups]
        rhs = [(o.w[g].T, outer_first(o.ws[g].T, -(-blocks // 4) * 4, o.ws.shape[1])) for g, _ in groups]
        outs: list[Tensor] = []

        def run() -> None:
            outs[:] = [
                F.scaled_mm(x, w, xs, recipes[0], ws, recipes[1], output_dtype=torch.bfloat16)
                for (x, xs), (w, ws) in zip(lhs, rhs, strict=True)
            ]

        def rows() -> Tensor:
            return torch.cat([out[: problem.counts[g]] for out, (g, _) in zip(outs, groups, strict=True)])

        return Call(run, outs, rows)

    return [call(operands) for operands in problem.copies]


PEER = Peer("cuBLASLt scaled_mm", available, prepare)
