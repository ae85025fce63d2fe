"""torch's bf16 products: `F.linear`, by cuBLAS or cuBLASLt, as `torch.backends.cuda.preferred_blas_library` says; and
`F.grouped_mm`, on Hopper a CUTLASS kernel that takes compact rows and where those of each expert end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from products.bf16_gemm_problem import Operands, Problem

from .peer import Call, Peer, no_gpu


def has_grouped_mm() -> str | None:
    if not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm; 2.10 has"
    return no_gpu()


def linear(problem: Problem) -> list[Call]:
    def call(o: Operands) -> Call:
        outs: list[Tensor] = []

        def run() -> None:
            outs[:] = [F.linear(o.x, o.w[0])]

        return Call(run, outs, lambda: outs[0])

    return [call(operands) for operands in problem.copies]


def grouped(problem: Problem) -> list[Call]:
    ends = problem.offsets[1:].clone()

    def call(o: Operands) -> Call:
        outs: list[Tensor] = []

        def run() -> None:
            outs[:] = [F.grouped_mm(o.x, o.w.mT, offs=ends)]

        return Call(run, outs, lambda: outs[0])

    return [call(operands) for operands in problem.copies]


# Unless told otherwise torch lets cuBLAS add the pieces of a split K in bf16.
LINEAR = Peer("torch linear", no_gpu, linear, rounding=2**-9)
GROUPED = Peer("torch grouped_mm", has_grouped_mm, grouped)
