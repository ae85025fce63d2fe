"""The question of a GPU check about whole layers of several ranks notices what is wrong: shown over the emulator, with
planted errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from device_check import layer_ranks
from device_check.layer_ranks import LayerRanks, Pass
from device_check.machine import Machine
from device_check.plan_attention import TINY
from device_check.questions import layers
from longcat_ops.comm.experts.group_ranks import GroupRanks
from longcat_ops.engine.rank_alone import Alone, random_rank
from longcat_ops.model.scmoe import ScMoELayer
from support.emulated_kernels import library, one_thread, schedule  # noqa: F401
from support.fake_streams import Device

MACHINE = Machine("cpu", Path("none"), Path("none"))
SIZES = TINY | {"n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 6}


def ask(*sequences: int) -> dict[str, Any]:
    return layers.values(MACHINE, 1, [sequences], 2, 20, SIZES)


def test_ranks_with_uneven_rows() -> None:
    expected = {"sequences": [(3, 0, 1, 2)], "passes": 3, "rehearsed": "one stream"}
    assert ask(3, 0, 1, 2) == expected
    assert ask(0, 2)["passes"] == 3


def other_slice(patch: pytest.MonkeyPatch) -> None:
    """Each rank has the experts of the next one."""
    part_of = layer_ranks.part_of
    patch.setattr(layer_ranks, "part_of", lambda layer, rank, ranks: part_of(layer, (rank + 1) % ranks, ranks))


def one_expert(patch: pytest.MonkeyPatch) -> None:
    """Two experts of the last rank change places."""
    part_of = layer_ranks.part_of

    def changed(layer: ScMoELayer, rank: int, ranks: int) -> ScMoELayer:
        part = part_of(layer, rank, ranks)
        if ranks > 1 and rank == ranks - 1:
            part.mlp.down = part.mlp.down[[1, 0, 2, 3]]
        return part

    patch.setattr(layer_ranks, "part_of", changed)


def swapped_rows(patch: pytest.MonkeyPatch) -> None:
    """What comes back to rank 1 is what came back to rank 0."""
    made: list[GroupRanks] = []
    build, receive = GroupRanks.__init__, GroupRanks.combine_recv

    def built(self: GroupRanks, *arguments: Any) -> None:
        build(self, *arguments)
        made.append(self)

    def received(self: GroupRanks, buffer: int) -> Tensor:
        receive(self, buffer)
        return made[0]._buffers[buffer].returned

    patch.setattr(GroupRanks, "__init__", built)
    patch.setattr(GroupRanks, "combine_recv", received)


def no_wait(patch: pytest.MonkeyPatch) -> None:
    """Ranks go on before the rows of others are there."""
    rehearsal = layer_ranks.Rehearsal.__init__

    def never(self: layer_ranks.Rehearsal, group: Any) -> None:
        rehearsal(self, group)
        self.meet = lambda: None

    patch.setattr(layer_ranks.Rehearsal, "__init__", never)


def no_latents(patch: pytest.MonkeyPatch) -> None:
    """The second attention of several ranks finds its rows where an earlier pass has left them, or nowhere."""
    project, together = ScMoELayer.project_second, LayerRanks.together

    def forgetful(self: ScMoELayer, rows: Any, n: Any) -> Tensor:
        held = rows.cache.rows.clone()
        q = project(self, rows, n)
        rows.cache.rows.copy_(held)
        return q

    def changed(self: LayerRanks, *arguments: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(ScMoELayer, "project_second", forgetful)
            return together(self, *arguments, **named)

    patch.setattr(LayerRanks, "together", changed)


@pytest.mark.parametrize("fault", [other_slice, one_expert, swapped_rows, no_wait, no_latents])
def test_a_fault_is_noticed(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"in turn, lanes 1, rank \d of 2: out differs"):
        ask(2, 2)


def ask_graphs() -> dict[str, Any]:
    return layers.graphs(MACHINE, 1, [2, 1], 2, 20, 2, SIZES)


def test_whole_passes_beside_each_other() -> None:
    assert ask_graphs() == {"sequences": [2, 1], "replays": 2, "rehearsed": "threads"}


@pytest.mark.parametrize("fault", [other_slice, one_expert, swapped_rows])
def test_a_fault_of_whole_passes_is_noticed(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"captured, serial, replay 0, rank \d of 2: out differs"):
        ask_graphs()


def test_an_error_of_one_rank_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for it end, too."""
    passed = Pass.through

    def failing(self: Pass, parts: Any, execute: Any) -> Any:
        if parts[0].mlp.exchange is not None and parts[0].mlp.exchange.rank == 1:
            raise ZeroDivisionError
        return passed(self, parts, execute)

    monkeypatch.setattr(Pass, "through", failing)
    with pytest.raises((ZeroDivisionError, threading.BrokenBarrierError)):
        ask_graphs()


def test_two_lanes_of_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """On streams of a GPU that is made up: the stages that communicate on each rank's own, with the same bits."""
    device, seen = Device(), []
    with torch.no_grad():
        model = random_rank("cpu", 1, num_nextn_predict_layers=0, **SIZES)
    with torch.inference_mode(), layer_ranks.open_layer_ranks(MACHINE, model, [2, 1], 2, 20, 0) as ranks:
        right = ranks.alone(model.layers)
        device.install(monkeypatch)
        ranks.sides = [torch.cuda.Stream(), torch.cuda.Stream()]
        ranks.prepare(model.layers, Alone(model.config, 4))
        for one in ScMoELayer.PARALLEL:
            call = getattr(ScMoELayer, one.name)

            def watched(self: ScMoELayer, *values: Any, one: Any = one, call: Any = call) -> Any:
                seen.append((one, self.mlp.exchange.rank, device.current))
                return call(self, *values)

            monkeypatch.setattr(ScMoELayer, one.name, watched)
        layers.compare("two lanes", ranks.together(ScMoELayer.PARALLEL, overlaps=True), right)
        own = device.streams[0]
        assert [(one, rank) for one, rank, _ in seen] == [(one, r) for one in ScMoELayer.PARALLEL for r in range(2)]
        assert all(stream is (ranks.sides[r] if one.communicates else own) for one, r, stream in seen)
