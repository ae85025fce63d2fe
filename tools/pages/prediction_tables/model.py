"""Tables of the model itself, for docs/performance_model.md: devices, constants, published times."""

from __future__ import annotations

from longcat_ops.perf import DEVICES, KIND, UNKIND, Constants, floor
from longcat_ops.perf.published import published

from .markdown import table

UNITS = {  # figure -> its heading and its divisor
    "memory": ("memory, TB/s", 1e12),
    "copied": ("copy, TB/s", 1e12),
    "fp8": ("FP8, TFLOPS", 1e12),
    "bf16": ("bf16, TFLOPS", 1e12),
    "sms": ("SMs", 1),
    "l2_bytes": ("L2, MiB", 2**20),
    "l2_low": ("L2 low, TB/s", 1e12),
    "l2_high": ("L2 high, TB/s", 1e12),
    "clock": ("clock, GHz", 1e9),
    "nvlink": ("NVLink, GB/s", 1e9),
    "wire_low": ("wire low, GB/s", 1e9),
    "wire_high": ("wire high, GB/s", 1e9),
}


def devices() -> str:
    rows = []
    for device in DEVICES.values():
        figures = device.figures()
        rows.append([device.name, *(f"{figures[n].value / by:.4g}" if n in figures else "" for n, (_, by) in
                                    UNITS.items())])  # fmt: skip
    return table(("", *(heading for heading, _ in UNITS.values())), rows)


def sources() -> str:
    """Each source once, with the figures that come from it."""
    found: dict[str, list[str]] = {}
    for device in DEVICES.values():
        for name, figure in device.figures().items():
            if name != "clock" or device.name == "H20":
                found.setdefault(figure.source, []).append(f"{device.name} {UNITS[name][0].split(',')[0]}")
    short = {source: _short(names) for source, names in found.items()}
    return table(("source", "figures"), short.items())


def _short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} and {len(names) - 1} more"


def constants() -> str:
    """Both sets, and where they come from."""

    def row(name: str, text: str, source: str) -> tuple[str, str, str, str]:
        return (name, *(text.format(c=c, gb=c.sm_bytes_per_s / 1e9, l2=_l2(c)) for c in (KIND, UNKIND)), source)

    fish = "fish-scales-ops on an H200"
    return table(("part", "kind", "unkind", "from"), [
        row("memory, of the data sheet", "{c.memory_share:.2f}",
            "copies on an H100 and an H200 0.90; reads on an H100 0.82; DeepGEMM's masked products there 0.85, 0.77"),
        row("tensor cores, of the data sheet", "{c.fp8_share:.2f}", "published FP8 products reach 0.78; power limits"),
        row("L2", "{l2}", "assumed by DeepGEMM; assumed here"),
        row("loads of an SM by TMA, GB/s", "{gb:.0f}", f"times of {fish} with 32 to 64 blocks"),
        row("clock of the rest, of the data sheet", "{c.clock_share:.2f}", "assumed"),
        row("a launch that waits for the one ahead, us", "{c.alone_us}",
            f"two trips to memory; {fish}: 2.5 a launch in a chain of five, 4 in one cold product"),
        row("a launch that overlaps with it, us", "{c.follows_us}", "one trip to memory; those 2.5"),
        row("a cluster that shares K, us more", "{c.cluster_us}", "assumed"),
        row("an instruction of a lone warp, clocks", "{c.serial_clocks}", "assumed"),
    ])  # fmt: skip


def _l2(c: Constants) -> str:
    device = DEVICES["H100"]
    rate = (device.l2_high if c.l2_high else device.l2_low).value / 1e12
    return f"{rate:g} TB/s, a multicast once" if c.l2_high else f"{rate:g} TB/s, a multicast once a block"


def published_times() -> str:
    rows = []
    for one in published():
        least, _ = floor(one.launches, DEVICES[one.device])
        where = "inside" if one.us in one.band else f"**outside**: {one.why}"
        band = f"{one.band.low:.3g} .. {one.band.high:.3g}"
        rows.append((one.case, one.device, f"{one.us:.3g}", f"{least:.3g}", band, where, one.source))
    return table(("case", "device", "published, us", "floor", "band", "", "source"), rows)
