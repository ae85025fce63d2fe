"""Counts of FP8 matrix products: of our kernels, as C++ counts them, and of DeepGEMM's."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _library
from .devices import DEVICES
from .model import Counts

SMS = int(DEVICES["H100"].sms.value)  # as on most devices


@dataclass(frozen=True)
class Tile:
    """A tile that the kernel has for a product: `rows` of a weight by up to `tokens`, and the launch it leads to."""

    rows: int
    tokens: int
    paired: bool
    stages: int
    smem_bytes: int
    blocks: int
    tiles: int
    waves: int
    chosen: bool
    reason: str
    counts: Counts


def weight_bytes(n: int, k: int) -> int:
    """Bytes of e4m3 weights with a float32 scale for 128 x 128."""
    return n * k + 4 * -(-n // 128) * -(-k // 128)


def fp8_row(width: int) -> int:
    """Bytes of a row of e4m3 with a float32 scale for 128."""
    return width + 4 * -(-width // 128)


def from_native(fields: tuple, flops: float, split_k: int, bf16: bool = False) -> Tile:
    """A tile from its fields in `_C`, for a product of so many flops."""
    memory, l2, shared, sm, sm_flops, smem = fields[-1]
    return Tile(
        *fields[:-1], Counts("product", memory, flops, l2, shared, sm, sm_flops, smem, pieces=split_k, bf16=bf16)
    )


def tiles(groups: int, rows: int, n: int, k: int, *, max_rows: int | None = None, split_k: int = 1,
          swiglu: bool = False, sms: int = SMS) -> list[Tile]:  # fmt: skip
    """Tiles of `m_grouped_fp8_gemm_nt_offset`, or of the same with SwiGLU (n rows of gate and up), for rows [rows, k]
    spread evenly over the groups [groups, n, k]. max_rows: its max_m_hint. sms: of the device.
    """
    found = _library.load().product_tiles(groups, rows, n, k, max_rows, split_k, swiglu, sms)
    return [from_native(fields, 2.0 * rows * n * k, split_k) for fields in found]


def product(groups: int, rows: int, n: int, k: int, *, max_rows: int | None = None, split_k: int = 1,
            swiglu: bool = False, sms: int = SMS) -> Counts:  # fmt: skip
    """Counts with the tile that the launcher chooses; all 0 without rows."""
    found = tiles(groups, rows, n, k, max_rows=max_rows, split_k=split_k, swiglu=swiglu, sms=sms)
    return next((tile.counts for tile in found if tile.chosen), Counts("product"))


def deep_gemm(groups: float, rows: float, n: int, k: int, *, block: int, sms: int = SMS) -> Counts:
    """Counts of DeepGEMM's kernel with `rows` in each of `groups` experts. It reads, multiplies and writes whole blocks
    of `block` rows, by 128 rows of a weight, or by 64 if those tiles at most fill the SMs. Each tile reads its tokens
    from L2; two blocks of rows share what they read of a weight.
    """
    chunks = -(-rows // block)
    padded = groups * chunks * block
    width = 64 if groups * chunks * -(-n // 64) <= sms else 128
    columns = -(-n // width)
    waves = -(-groups * chunks * columns // sms)
    weights = groups * weight_bytes(n, k)
    return Counts(
        "DeepGEMM",
        bytes=weights + padded * (fp8_row(k) + 2 * n),
        flops=2.0 * padded * n * k,
        l2_bytes=-(-chunks // 2) * weights + padded * columns * k,
        l2_shared=chunks // 2 * weights,
        sm_bytes=waves * (block + width) * k,
        sm_flops=waves * 2.0 * block * width * k,
    )
