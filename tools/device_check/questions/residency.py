"""How kernels that share the device affect each other: blocks beside blocks, and what a launch sees of those ahead."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import longcat_ops
from chains.bench_fused_moe import Problem
from device_check.machine import Machine
from device_check.questions import smoke
from device_check.traced import KERNELS, Traced
from longcat_ops.perf.chain import Share

STAY_MS = 400  # of a neighbour at most
REPLAYS = 20


def beside(machine: Machine, smem: int, n: int, k: int, groups: int, tokens: int) -> dict[str, Any]:
    """The small product on multiprocessors that each hold a block with `smem` bytes of shared memory: does it enter,
    and are its bits those it has alone? Asked with the carve-out that the driver chooses for the neighbour, and with
    the largest.
    """
    p = smoke.problem(machine, n, k, groups, tokens)
    o = p.copies[0]

    def product() -> torch.Tensor:
        out = p.empty_out().fill_(torch.nan)
        return longcat_ops.m_grouped_fp8_gemm_nt_offset((o.x, o.xs), (o.w, o.ws), out, p.offsets, max_m_hint=tokens)

    alone = product().clone()
    machine.synchronize()
    found: dict[str, Any] = {"smem": smem}
    for name, carveout in (("default", -1), ("largest", 100)):
        machine.probes.start_neighbour(machine.sms, smem, carveout, STAY_MS)
        outs, entered = _on_another_stream(machine, product)
        places = machine.probes.stop_neighbour()
        machine.synchronize()
        equal = [torch.equal(out.view(torch.int16), alone.view(torch.int16)) for out in outs]
        found[name] = {"entered": entered, "equal": all(equal), "neighbour": places}
    assert all(found[name]["equal"] for name in ("default", "largest")), f"other bits beside a block: {found}"
    return found


def _on_another_stream(machine: Machine, product: Any) -> tuple[list[torch.Tensor], bool]:
    """Five results, and whether they were complete while the neighbour stayed."""
    if not machine.real:
        return [product()], True
    stream, done = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        outs = [product() for _ in range(5)]
        done.record()
    end = time.monotonic() + 0.5e-3 * STAY_MS
    while not (entered := done.query()) and time.monotonic() < end:
        time.sleep(1e-4)
    return outs, entered


def two_launches_back(machine: Machine, rounds: int) -> dict[str, Any]:
    """Counts words that a kernel read before its wait and that are not what the launch two back wrote."""
    found = machine.probes.ask("two_back", rounds)
    assert found.get("wrong", 0) == 0, f"a launch does not see what was written two launches back: {found}"
    return found


class Chain:
    """permute_quant, gate_up, down, combine of one rank's share of a layer, through the traced library."""

    def __init__(self, machine: Machine, share: Share, hidden: int | None, width: int | None) -> None:
        self.run = Traced(machine.traced, machine.real)
        self.p = p = Problem(share, machine.device, hidden, width)
        rows = len(p.plan.src_of)
        fp8 = torch.float8_e4m3fn
        self.q, self.s = p.empty(rows, hidden, dtype=fp8), p.empty(rows, -(-hidden // 128), dtype=torch.float32)
        self.h, self.sh = p.empty(rows, width, dtype=fp8), p.empty(rows, -(-width // 128), dtype=torch.float32)
        self.y, self.out = p.empty(rows, hidden), p.empty(*p.x.shape)

    def __call__(self) -> None:
        p, (offsets, row_of, src_of), r = self.p, self.p.plan, self.p.routing
        hint = len(p.ids)  # no expert has more rows
        self.run("moe_permute_quant", p.x, row_of, src_of, self.q, self.s)
        gate_up = "m_grouped_fp8_swiglu_gemm_nt_offset"
        self.run(gate_up, self.q, self.s, *p.gate_up, offsets, hint, True, self.h, self.sh)
        self.run("m_grouped_fp8_gemm_nt_offset", self.h, self.sh, *p.down, offsets, hint, True, 1, self.y)
        self.run("moe_combine", self.y, row_of, r.weights, r.zero_weight, p.x, None, self.out)


def entry_times(
    machine: Machine, tokens: int, ranks: int, carveout: int, hidden: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """When the blocks of the chain's kernels enter, and when their wait for the kernel ahead ends: us after the
    first block of all, medians over replays of a graph. Also the share of a kernel's blocks that entered before the
    one ahead had ended."""
    chain = Chain(machine, Share(tokens, ranks), hidden, width)
    with chain.run.recording(carveout) as records:
        replay = chain.run.replayed(chain)
        launches = chain.run.launches()[: len(KERNELS)]
        replays = []
        for _ in range(REPLAYS if machine.real else 1):
            records.clear()
            replay()
            replays.append(records.times())
    expected = longcat_ops.fused_moe(chain.p.x, chain.p.routing, chain.p.gate_up, chain.p.down, plan=chain.p.plan)
    smoke.same_bits("the traced chain", chain.out, expected)
    return {"carveout": carveout, "kernels": _summary(replays), "launches": launches}


def _summary(replays: list[dict[str, dict[str, list[int]]]]) -> dict[str, dict[str, float]]:
    rows: dict[str, list[dict[str, float]]] = {kernel: [] for kernel in KERNELS}
    for times in replays:
        begin = min(times[KERNELS[0]]["entered"])
        for kernel in KERNELS:
            entered, ready = sorted(times[kernel]["entered"]), sorted(times[kernel]["ready"])
            if not entered or not ready:
                continue
            rows[kernel].append({
                "first_entered_us": 1e-3 * (entered[0] - begin), "last_entered_us": 1e-3 * (entered[-1] - begin),
                "first_ready_us": 1e-3 * (ready[0] - begin), "last_ready_us": 1e-3 * (ready[-1] - begin),
                "early_share": sum(ns < ready[0] for ns in entered) / len(entered),
                "first_waited_us": 1e-3 * (ready[0] - entered[0]),
            })  # fmt: skip
    return {
        kernel: {name: round(statistics.median(row[name] for row in found), 3) for name in found[0]}
        for kernel, found in rows.items()
        if found
    }
