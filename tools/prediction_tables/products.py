"""Tables of the FP8 products, for docs/moe_gemm.md."""

from __future__ import annotations

from functools import cache

import bench_moe_gemm
import tables
from longcat_ops.perf import DEVICES, KIND, UNKIND, floor, predict
from longcat_ops.perf.products import product, tiles
from longcat_ops.perf.published import published

from .markdown import table, with_bound

GATE_UP, DOWN = bench_moe_gemm.SHAPES["gate_up"], bench_moe_gemm.SHAPES["down"]
TOKENS = tables.COLUMNS
PREDICTED = [DEVICES[name] for name in bench_moe_gemm.PREDICTED]


@cache
def results() -> dict:
    """As `bench_moe_gemm.py --predictions-json` writes them, of the even cells alone."""
    cells = [cell for cell in bench_moe_gemm.cells("full") if not cell.skewed]
    infos = [bench_moe_gemm.info_of(cell, bench_moe_gemm.predicted(cell, [])) for cell in cells]
    return {"predictions": [{"group": "moe_gemm", "extra_info": info} for info in infos]}


def all_products() -> str:
    return tables.all_tables(tables.cells_of(results()))


def constants() -> str:
    """Both sets, and the figures of the devices that they are shares of."""
    rows = [
        ("memory", f"{UNKIND.memory_share:.2f} .. {KIND.memory_share:.2f} of the data sheet's bytes/s"),
        ("tensor cores", f"{UNKIND.fp8_share:.2f} .. {KIND.fp8_share:.2f} of the data sheet's FP8 flops/s"),
        ("L2", f"{_tera(PREDICTED[0].l2_low.value)} .. {_tera(PREDICTED[0].l2_high.value)} TB/s; a multicast leaves it "
               "once for each block .. once"),
        ("loads of an SM", f"{UNKIND.sm_bytes_per_s / 1e9:.0f} .. {KIND.sm_bytes_per_s / 1e9:.0f} GB/s"),
        ("shared memory", f"128 bytes a clock of an SM, at {UNKIND.clock_share:.2f} .. {KIND.clock_share:.2f} of "
                          f"{PREDICTED[0].clock.value / 1e9:.2f} GHz"),
        ("a launch that waits for the one ahead", f"{KIND.alone_us} .. {UNKIND.alone_us} us"),
        ("a launch that overlaps with it", f"{KIND.follows_us} .. {UNKIND.follows_us} us"),
        ("a cluster that shares K", f"{KIND.cluster_us} .. {UNKIND.cluster_us} us more"),
    ]  # fmt: skip
    devices = table(
        ("", "memory, TB/s", "FP8, TFLOPS", "SMs"),
        [(d.name, _tera(d.memory.value), f"{d.fp8.value / 1e12:.0f}", f"{d.sms.value:.0f}") for d in PREDICTED],
    )
    return table(("part", "unkind .. kind, or the costs of kind .. unkind"), rows) + "\n" + devices


def _tera(value: float) -> str:
    return f"{value / 1e12:g}"


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


def published_times() -> str:
    rows = []
    for one in published():
        least, _ = floor(one.launches, DEVICES[one.device])
        where = "inside" if one.us in one.band else f"**outside**: {one.why}"
        band = f"{one.band.low:.3g} .. {one.band.high:.3g}"
        rows.append((one.case, one.device, f"{one.us:.3g}", f"{least:.3g}", band, where, one.source))
    return table(("case", "device", "published, us", "floor", "band", "", "source"), rows)
