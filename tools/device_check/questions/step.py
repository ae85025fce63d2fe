"""A whole decode step of one rank of EP128: is it the same captured, and how long does it take, part by part?"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch

from device_check.machine import Machine
from device_check.questions.smoke import same_bits
from engine.decode_step import Problem
from longcat_ops import perf
from longcat_ops.engine.step_graph import capture
from longcat_ops.perf import step as model
from longcat_ops.perf.step import Shape

LEFT_OUT = "dispatch and combine between ranks, sampling other than greedy, the host, half of the rows that experts get"


def whole(
    machine: Machine, layers: int, sequences: int, rows: int, context: int, sizes: dict[str, int]
) -> dict[str, Any]:
    """One eager step, then the same captured, with the same bits; times of both, and of the parts as CUDA graphs,
    beside the prediction and the report's estimate for an H800."""
    with torch.no_grad():  # weights of inference mode would count as written to at every pass
        problem = Problem(machine.device, Shape(sequences, rows, context), layers, **sizes)
    with torch.inference_mode():
        return _asked(machine, problem)


def _asked(machine: Machine, problem: Problem) -> dict[str, Any]:
    want = [t.clone() for t in problem.step()[:4]]
    machine.synchronize()
    eager_us = _clocked(machine, problem.step)
    problem.reset()
    graph = capture(problem.step, device=machine.device)
    same_bits("a captured step", graph.outputs[:4], want)
    step_us = _clocked(machine, graph.replay)
    parts = {name: partial(run) for name, run in problem.parts().items()}
    for run in parts.values():
        run()
    times = machine.times({name: [run] for name, run in parts.items()})
    band = model.predicted(perf.by_name(torch.cuda.get_device_name() if machine.real else "H100"))
    predicted = {name: str(getattr(band, name)) for name in (*parts, "step", "ms_a_token")}
    return {"ops": len(graph.ops), "eager_us": eager_us, "step_us": step_us,
            "ms_a_token": round(1e-3 * step_us / (1 + model.ACCEPTED), 3), "parts": times, "predicted": predicted,
            "report": {"attention": 264, "dispatch": 236, "moe": 60, "combine": 472, "ms_a_token": 16.05},
            "left_out": LEFT_OUT}  # fmt: skip


def _clocked(machine: Machine, run: Any, rounds: int = 5) -> float:
    """us of one run, the median; a rehearsal does it once."""
    found = []
    for _ in range(rounds if machine.real else 1):
        machine.synchronize()
        start = time.perf_counter()
        run()
        machine.synchronize()
        found.append(1e6 * (time.perf_counter() - start))
    return round(statistics.median(found), 1)
