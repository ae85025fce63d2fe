"""Plain-torch embedding, sum and SwiGLU of rows: the oracle, and the path where there is no kernel."""

from __future__ import annotations

from torch import Tensor

from .sums import acc_dtype, silu

__all__ = ["add_rows", "embed_rows", "silu_and_mul"]


def embed_rows(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids]; 0 where the table has no such row."""
    known = (ids >= 0) & (ids < len(table))
    if not len(table):
        return table.new_zeros((len(ids), table.shape[1]))
    return table[ids.long().where(known, 0)].masked_fill_(~known[:, None], 0)


def add_rows(x: Tensor, y: Tensor) -> Tensor:
    """x + y, rounded once to their dtype."""
    return x + y


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate_up [T,2I], gate columns, then up columns, in fp32 (fp64), rounded once."""
    gate, up = gate_up.to(acc_dtype(gate_up.dtype)).chunk(2, -1)
    return (silu(gate) * up).to(gate_up.dtype)
