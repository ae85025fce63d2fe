"""A cell of the bench of the bf16 products: its sizes, what it moves, and its operands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from products import problem

# N, K: of one expert, and of LongCat-Flash's dense projections.
GROUPED = {"gate_up": (4096, 6144), "down": (6144, 2048)}
DENSE = {
    "q_a": (1536, 6144),
    "kv_a": (576, 6144),
    "q_b": (12288, 1536),
    "o_proj": (6144, 8192),
    "ffn_up": (12288, 6144),
    "ffn_down": (6144, 12288),
    "head": (131072, 6144),
}
SHAPES = GROUPED | DENSE


@dataclass(frozen=True)
class Cell(problem.Cell):
    """A dense one has one group, which is all its rows."""

    product, shapes, bf16 = "bf16_gemm", SHAPES, True

    def __str__(self) -> str:
        return f"{self.shape}-m{self.tokens}" if self.dense else super().__str__()

    @property
    def dense(self) -> bool:
        return self.shape in DENSE

    @property
    def weight_bytes(self) -> int:
        n, k = self.size
        return 2 * n * k

    @property
    def row_bytes(self) -> int:
        return 2 * sum(self.size)


@dataclass(frozen=True)
class Operands:
    """One copy: x bf16 [M, K], w bf16 [G, N, K]."""

    x: Tensor
    w: Tensor


class Problem(problem.Problem):
    loss = 2**-18  # products are exact, and sums keep some 25 bits

    def operands(self, generator: torch.Generator) -> Operands:
        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, dtype=torch.bfloat16, device=self.device, generator=generator)

        return Operands(normal(self.cell.rows, self.k), normal(self.cell.groups, self.n, self.k))

    def wide(self, g: int, rows: slice) -> tuple[Tensor, Tensor]:
        o = self.copies[0]
        return o.x[rows].float(), o.w[g].float()
