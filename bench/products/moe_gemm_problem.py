"""A cell of the bench of the grouped FP8 GEMM: its sizes, what it moves, its operands, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

SHAPES = {"gate_up": (4096, 6144), "down": (6144, 2048)}  # N, K of one expert
COLD = 4  # calls take turns on copies of the operands of so many times L2, so that none finds its own there


@dataclass(frozen=True)
class Cell:
    """`tokens` rows in each of `groups` experts, or a Poisson distribution with that mean."""

    shape: str
    groups: int
    tokens: int
    skewed: bool = False

    def __str__(self) -> str:
        return f"{self.shape}-G{self.groups}-m{self.tokens}{'-skewed' * self.skewed}"

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
    def bytes(self) -> int:
        """What has to be moved, each byte once: weights of experts with rows, activations, both scales, results."""
        (n, k), active = SHAPES[self.shape], sum(count > 0 for count in self.counts)
        blocks = -(-k // 128)
        weights = n * k + 4 * -(-n // 128) * blocks
        return active * weights + self.rows * (k + 4 * blocks + 2 * n) + 4 * (self.groups + 1)

    @property
    def flops(self) -> int:
        n, k = SHAPES[self.shape]
        return 2 * self.rows * n * k


@dataclass(frozen=True)
class Operands:
    """One copy: x e4m3 [M, K], xs f32 [M, K/128], w e4m3 [G, N, K], ws f32 [G, N/128, K/128]."""

    x: Tensor
    xs: Tensor
    w: Tensor
    ws: Tensor


class Problem:
    """A cell with its operands in `copies`. Rows of expert g are offsets[g] .. offsets[g + 1]."""

    def __init__(self, cell: Cell, device: str, l2_bytes: int = 0) -> None:
        self.cell, self.counts, self.device = cell, cell.counts, device
        self.n, self.k = SHAPES[cell.shape]
        self.starts = [0, *accumulate(cell.counts)]
        self.offsets = torch.tensor(self.starts, dtype=torch.int32, device=device)
        generator = torch.Generator(device).manual_seed(0)
        copies = max(1, -(-COLD * l2_bytes // cell.bytes))
        self.copies = [self._operands(generator) for _ in range(copies)]

    def _operands(self, generator: torch.Generator) -> Operands:
        n, k, rows, groups = self.n, self.k, self.cell.rows, self.cell.groups

        def codes(*sizes: int) -> Tensor:
            return random_codes(sizes, self.device, generator)

        def scales(*sizes: int) -> Tensor:
            return torch.rand(sizes, device=self.device, generator=generator) + 0.5

        blocks = -(-k // 128)
        return Operands(codes(rows, k), scales(rows, blocks), codes(groups, n, k), scales(groups, -(-n // 128), blocks))

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
        operands, values, sums = self.copies[0], [], []
        for g, (start, count) in enumerate(zip(self.starts, self.counts, strict=False)):
            if count:
                rows = slice(start, start + count)
                x = widen(operands.x[rows], operands.xs[rows])
                w = widen(operands.w[g], operands.ws[g].repeat_interleave(128, 0)[: self.n])
                values.append(x @ w.T)
                sums.append(x.abs() @ w.abs().T)
        return torch.cat(values), torch.cat(sums)

    def disagreement(self, rows: Tensor, rounding: float = 0.0) -> str | None:
        """What is wrong with `rows` [M, N] as the result of the first copy.

        A value may be off by 2^-8 of itself, for its rounding to bf16, plus 2^-10 of the sum of absolute products, for
        what a tensor core loses of such data, plus `rounding` times that sum, where operands are rounded first.
        """
        value, total = self.expected
        if rows.shape != value.shape:
            return f"computes something else: {list(rows.shape)} for {list(value.shape)}"
        off = (rows.float() - value).abs() / (2**-8 * value.abs() + (2**-10 + rounding) * total)
        wrong = int((~(off <= 1)).sum())  # NaN is wrong
        if wrong == 0:
            return None
        worst = off.nan_to_num(torch.inf).max()
        return f"computes something else: {wrong} of {value.numel()} values, the worst {worst:.3g} times its bound off"


def random_codes(sizes: tuple[int, ...], device: str, generator: torch.Generator) -> Tensor:
    """All e4m3 codes except the two NaN, equally likely: data with few bits set would draw less power."""
    numbers = torch.randint(0, 254, sizes, dtype=torch.uint8, device=device, generator=generator)
    return numbers.add_(numbers >= 127).view(torch.float8_e4m3fn)


def random_weights(groups: int, n: int, k: int, device: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """e4m3 [G,N,K] of both signs with f32 scales [G, ceil(N/128), ceil(K/128)], sized so that sums over K are a few
    units: with far larger ones, SwiGLU would keep little but the error of their rounding to bf16."""
    codes = random_codes((groups, n, k), device, generator)
    scales = torch.rand(groups, -(-n // 128), -(-k // 128), device=device, generator=generator) + 0.5
    return codes, scales * (2.0**-6 * k**-0.5)


def widen(q: Tensor, s: Tensor) -> Tensor:
    """float32 of q e4m3 [R, K] with s f32 [R, K/128]"""
    return q.float() * s.repeat_interleave(128, 1)[:, : q.shape[1]]
