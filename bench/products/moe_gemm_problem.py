"""A cell of the bench of the grouped FP8 GEMM: its sizes, what it moves, and its operands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from products import problem

SHAPES = {"gate_up": (4096, 6144), "down": (6144, 2048)}  # N, K of one expert


@dataclass(frozen=True)
class Cell(problem.Cell):
    product, shapes = "moe_gemm", SHAPES

    @property
    def weight_bytes(self) -> int:
        """Codes and scales."""
        n, k = self.size
        return n * k + 4 * -(-n // 128) * -(-k // 128)

    @property
    def row_bytes(self) -> int:
        """Codes, scales and results."""
        n, k = self.size
        return k + 4 * -(-k // 128) + 2 * n


@dataclass(frozen=True)
class Operands:
    """One copy: x e4m3 [M, K], xs f32 [M, K/128], w e4m3 [G, N, K], ws f32 [G, N/128, K/128]."""

    x: Tensor
    xs: Tensor
    w: Tensor
    ws: Tensor


class Problem(problem.Problem):
    loss = 2**-10  # on such data

    def operands(self, generator: torch.Generator) -> Operands:
        n, k, rows, groups = self.n, self.k, self.cell.rows, self.cell.groups

        def codes(*sizes: int) -> Tensor:
            return random_codes(sizes, self.device, generator)

        def scales(*sizes: int) -> Tensor:
            return torch.rand(sizes, device=self.device, generator=generator) + 0.5

        blocks = -(-k // 128)
        return Operands(codes(rows, k), scales(rows, blocks), codes(groups, n, k), scales(groups, -(-n // 128), blocks))

    def wide(self, g: int, rows: slice) -> tuple[Tensor, Tensor]:
        o = self.copies[0]
        return widen(o.x[rows], o.xs[rows]), widen(o.w[g], o.ws[g].repeat_interleave(128, 0)[: self.n])


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
