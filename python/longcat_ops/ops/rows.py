"""What stands between the products of a layer: embedding, sums, SwiGLU. Row by row, so a row has the same bits in any
company."""

from __future__ import annotations

import torch
from torch import Tensor

from .calling import kernel, maker, public

_embed_rows = maker(
    "embed_rows",
    lambda table, ids: torch.empty((ids.shape[0], table.shape[1]), dtype=table.dtype, device=table.device),
    rows=(1, 0),
    columns=(0, 1),
)
_add_rows = maker(
    "add_rows", lambda x, _: torch.empty(x.shape, dtype=x.dtype, device=x.device), rows=(0, 0), columns=(0, 1)
)
_silu_and_mul = kernel("silu_and_mul")


@public
def embed_rows(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids], copied bit for bit; a row of zeros where an id is no row of the table, which is not an error.

    Args:
        table: [V, H], bfloat16, float16 or float32; last stride 1, rows any distance apart.
        ids: i64 [T]. T may be 0.

    Returns:
        [T, H] of table's dtype.

    Raises:
        LongcatShapeError: table or ids is not as above.
    """
    return _embed_rows(table, ids)


@public
def add_rows(x: Tensor, y: Tensor) -> Tensor:
    """x + y in float32, rounded once.

    Args:
        x: [T, H], bfloat16, float16 or float32; last stride 1, rows any distance apart. T may be 0.
        y: as x, of its dtype.

    Returns:
        [T, H] of x's dtype.

    Raises:
        LongcatShapeError: x or y is not as above.
    """
    return _add_rows(x, y)


@public
def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up in float32, rounded once: SwiGLU (Shazeer, arXiv:2002.05202) of the sums of two products.

    Args:
        gate_up: [T, 2I], gate columns, then up columns; bfloat16, float16 or float32; last stride 1, rows any distance
            apart. T may be 0.

    Returns:
        [T, I] of gate_up's dtype. silu(-inf) is NaN, as in torch.

    Raises:
        LongcatShapeError: gate_up is not as above.
    """
    out = torch.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=gate_up.dtype, device=gate_up.device)
    _silu_and_mul(gate_up, out)
    return out
