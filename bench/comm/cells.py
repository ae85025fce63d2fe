"""The cells of bench_comm.py: a collective, how its rows are spread, its bytes; its inputs, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longcat_ops.perf import comm as model

HIDDEN = 6144
KIB, MIB = 2**10, 2**20
SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 96 * MIB)
MOST_BYTES = SIZES[-1]
RAGGED = (1, 20, 3, 0, 5, 1, 0, 9)
ROWS = ("even", "remainder", "2^i", "ragged")
BY_ROWS = ("reduce_scatter", "all_gather")
NORM = "all_reduce_residual_rmsnorm"
KINDS = [(collective, rows) for collective in model.COLLECTIVES for rows in ROWS
         if collective in BY_ROWS or rows == "even"]  # fmt: skip
MODES = ("graph", "eager")
EPS = 1e-5
_ALIGNED = 8  # bf16 values of 16 bytes


def label(nbytes: int) -> str:
    return f"{nbytes // MIB}M" if nbytes >= MIB else f"{nbytes // KIB}K"


@dataclass(frozen=True)
class Cell:
    """collective, rows: of perf.comm.COLLECTIVES and ROWS. size: the bytes aimed at; `nbytes` are those it has."""

    collective: str
    rows: str
    size: int
    mode: str
    ranks: int

    @cached_property
    def _spread(self) -> tuple[tuple[int, ...], int]:
        """Rows of each rank and their width. Rows get narrower where `size` has too few of HIDDEN values."""
        row_bytes = 2 * HIDDEN
        total, least = self.size // row_bytes, self._pattern_rows
        width = HIDDEN
        if total < least:
            total, width = least, max(_ALIGNED, self.size // (2 * least) // _ALIGNED * _ALIGNED)
        if self.rows == "remainder":
            total -= total % self.ranks == 0 and self.ranks > 1
            return tuple(total // self.ranks + (r < total % self.ranks) for r in range(self.ranks)), width
        return tuple(total // least * count for count in self._pattern), width

    @property
    def _pattern(self) -> tuple[int, ...]:
        if self.rows == "2^i":
            return tuple(2**i for i in range(self.ranks))
        return RAGGED[: self.ranks] if self.rows == "ragged" else (1,) * self.ranks

    @property
    def _pattern_rows(self) -> int:
        if self.collective not in BY_ROWS:
            return 1
        return self.ranks + 1 if self.rows == "remainder" else sum(self._pattern)

    @property
    def counts(self) -> list[int]:
        """Rows of each rank of what is scattered or gathered."""
        return list(self._spread[0])

    @property
    def width(self) -> int:
        return self._spread[1]

    @property
    def shape(self) -> tuple[int, int]:
        """[T, H] of the whole tensor."""
        if self.collective in BY_ROWS:
            return sum(self.counts), self.width
        return max(1, self.size // (2 * HIDDEN)), self.width

    @property
    def uneven(self) -> bool:
        return len(set(self.counts)) > 1

    @property
    def nbytes(self) -> int:
        """Of the whole tensor."""
        return 2 * self.shape[0] * self.shape[1]

    @property
    def parts(self) -> tuple[float, ...]:
        """Bytes of each rank, as perf.comm takes them."""
        if self.collective in BY_ROWS:
            return tuple(2.0 * self.width * count for count in self.counts)
        return model.even(self.nbytes, self.ranks)

    @property
    def bus_factor(self) -> float:
        """From bytes per second to those of a wire, as nccl-tests counts."""
        share = (self.ranks - 1) / self.ranks
        return {"reduce_scatter": share, "all_gather": share, "broadcast": 1.0}.get(self.collective, 2 * share)

    def own(self, rank: int) -> slice:
        """The rows of a rank."""
        start = sum(self.counts[:rank])
        return slice(start, start + self.counts[rank])

    def __str__(self) -> str:
        rows = f" {self.rows}" if self.collective in BY_ROWS else ""
        return f"{self.collective}{rows} {self.shape[0]} x {self.width}"


def whole(cell: Cell, rank: int, device: torch.device | str) -> Tensor:
    """bf16 [T, H] of a rank: integers in -6 .. 6, so that sums of 8 ranks are exact in any order."""
    place = torch.arange(cell.shape[0] * cell.width, dtype=torch.int64, device=device)
    mixed = (place * 2654435761 + rank * 40503) >> 12
    return (mixed % 13 - 6).to(torch.bfloat16).view(cell.shape)


@dataclass
class Inputs:
    """What a rank brings. x: bf16, the whole tensor or, for an all-gather, own rows. residual [T,H], weight f32 [H]."""

    cell: Cell
    rank: int
    x: Tensor
    residual: Tensor
    weight: Tensor

    @classmethod
    def of(cls, cell: Cell, rank: int, device: torch.device | str) -> Inputs:
        x = whole(cell, rank, device)
        if cell.collective == "all_gather":
            x = x[cell.own(rank)].clone()
        residual = whole(cell, cell.ranks, device) if cell.collective == NORM else x[:0]
        return cls(cell, rank, x, residual, torch.linspace(0.5, 2.0, cell.width, device=device))

    def expected(self) -> tuple[Tensor, float]:
        """What this rank must get, and the largest error of an element relative to it."""
        cell, device = self.cell, self.x.device
        if cell.collective == "broadcast":
            return whole(cell, 0, device), 0.0
        if cell.collective == "all_gather":
            return torch.cat([whole(cell, r, device)[cell.own(r)] for r in range(cell.ranks)]), 0.0
        total = whole(cell, 0, device)
        for r in range(1, cell.ranks):
            total += whole(cell, r, device)
        if cell.collective == "reduce_scatter":
            return total[cell.own(self.rank)], 0.0
        if cell.collective == NORM:
            h = (total + self.residual).double()
            return h / (h.square().mean(1, keepdim=True) + EPS).sqrt() * self.weight.double(), 2.0**-8
        return total, 0.0

    def disagreement(self, got: Tensor) -> str:
        """What is wrong with a result; "" if nothing is."""
        want, bound = self.expected()
        if got.shape != want.shape:
            return f"computes something else: shape {list(got.shape)} for {list(want.shape)}"
        error = (got.double() - want.double()).abs()
        wrong = ~(error <= bound * want.double().abs())  # NaN is wrong
        if not wrong.any():
            return ""
        return f"computes something else: {int(wrong.sum())} of {want.numel()} values, the worst {error.max():g}"
