"""What the benches of products share: a cell's sizes, its operands in copies, and what must come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

COLD = 4  # calls take turns on copies of the operands of so many times L2, so that none finds its own there


@dataclass(frozen=True)
class Cell(ABC):
    """`tokens` rows in each of `groups` experts, or a Poisson distribution with that mean.

    product: a key of tables.PRODUCTS. shapes: name -> (N, K) of one expert. bf16: the operands' dtype, else e4m3.
    """

    product: ClassVar[str]
    shapes: ClassVar[dict[str, tuple[int, int]]]
    bf16: ClassVar[bool] = False

    shape: str
    groups: int
    tokens: int
    skewed: bool = False

    def __str__(self) -> str:
        return f"{self.shape}-G{self.groups}-m{self.tokens}{'-skewed' * self.skewed}"

    @property
    def dense(self) -> bool:
        """Whether there is one weight and no offsets."""
        return False

    @property
    def size(self) -> tuple[int, int]:
        """N, K"""
        return self.shapes[self.shape]

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each expert; the same in every run."""
        if not self.skewed:
            return [self.tokens] * self.groups
        seed = torch.Generator().manual_seed(1000 * self.groups + self.tokens)
        return torch.poisson(torch.full((self.groups,), float(self.tokens)), generator=seed).int().tolist()

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Of one expert."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Of one row of activations, and of its result."""

    @property
    def bytes(self) -> int:
        """What has to be moved, each byte once: weights of experts with rows, activations, results, offsets."""
        active = sum(count > 0 for count in self.counts)
        offsets = 0 if self.dense else 4 * (self.groups + 1)
        return active * self.weight_bytes + self.rows * self.row_bytes + offsets

    @property
    def flops(self) -> int:
        n, k = self.size
        return 2 * self.rows * n * k


class Problem(ABC):
    """A cell with its operands in `copies`. Rows of expert g are offsets[g] .. offsets[g + 1].

    loss: what a sum may lose on tensor cores, as a share of the sum of absolute products.
    """

    loss: ClassVar[float]

    def __init__(self, cell: Cell, device: str, l2_bytes: int = 0) -> None:
        self.cell, self.counts, self.device = cell, cell.counts, device
        self.n, self.k = cell.size
        self.starts = [0, *accumulate(cell.counts)]
        self.offsets = torch.tensor(self.starts, dtype=torch.int32, device=device)
        generator = torch.Generator(device).manual_seed(0)
        copies = max(1, -(-COLD * l2_bytes // cell.bytes))
        self.copies = [self.operands(generator) for _ in range(copies)]

    @abstractmethod
    def operands(self, generator: torch.Generator) -> object:
        """One copy."""

    @abstractmethod
    def wide(self, g: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Of the first copy, in float32: rows of expert g and its weight [N, K]."""

    def empty_out(self) -> Tensor:
        """bf16 [M, N]"""
        return torch.empty(self.cell.rows, self.n, dtype=torch.bfloat16, device=self.device)

    def places(self, starts: list[int]) -> Tensor:
        """i64 [M]: where each row lies if those of expert g begin at starts[g]."""
        rows = [torch.arange(start, start + count) for start, count in zip(starts, self.counts, strict=True)]
        return torch.cat(rows).to(self.device)

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """For the first copy, in float32 [M, N]: the products, and the sums of absolute products."""
        values, sums = [], []
        for g, (start, count) in enumerate(zip(self.starts, self.counts, strict=False)):
            if count:
                x, w = self.wide(g, slice(start, start + count))
                values.append(x @ w.T)
                sums.append(x.abs() @ w.abs().T)
        return torch.cat(values), torch.cat(sums)

    def disagreement(self, rows: Tensor, rounding: float = 0.0) -> str | None:
        """What is wrong with `rows` [M, N] as the result of the first copy.

        A value may be off by 2^-8 of itself, for its rounding to bf16, plus `loss` of the sum of absolute products,
        plus `rounding` times that sum, where operands or partial sums are rounded, too.
        """
        value, total = self.expected
        if rows.shape != value.shape:
            return f"computes something else: {list(rows.shape)} for {list(value.shape)}"
        off = (rows.float() - value).abs() / (2**-8 * value.abs() + (self.loss + rounding) * total)
        wrong = int((~(off <= 1)).sum())  # NaN is wrong
        if wrong == 0:
            return None
        worst = off.nan_to_num(torch.inf).max()
        return f"computes something else: {wrong} of {value.numel()} values, the worst {worst:.3g} times its bound off"
