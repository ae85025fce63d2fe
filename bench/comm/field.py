"""Everything that bench_comm.py times, ours first; opened once on all ranks, and each measured in every cell."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from comm import claim
from comm.cells import Cell, Inputs
from comm.clocks import Clock, GpuClock, HostClock, Rounds, Timed, slowdown
from comm.figures import Figures, figures, shares
from longcat_ops import perf
from peers.collective import Call, Collectives
from peers.comm_ours import Ours
from peers.mscclpp import Mscclpp
from peers.nccl import FourBlocks, Registered, TorchGroup
from peers.torch_symmetric import CopyEngines, Multimem
from report import devices
from report.fleet import Fleet


class Field:
    """reasons: why an implementation is absent here, the same on every rank."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.ours = Ours(fleet)
        padded = TorchGroup(fleet, padded=True)
        self.all: list[Collectives] = [
            self.ours, Ours(fleet, self.ours), TorchGroup(fleet), padded, Registered(fleet), FourBlocks(fleet),
            CopyEngines(fleet), Multimem(fleet), Mscclpp(fleet),
        ]  # fmt: skip
        self.reasons: dict[str, str] = {}
        self.versions = devices.versions(fleet.device)
        self.clock: Clock = GpuClock(fleet.device) if fleet.on_gpus else HostClock()
        for one in self.all:
            reason = fleet.agree(one.absent())
            if not reason:
                _, reason = fleet.attempt(one.open)
            if reason:
                self.reasons[one.name] = reason
        if reason := self.reasons.get(self.ours.name):
            raise RuntimeError(f"longcat_ops.comm cannot be opened: {reason}")

    @property
    def device(self) -> perf.Device | None:
        """Of the table of perf; None for the host and for a GPU that it does not have."""
        return devices.known(torch.cuda.get_device_name(self.fleet.device)) if self.fleet.on_gpus else None

    def close(self) -> None:
        for one in reversed(self.all):
            if one.name not in self.reasons:
                self.fleet.attempt(one.close)

    def measure(self, cell: Cell, benchmark: Any) -> dict[str, Any]:
        """One cell, on all ranks; what there is to say of it. Raises AssertionError if ours computes something else."""
        inputs = Inputs.of(cell, self.fleet.rank, self.fleet.device)
        timed: dict[str, Timed] = {}
        info: dict[str, Any] = {"absent": {}, "lacks": {}, "blocks": {}, "notes": {}}
        for one in self.all:
            if reason := self.reasons.get(one.name, ""):
                info["absent"][one.name] = reason
            elif reason := one.lacks(cell) or (one.captures() if cell.mode == "graph" else ""):
                info["lacks"][one.name] = reason
            else:
                found, reason = self.fleet.attempt(lambda one=one: self._prepare(one, cell, inputs))
                assert not (reason and isinstance(one, Ours)), f"{one.name}, {cell}: {reason}"
                if reason:
                    info["absent"][one.name] = reason
                    continue
                call, timed[one.name] = found
                info["blocks"][one.name] = one.blocks
                info["notes"] |= {one.name: call.note} if call.note else {}
        assert timed, f"nothing of ours runs {cell} as {cell.mode}: {info['lacks']}"
        rounds = Rounds(self.fleet, timed)
        count = rounds.run(self.clock, benchmark)
        model = self._figures(cell)
        us = {}
        for name, median in rounds.medians().items():
            if model is not None and median < model.bound:
                info["absent"][name] = f"not believed: {median:.2f} us, and NVLink needs at least {model.bound:.2f}"
            else:
                us[name] = median
        measured = shares(cell, us, model)
        for name in us:
            tenths = statistics.quantiles(rounds.us[name] * (1 + (count == 1)), n=10, method="inclusive")
            measured[name] |= {"p10_us": round(tenths[0], 3), "p90_us": round(tenths[-1], 3)}
            if timed[name].launch is not None:
                measured[name]["gemm_slowdown"] = round(slowdown(self.fleet, self.clock, timed[name], us[name]), 4)
        symmetric = {one.name: one.symmetric for one in self.all}
        return facts(cell, model) | info | {
            "backend": self.ours.comm.backend, "why_not": self.ours.comm.why_not, "rounds": count,
            "versions": self.versions,
            "harness": not self.fleet.on_gpus, "measured": measured, "ratio": claim.ratios(us, symmetric),
        }  # fmt: skip

    def _prepare(self, one: Collectives, cell: Cell, inputs: Inputs) -> tuple[Call, Timed]:
        """Refuses what computes something else before it is timed."""
        call = one.prepare(cell, inputs)
        self.clock.once(call, cell.mode)()
        if self.fleet.on_gpus:
            torch.cuda.synchronize()
        if wrong := inputs.disagreement(call.result()):
            raise ValueError(wrong)
        return call, self.clock.timed(call, cell.mode)

    def _figures(self, cell: Cell) -> Figures | None:
        caps = self.ours.comm.caps
        if self.device is None:
            return None
        return figures(cell, self.device, blocks=caps.num_blocks or None, multicast=caps.backend != "p2p",
                       deterministic=caps.fixed_order)  # fmt: skip


def facts(cell: Cell, model: Figures | None) -> dict[str, Any]:
    """What is known of a cell before anything runs."""
    found: dict[str, Any] = {"cell": str(cell), "collective": cell.collective, "distribution": cell.rows}
    found |= {"bytes": cell.nbytes, "size": cell.size, "ranks": cell.ranks, "mode": cell.mode}
    if model is not None:
        found |= {"form": model.form, "bound_us": round(model.bound, 3), "wire_us": round(model.wire, 3)}
        found |= {"band_us": [round(model.band.low, 3), round(model.band.high, 3)]}
    return found
