"""Do layers whose rows travel beside the dense branch compute the same on two streams as on one, and when does each
stage run? Here one rank has all experts, so rows go nowhere; the stages, streams, events and their capture are those of
several ranks."""

from __future__ import annotations

from typing import Any

import torch

from device_check.machine import Machine
from device_check.questions.smoke import same_bits
from engine.decode_step import Problem
from longcat_ops.cli.timeline_measured import Network, to_dict
from longcat_ops.engine.rank_alone import join_alone, random_rank
from longcat_ops.engine.stage_times import measure
from longcat_ops.engine.step_graph import capture
from longcat_ops.model.stages import Overlapped, serial
from longcat_ops.perf.step import Shape


def layers(machine: Machine, sequences: int, rows: int, context: int, sizes: dict[str, int]) -> dict[str, Any]:
    """A decode step of two layers: one after another, on two streams, and both captured; us of the captured ones."""
    with torch.no_grad():
        problem = Problem(machine.device, Shape(sequences, rows, context), 2, **sizes)
    join_alone(problem.model, sequences * rows)
    side = torch.cuda.Stream() if machine.real else None
    with torch.inference_mode():
        want = _run(problem, serial)
        machine.synchronize()
        for _ in range(10 if machine.real else 2):
            same_bits("on two streams", _run(problem, Overlapped(side)), want)
        if not machine.real:  # threads of the host are no streams, which a capture could hold
            return {"rehearsed": "two threads"}
        runs = {}
        for name, execute in (("serial", serial), ("overlapped", Overlapped(side))):
            problem.model.execute = execute
            problem.reset()
            graph = capture(problem.step, device=machine.device)
            same_bits(f"captured, {name}", graph.outputs[:4], want)
            runs[name] = [graph.replay]
        return {"times": machine.times(runs)}


def stage_times(machine: Machine, layers: int, sequences: int, rows: int, context: int, rounds: int,
                sizes: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    """When each stage of these layers runs, one after another and on two streams: what `timeline --measure` prints. A
    rehearsal reads the clock of the host."""
    model = random_rank(machine.device, layers, num_nextn_predict_layers=0, **sizes)
    join_alone(model, sequences * rows)
    return to_dict(measure(model, sequences, rows, context, rounds=rounds), Network.of(model, None))


def _run(problem: Problem, execute: Any) -> list[torch.Tensor]:
    problem.model.execute = execute
    problem.reset()
    return [t.clone() for t in problem.step()[:4]]
