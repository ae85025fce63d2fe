"""ScMoE layers of several ranks on one machine: each has rows of its own, its part of the FFN experts, and the others
behind the way that it has in ExpertRanks.

One host thread issues the stages of all ranks in turn, since launches that wait for each other must all be queued (see
Ranks.call).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from device_check.expert_ranks import ExpertRanks, open_expert_ranks
from device_check.machine import Machine
from longcat_ops.comm import ExpertParallel
from longcat_ops.comm.experts.base import Dispatch, ExpertConfig, ExpertWay
from longcat_ops.comm.experts.group_ranks import GroupRanks
from longcat_ops.comm.experts.in_flight import InFlight
from longcat_ops.engine.rank_alone import Alone
from longcat_ops.model import LongcatFlashForCausalLM
from longcat_ops.model.rows import Rows
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.model.stages import Executor, Lanes, Overlapped, Stage, serial
from longcat_ops.types import Plan, Routing

RESERVED = [256 << 20, *[1 << 20] * 16]  # bytes of each stream: more than the values of a layer take
BY_EXPERT = "gate_up", "gate_up_scale", "down", "down_scale"  # buffers of a MoE of FP8 experts


class RankExperts(ExpertParallel):
    """That of a rank whose group is in this process."""

    def __init__(self, session: Any, way: Any) -> None:
        self._ranks, self._in_flight = GroupRanks(session, way, {}), InFlight(session.config.buffers)

    def unsent(self, tokens: int, rows: int) -> Dispatch:
        """The handle of a dispatch of so many tokens that never was, for experts that run on `rows` rows."""
        return Dispatch(Plan(*[torch.empty(0)] * 3), 0, rows, self._hint(tokens))


class Rehearsal:
    """How ranks wait in the emulator, where ops stand in no stream behind the wait: all that is queued runs before the
    host goes on. Every rank has sent by then, or comes to the same wait on a thread of its own."""

    def __init__(self, group: ExpertRanks) -> None:
        self.group, self.meet = group, group.synchronize
        self.lock = threading.Lock()  # a launch is two calls of the emulator

    def at_once(self, run: Callable[[int], Any]) -> list[Any]:
        """run(rank) of each rank, on a thread each."""
        ranks, inference = self.group.ranks, torch.is_inference_mode_enabled()
        barrier = threading.Barrier(ranks, self.group.synchronize, timeout=60)

        def of_rank(rank: int) -> Any:
            try:
                with torch.inference_mode(inference):
                    return run(rank)
            except BaseException:
                barrier.abort()
                raise

        self.meet = barrier.wait
        try:
            with ThreadPoolExecutor(ranks) as threads:
                return list(threads.map(of_rank, range(ranks)))
        finally:
            self.meet = self.group.synchronize


class RehearsedWay:
    """A rank's way in the emulator."""

    HALVES = "dispatch_send", "dispatch_recv", "combine_send", "combine_recv"

    def __init__(self, way: ExpertWay, rehearsal: Rehearsal) -> None:
        self._way, self._rehearsal = way, rehearsal

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._way, name)
        if name not in self.HALVES:
            return found

        def half(*arguments: Any) -> None:
            self._rehearsal.group.kept.append(arguments)  # the emulator remembers whose memory it was
            with self._rehearsal.lock:
                found(*arguments)
            if name.endswith("_recv"):
                self._rehearsal.meet()

        return half


class Joined:
    """Stands in the layers of a rank where the ranks of a model stand (model/parallel.py)."""

    def __init__(self, session: Any, way: Any) -> None:
        self._experts = RankExperts(session, way)

    def exchange(self, payload: str) -> ExpertParallel:
        """Dispatch and combine for layers of FP8 experts."""
        assert payload == "fp8"
        return self._experts

    def placed(self, routing: Routing, layer: int) -> Routing:
        """The routing as it is: experts are their own slots."""
        return routing


def part_of(layer: ScMoELayer, rank: int, ranks: int) -> ScMoELayer:
    """The layer with the FFN experts of one of `ranks`, on the memory of `layer`."""
    part, moe = copy.copy(layer), copy.copy(layer.mlp)
    here = len(moe.down) // ranks
    for name in BY_EXPERT:
        setattr(moe, name, getattr(moe, name)[rank * here : (rank + 1) * here])
    part._modules = {**layer._modules, "mlp": moe}
    return part


def joined(layers: Sequence[ScMoELayer], by: Any, rank: int = 0, ranks: int = 1) -> list[ScMoELayer]:
    """The layers of one of `ranks`, which `by` joins to the others."""
    parts = [part_of(layer, rank, ranks) for layer in layers]
    for part in parts:
        part.mlp.join(by)
    return parts


class Pass:
    """Newest tokens of sequences that have a past in the cache, as rows of one rank: `rows` of each sequence, of which
    sequence b has a past of context - b. x: what the first layer gets."""

    def __init__(self, model: LongcatFlashForCausalLM, sequences: int, rows: int, context: int, seed: int) -> None:
        cache = model.new_cache(max(1, sequences), context + rows)
        for sequence in range(sequences):
            cache.reserve(sequence, context + rows)
        at = [(b, max(0, context - b) + i) for b in range(sequences) for i in range(rows)]
        self._rows = model.rows(cache, [b for b, _ in at], [position for _, position in at])
        self.cache, self._past = cache.rows, torch.empty_like(cache.rows)
        self.x = torch.empty(len(at), model.config.hidden_size, dtype=model.dtype, device=model.device)
        self.draw(seed)

    def draw(self, seed: int) -> None:
        """Another x and another past, in the same memory."""
        draw = torch.Generator(self.x.device).manual_seed(seed)
        for tensor in (self.x, self._past):
            tensor.normal_(generator=draw)

    def begin(self) -> Rows:
        """The rows, before any layer has run."""
        self.cache.copy_(self._past)
        return replace(self._rows, num_real=[])

    def through(self, layers: Sequence[ScMoELayer], execute: Executor) -> list[Tensor]:
        """What the layers make of x, and the FFN experts that each chose."""
        x, rows = self.x, self.begin()
        for layer in layers:
            x = layer(x, rows, execute)
        return [x, *rows.num_real]


class LayerRanks:
    """The layers of a model on the ranks of `group`, each of which has a pass. A result is what Pass.through gives, and
    the cache."""

    def __init__(self, layers: Sequence[ScMoELayer], group: ExpertRanks, passes: Sequence[Pass]) -> None:
        self.group, self.passes, self._rehearsal = group, passes, Rehearsal(group)
        ways = group.ways if group.streams else [RehearsedWay(way, self._rehearsal) for way in group.ways]
        self.parts = [joined(layers, Joined(group.sessions[r], way), r, group.ranks) for r, way in enumerate(ways)]
        self.sides = [torch.cuda.Stream() for _ in group.streams] or [None] * group.ranks

    def prepare(self, layers: Sequence[ScMoELayer], alone: Alone) -> None:
        """Loads every kernel, by passes of each rank for itself and by experts that get no rows, and gives each stream
        memory: while kernels wait for each other, either may wait for them."""
        self.alone(joined(layers, alone), overlaps=True)
        for rank, parts in enumerate(self.parts):
            experts, own = parts[0].mlp.exchange, self.group.ways[rank].buffers[0]
            handle = experts.unsent(len(self.passes[rank].x), len(own.q))
            with self.group.on(rank):
                parts[0].mlp.local_experts((own.q, own.s, torch.zeros_like(own.offsets), handle))
        for stream in (*self.group.streams, *self.sides):
            if stream is not None:
                with torch.cuda.stream(stream):
                    held = [torch.empty(size, dtype=torch.uint8, device=own.q.device) for size in RESERVED]
                    del held
        self.group.synchronize()

    def alone(self, layers: Sequence[ScMoELayer], overlaps: bool = False) -> list[list[Tensor]]:
        """The result of each rank from layers with all experts."""
        found = []
        for rank, one in enumerate(self.passes):
            with self.group.on(rank):
                found.append(one.through(layers, Overlapped(self.sides[rank]) if overlaps else serial))
            self.group.synchronize()
            found[-1].append(one.cache.clone())
        self.group.synchronize()
        return found

    def together(self, stages: Sequence[Stage], overlaps: bool) -> list[list[Tensor]]:
        """The result of each rank, from stages in this order: a stage of all ranks before the next of any. overlaps:
        communication on a stream of its own, where there are streams."""
        self.group.synchronize()
        x, rows = [one.x for one in self.passes], []
        for rank, one in enumerate(self.passes):
            with self.group.on(rank):
                rows.append(one.begin())
        for layers in zip(*self.parts, strict=True):
            lanes = []
            for rank, layer in enumerate(layers):
                side = self.sides[rank] if overlaps else None
                with self.group.on(rank):
                    lanes.append(Lanes(layer, stages, rows[rank], {"x": x[rank]}, side))
            for one in stages:
                for rank, lane in enumerate(lanes):
                    with self.group.on(rank):
                        lane.issue(one)
            for rank, lane in enumerate(lanes):
                with self.group.on(rank):
                    x[rank] = lane.join("out")
        self._finish()
        return [[x[r], *rows[r].num_real, one.cache] for r, one in enumerate(self.passes)]

    def captured(self, overlaps: bool) -> Callable[[], list[list[Tensor]]]:
        """The pass of each rank as a graph of its own: a function that replays all of them. Without streams, a thread
        stands for a graph."""

        def whole(rank: int) -> list[Tensor]:
            return self.passes[rank].through(self.parts[rank], Overlapped(self.sides[rank]) if overlaps else serial)

        self.group.synchronize()
        replay, found = self.group.captured(whole) if self.group.streams else (None, [])

        def replayed() -> list[list[Tensor]]:
            self.group.synchronize()
            if replay is None:
                found[:] = self._rehearsal.at_once(whole)
            else:
                replay()
            self._finish()
            return [[*found[r], one.cache] for r, one in enumerate(self.passes)]

        return replayed

    def _finish(self) -> None:
        self.group.synchronize()
        self.group.poll()


@contextmanager
def open_layer_ranks(
    machine: Machine, model: LongcatFlashForCausalLM, sequences: Sequence[int], rows: int, context: int, seed: int
) -> Iterator[LayerRanks]:
    """sequences: of each rank, each with `rows` rows in its pass."""
    c, most = model.config, rows * max(sequences)
    config = ExpertConfig(1, "nvl", 1, 1, True, 10.0, "auto", c.n_routed_experts, c.moe_topk, c.hidden_size, most,
                          "fp8", 2)  # fmt: skip
    passes = [Pass(model, count, rows, context, seed + rank) for rank, count in enumerate(sequences)]
    with open_expert_ranks(machine, len(sequences), config) as group:
        opened = LayerRanks(model.layers, group, passes)
        opened.prepare(model.layers, Alone(c, most))
        yield opened
