"""What longcat_ops.perf says of a cell: its bound, what its bytes need on the wire, a predicted band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comm.cells import Cell
from longcat_ops import perf
from longcat_ops.perf import Band
from longcat_ops.perf import comm as model


@dataclass(frozen=True)
class Figures:
    """us. bound: at the data sheet's NVLink, nothing is faster. wire: the bytes of our form alone, at the rate that
    collectives reach. band: predicted for our kernel in a CUDA graph."""

    form: str
    bound: float
    wire: float
    band: Band

    def share(self, us: float) -> float:
        """Of the wire model that a time reaches."""
        return self.wire / us


def figures(cell: Cell, device: perf.Device, *, blocks: int | None = None, multicast: bool = True,
            deterministic: bool = False) -> Figures | None:  # fmt: skip
    """None where the table of devices has no switch for this one."""
    if device.wire_high is None:
        return None
    config = model.choose(cell.collective, cell.ranks, cell.nbytes, largest_part=round(max(cell.parts)),
                          multicast=multicast, deterministic=deterministic, blocks=blocks)  # fmt: skip
    moved = model.traffic(cell.collective, config.form, config.policy, cell.parts)
    wire = 1e6 * moved.wire / model.rates(device)[0]
    band = model.predict(cell.collective, config, cell.parts, device)
    return Figures(f"{config.form}, {config.policy}", model.bound(cell.collective, cell.parts, device), wire, band)


def shares(cell: Cell, us: dict[str, float], figures: Figures | None) -> dict[str, dict[str, Any]]:
    """Of each implementation's time: GB/s of the tensor and of the wire, and the share of the wire model."""
    found: dict[str, dict[str, Any]] = {}
    for name, time in us.items():
        algbw = cell.nbytes / time * 1e-3
        found[name] = {"us": round(time, 3), "algbw": round(algbw, 3), "busbw": round(algbw * cell.bus_factor, 3)}
        if figures is not None:
            found[name]["wire_share"] = round(figures.share(time), 4)
    return found
