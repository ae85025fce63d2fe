"""Everything that bench_ep.py times, ours first; opened once on all ranks, and each measured in every cell."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from comm.clocks import Clock, GpuClock, HostClock, Rounds, Timed
from comm.ep_problem import LONGCAT, TOKENS, Cell, Problem, Sizes, Weights, host_sizes
from longcat_ops import perf
from longcat_ops.perf import comm as model
from peers.ep_ways import AllToAll, ExpertRanks, Ours, Ready
from report import devices
from report.fleet import Fleet


class ExpertField:
    """reasons: why a way is absent here, the same on every rank."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.sizes: Sizes = LONGCAT if fleet.on_gpus else host_sizes(fleet.ranks)
        self.ours = Ours(fleet)
        self.all: list[ExpertRanks] = [
            self.ours, Ours(fleet, "torch", self.ours), Ours(fleet, "deepep", self.ours),
            AllToAll(fleet, True, self.sizes), AllToAll(fleet, False, self.sizes),
        ]  # fmt: skip
        self.reasons: dict[str, str] = {}
        self.versions = devices.versions(fleet.device)
        self.clock: Clock = GpuClock(fleet.device) if fleet.on_gpus else HostClock()
        self.weights = Weights.of(self.sizes, fleet)
        self._problems: dict[int, Problem] = {}
        for one in self.all:
            reason = fleet.agree(one.absent())
            if not reason:
                _, reason = fleet.attempt(lambda one=one: one.open(self.sizes, max(TOKENS)))
            if reason:
                self.reasons[one.name] = reason
        if reason := self.reasons.get(self.ours.name):
            raise RuntimeError(f"ExpertParallel cannot be opened: {reason}")

    def close(self) -> None:
        for one in reversed(self.all):
            if one.name not in self.reasons:
                self.fleet.attempt(one.close)

    def measure(self, cell: Cell, benchmark: Any) -> dict[str, Any]:
        """One cell, on all ranks; what there is to say of it. Raises AssertionError if ours computes something else."""
        if cell.tokens not in self._problems:
            self._problems[cell.tokens] = Problem(self.sizes, cell.tokens, self.fleet, self.weights)
        problem, timed, ready = self._problems[cell.tokens], {}, {}
        info: dict[str, Any] = {"absent": dict(self.reasons)}
        for one in self.all:
            if one.name in self.reasons:
                continue
            mode = "eager" if one.captures() or not self.fleet.on_gpus else "graph"
            found, reason = self.fleet.attempt(lambda one=one, mode=mode: self._prepare(one, cell, problem, mode))
            assert not (reason and one is self.ours), f"{one.name}, {cell}: {reason}"
            if reason:
                info["absent"][one.name] = reason
            else:
                ready[one.name], timed[one.name] = found, (found[2], mode)
        rounds = Rounds(self.fleet, {name: one for name, (one, _) in timed.items()})
        count = rounds.run(self.clock, benchmark)
        measured: dict[str, Any] = {}
        for name, us in rounds.medians().items():
            tenths = statistics.quantiles(rounds.us[name] * (1 + (count == 1)), n=10, method="inclusive")
            one: Ready = ready[name][0]
            sent, counted = (int(n) for n in self.fleet.longest([one.sent, one.counted or 0]))
            measured[name] = {"us": round(us, 3), "p10_us": round(tenths[0], 3), "p90_us": round(tenths[-1], 3),
                              "mode": timed[name][1], "sent": sent, "counted": counted}  # fmt: skip
        ours = measured[self.ours.name]
        ratio = {name: round(row["us"] / ours["us"], 4) for name, row in measured.items() if name != self.ours.name}
        return facts(cell, self.sizes, self.fleet.ranks, self._device(), ours["sent"]) | info | {
            "backend": self.ours.ep.backend, "why_not": self.ours.ep.why_not, "rounds": count, "ratio": ratio,
            "versions": self.versions, "harness": not self.fleet.on_gpus, "measured": measured,
        }  # fmt: skip

    def _prepare(self, one: ExpertRanks, cell: Cell, problem: Problem, mode: str) -> tuple[Ready, str, Timed]:
        """Refuses what computes something else before it is timed."""
        ready = one.prepare(cell, problem)
        self.clock.once(ready.call, mode)()
        if self.fleet.on_gpus:
            torch.cuda.synchronize()
        if wrong := problem.disagreement(cell.what, ready.call.result(), one.ordered):
            raise ValueError(wrong)
        if ready.counted not in (None, ready.sent):
            raise ValueError(f"counts {ready.counted} bytes, and sends {ready.sent}")
        return ready, mode, self.clock.timed(ready.call, mode)

    def _device(self) -> perf.Device | None:
        return devices.known(torch.cuda.get_device_name(self.fleet.device)) if self.fleet.on_gpus else None


def facts(cell: Cell, sizes: Sizes, ranks: int, device: perf.Device | None, sent: float) -> dict[str, Any]:
    """What is known of a cell before anything is timed. sent: bytes of the rank that sends most."""
    found: dict[str, Any] = {"expert_call": cell.what, "cell": str(cell), "tokens_a_rank": cell.tokens, "ranks": ranks}
    found |= {"experts": sizes.experts, "zero_experts": sizes.zero, "hidden": sizes.hidden, "sent": round(sent)}
    if device is not None and device.wire_high is not None:
        found["wire_us"] = round(1e6 * sent / model.rates(device)[0], 3)
    return found
