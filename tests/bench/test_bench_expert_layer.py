"""The bench of a whole expert layer: a peer gets the same layer, and a ratio needs both times from one run."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from chains import bench_expert_layer
from longcat_ops import reference
from peers import fish_scales
from report import graph_time

E, H, W = 8, 256, 128


def wide(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The dequantised weights [E,N,K] in float64."""
    rows = scales.repeat_interleave(128, 1).repeat_interleave(128, 2)
    return values.double() * rows[:, : values.shape[1], : values.shape[2]].double()


def quantised(x: torch.Tensor) -> torch.Tensor:
    return reference.dequant_fp8(*reference.per_token_group_quant_fp8(x), torch.float32).double()


def layer_as_documented(hidden, w13, sw13, w2, sw2, topk_ids, topk_w):
    """The layer as fish-scales-ops documents it: activations quantised 1x128, bf16 between the two products, the rest
    in float64."""
    gate_up, down = wide(w13, sw13), wide(w2, sw2)
    out, x = torch.zeros(hidden.shape, dtype=torch.float64), quantised(hidden)
    for t, (ids, weights) in enumerate(zip(topk_ids.tolist(), topk_w.tolist(), strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            gate, up = (gate_up[expert] @ x[t]).bfloat16().float().chunk(2)
            h = quantised((torch.nn.functional.silu(gate) * up)[None])[0]
            out[t] += weight * (down[expert] @ h)
    return out.bfloat16()


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(gemm=SimpleNamespace(moe_layer_fp8_sm90=layer_as_documented))
    monkeypatch.setitem(sys.modules, "fish_scales_ops", module)
    monkeypatch.setattr(fish_scales, "available", lambda: None)
    return module


def test_the_peer_gets_the_same_layer(peer: SimpleNamespace) -> None:
    problem = bench_expert_layer.Problem(5, "cpu", E, H, W)
    ours, theirs = problem.ours()(), problem.peer()()
    assert bench_expert_layer.disagreement(theirs, ours.bfloat16()) is None
    swapped = problem.halves[0].roll(W, 1), problem.halves[1].roll(1, 1)  # up first
    wrong = fish_scales.layer(problem.x, swapped, problem.down, problem.ids, problem.weights)()
    assert "computes something else" in bench_expert_layer.disagreement(wrong, ours)


def test_128_tokens_give_every_expert_8_rows() -> None:
    ids = bench_expert_layer.Problem(128, "cpu", 128, 8, 128).ids
    assert ids.flatten().bincount().tolist() == [8] * 128
    assert all(len(set(row)) == 8 for row in ids.tolist())


def test_a_ratio_only_beside_a_time_of_the_same_run(monkeypatch: pytest.MonkeyPatch, peer: SimpleNamespace) -> None:
    """The peer is checked before it is timed: a wrong one gets a reason and no time."""
    small = partial(bench_expert_layer.Problem, device="cpu", experts=E, hidden=H, width=W)
    monkeypatch.setattr(bench_expert_layer, "Problem", lambda tokens, _: small(tokens))
    monkeypatch.setattr(graph_time, "capture", lambda runs, repeats: runs)
    monkeypatch.setattr(graph_time, "take_turns", lambda graphs: dict.fromkeys(graphs, graph_time.Times(1, 1, 1)))
    times, reasons = bench_expert_layer.measured(3)
    assert times.keys() == {"longcat_ops_us", "fish-scales-ops_us"} and not reasons
    assert bench_expert_layer.ratio(times) == {"peer_over_ours": 1.0}
    peer.gemm.moe_layer_fp8_sm90 = lambda hidden, *_: hidden
    times, reasons = bench_expert_layer.measured(3)
    assert times.keys() == {"longcat_ops_us"} and "computes something else" in reasons["fish-scales-ops"]
    assert bench_expert_layer.ratio(times) == {}
    monkeypatch.setattr(fish_scales, "available", lambda: "it cannot be imported")
    assert bench_expert_layer.measured(3)[1] == {"fish-scales-ops": "it cannot be imported"}
