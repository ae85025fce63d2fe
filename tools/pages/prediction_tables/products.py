"""Tables of the FP8 products, for docs/moe_gemm.md."""

from __future__ import annotations

from functools import cache

import tables
from longcat_ops.perf import DEVICES, predict
from longcat_ops.perf.products import product, tiles
from longcat_ops.perf.swiglu import forms
from products import bench_moe_gemm, measuring

from .markdown import table, with_bound

GATE_UP, DOWN = bench_moe_gemm.SHAPES["gate_up"], bench_moe_gemm.SHAPES["down"]
TOKENS = tables.COLUMNS
PREDICTED = [DEVICES[name] for name in measuring.PREDICTED]


@cache
def results() -> dict:
    """As `bench_moe_gemm.py --predictions-json` writes them, of the even cells alone."""
    cells = [cell for cell in bench_moe_gemm.cells("full") if not cell.skewed]
    infos = [measuring.info_of(cell, bench_moe_gemm.predicted(cell, [])) for cell in cells]
    return {"predictions": [{"group": "moe_gemm", "extra_info": info} for info in infos]}


def all_products() -> str:
    return tables.all_tables(tables.cells_of(results()))


def pairs() -> str:
    """gate_up with 16 experts, the tile that the choice takes with and without pairs."""
    rows = []
    for m in (128, 192, 256):
        row = [m]
        for device in PREDICTED:
            for paired in (False, True):
                found = [t for t in tiles(16, 16 * m, *GATE_UP, max_rows=m) if t.paired == paired and t.rows == 128]
                (tile,) = [t for t in found if t.tokens == (128 if m <= 128 else 256)]
                row.append(with_bound(predict(tile.counts, device)))
        rows.append(row)
    heading = [f"{device.name}, {how}" for device in PREDICTED for how in ("alone", "in pairs")]
    return table(("m", *heading), rows)


def few_experts() -> str:
    shapes = [
        ("gate_up, G = 1", 1, GATE_UP),
        ("gate_up, G = 2", 2, GATE_UP),
        ("down, G = 1", 1, DOWN),
        ("down, G = 2", 2, DOWN),
        ("q_a, 1536 x 6144", 1, (1536, 6144)),
        ("kv_a, 576 x 6144", 1, (576, 6144)),
    ]
    rows = []
    for name, groups, shape in shapes:
        row = [name]
        for device in PREDICTED:
            for split_k in (1, 2, 4):
                found = tiles(groups, 8 * groups, *shape, max_rows=8, split_k=split_k)
                (tile,) = [t for t in found if t.chosen]
                size = f" ({tile.rows}, {tile.blocks})" if device is PREDICTED[0] else ""
                row.append(f"{predict(tile.counts, device)}{size}")
        rows.append(row)
    heading = [f"{device.name}: {split}" if split == 1 else split for device in PREDICTED for split in (1, 2, 4)]
    return table(("", *heading), rows)


def swiglu() -> str:
    rows = [
        (device.name, groups,
         *(with_bound(predict(product(groups, groups * m, *GATE_UP, max_rows=m, swiglu=True), device)) for m in TOKENS))
        for device in PREDICTED
        for groups in (1, 4, 16, 64)
    ]  # fmt: skip
    return table(("gate_up with SwiGLU", "G", *(f"m = {m}" for m in TOKENS)), rows)


def swiglu_forms() -> str:
    """Both forms of gate_up with SwiGLU, and which is faster."""
    tokens = (64, 128, 160, 256, 512)
    rows = []
    for device in PREDICTED:
        for groups in (1, 4, 16, 64):
            both = [forms(groups, groups * m, *GATE_UP, device, max_rows=m) for m in tokens]
            rows.append((device.name, groups, *(f"{b.fused} / {b.apart}: {b.faster or 'either'}" for b in both)))
    return table(("fused / apart", "G", *(f"m = {m}" for m in tokens)), rows)
