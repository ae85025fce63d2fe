"""A captured step has the bits of the eager one, on inputs that change, and whatever a replay would miss is refused."""

from __future__ import annotations

import gc
import inspect
import random
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatError, LongcatShapeError, LongcatUnsupportedError, _environment
from longcat_ops.engine import step_graph
from longcat_ops.engine.step_graph import _arena, capture
from longcat_ops.ops.registration import CPU_KERNELS
from support import models

pytestmark = pytest.mark.skipif(_environment.backend() != "cpu", reason="only the CPU backend records kernels")

X = torch.arange(24, dtype=torch.float32).view(3, 8) - 5
W = torch.linspace(0.5, 1.5, 8)
INDEX = torch.tensor([1])


def ffn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A chain of ops with temporaries, views and an output that is a view."""
    y = longcat_ops.rms_norm(x, weight, 1e-5)
    both = y.new_empty((len(y), 16))
    longcat_ops.rms_norm(y, weight, 1e-5, y=both[:, :8])
    longcat_ops.rms_norm(longcat_ops.add_rows(x, y), weight, 1e-5, y=both[:, 8:])
    return longcat_ops.add_rows(longcat_ops.silu_and_mul(both), x)[:, 1:]


def test_a_replay_reads_its_inputs_anew() -> None:
    x, weight = X.clone(), torch.rand(8) + 0.5
    graph = capture(ffn, x, weight)
    assert torch.equal(graph.outputs, ffn(x, weight))
    assert graph.ops == ["rms_norm", "rms_norm", "add_rows", "rms_norm", "silu_and_mul", "add_rows"]
    for seed in range(3):
        new = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(graph.replay(new, weight), ffn(new, weight)) and torch.equal(x, new)
        x.mul_(-2)  # written in place: no need to pass it
        assert torch.equal(graph.replay(), ffn(x, weight))
    for wrong in ((x,), (x, weight, x), (x[:2], weight), (x[:, :1], weight), (x.double(), weight)):
        with pytest.raises(LongcatShapeError, match="`inputs`"):
            graph.replay(*wrong)


def test_a_graph_keeps_what_it_needs() -> None:
    graph = capture(ffn, X.clone(), W.clone())  # which nothing else holds
    want = ffn(X * 3, W)
    gc.collect()
    junk = [torch.full((64,), float("nan")) for _ in range(200)]  # takes the memory of whatever was freed
    assert torch.equal(graph.replay(X * 3, W), want) and len(junk) == 200


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_pass_of_the_network(dtype: torch.dtype) -> None:
    """A decode pass whose tokens, positions and number of rows change between replays."""
    model, starts = models.build(num_layers=2, dtype=dtype), [70, 3, 64]
    prompts = torch.stack([models.prompt(70, seed=s) for s in range(3)])
    with torch.inference_mode():
        caches = [model.new_cache(3, 80) for _ in range(2)]
        for cache in caches:
            model(prompts, cache, lengths=starts)
            for b in range(3):
                cache.reserve(b, 80)
        both = [model.rows(cache, [0, 1, 2, -1], [*starts, -1]) for cache in caches]
        for rows in both:
            rows.num_rows.fill_(3)
        ids = torch.tensor([5, 6, 7, -1])

        def step(ids: torch.Tensor) -> tuple:
            made = model.decode_rows(ids, replace(both[0], num_real=[]))
            return made.logits, made.by_layer

        graph = capture(step, ids)
        assert "fused_moe" not in graph.ops and len(graph.ops) > 50
        for turn in range(4):
            want = model.decode_rows(ids, replace(both[1], num_real=[]))
            logits, by_layer = graph.outputs
            live = int(both[1].count)
            assert torch.equal(logits[:live], want.logits[:live])
            assert all(torch.equal(a, b) for a, b in zip(by_layer, want.by_layer, strict=True))
            assert torch.equal(caches[0].rows, caches[1].rows)
            for rows in both:
                rows.position[:live] += 1
                if turn == 1:  # the last row becomes padding
                    rows.position[2], rows.num_rows[:] = -1, 2
            ids = torch.randint(3, 60, (4,), generator=torch.Generator().manual_seed(turn))
            graph.replay(ids)


READS = {
    "item": lambda x: x[0, 0].item(),
    "int": lambda x: int(x[0, 0]),
    "float": lambda x: float(x[0, 0]),
    "bool": lambda x: bool(x[0, 0]),
    "index": lambda x: [1, 2, 3][INDEX[0]],
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: __import__("numpy").asarray(x),
    "repr": lambda x: repr(x),
    "format": lambda x: f"{x[0, 0]}",
    "pointer": lambda x: x.data_ptr(),
    "in": lambda x: 3.0 in x,
}
OTHERS = {
    "add": lambda x: x + 1,
    "in place": lambda x: x.add_(1),
    "fill": lambda x: x.zero_(),
    "set item": lambda x: x.__setitem__(0, 1.0),
    "cat": lambda x: torch.cat([x, x]),
    "clone": lambda x: x.clone(),
    "copy of a view": lambda x: x.t().contiguous(),
    "reshape that copies": lambda x: x.t().reshape(-1),
    "dtype": lambda x: x.bfloat16(),
    "zeros": lambda x: torch.zeros(3),
    "tensor": lambda x: torch.tensor([1, 2]),
    "arange": lambda x: torch.arange(3),
    "random": lambda x: torch.rand(3),
    "linear": lambda x: torch.nn.functional.linear(x, x),
    "branch": lambda x: x if x[0, 0] > 0 else -x,
    "argmax": lambda x: x.argmax(-1),
}


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
@pytest.mark.parametrize("step", [*READS.values(), *OTHERS.values()], ids=[*READS, *OTHERS])
def test_what_a_replay_would_miss_is_refused_with_its_line(step, mode) -> None:
    x = X.clone()
    with mode(), pytest.raises(LongcatUnsupportedError) as error:
        capture(lambda x: step(longcat_ops.add_rows(x, x)), x)
    line = inspect.getsourcelines(step)[1]
    assert f"{__file__}:{line}:" in str(error.value)
    assert ("the host reads" in str(error.value)) == (step in READS.values())


def test_views_and_empty_tensors_are_allowed() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        a, b = x.view(4, 6).t()[:, None].squeeze(1).unflatten(0, (3, 2)).flatten(0, 1).expand(6, 4).chunk(2, 1)
        both = torch.empty_like(x).view(6, 4)
        assert len(a) == 6 and b.shape == (6, 2) and both.is_contiguous()
        return longcat_ops.add_rows(x[:, ::1], x.view(torch.int32).view(torch.float32))

    assert torch.equal(capture(step, X.clone()).replay(), X + X)


def test_a_bad_call_is_refused_as_ever() -> None:
    with pytest.raises(LongcatShapeError, match="rms_norm"):
        capture(lambda x: longcat_ops.rms_norm(x, W[:4], 1e-5), X.clone())


def test_the_reference_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_environment, "backend", lambda: "reference")
    with pytest.raises(LongcatUnsupportedError, match="reference"):
        capture(lambda x: x, X)
    with pytest.raises(LongcatUnsupportedError, match="meta"):
        capture(lambda x: x, X.to("meta"), device="meta")


def test_a_cuda_graph_runs_once_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside torch's capture nothing runs, so the first replay follows at once."""
    x, runs = X.clone(), []

    @contextmanager
    def recording():
        yield lambda: runs.append(x.clone())

    monkeypatch.setattr(step_graph, "_cuda_graph", recording)
    monkeypatch.setattr(step_graph, "CUDA_KERNELS", {"add_rows"})
    graph = capture(lambda x: longcat_ops.add_rows(x, x)[1:], x, device="cuda")
    assert graph.ops == ["add_rows"] and len(runs) == 1 and graph.outputs.shape == (2, 8)
    assert graph.replay(-X) is graph.outputs and torch.equal(runs[1], -X)
    with pytest.raises(LongcatUnsupportedError, match="rms_norm has no kernel for this call"):
        capture(lambda x: longcat_ops.rms_norm(x, W, 1e-5), X.clone(), device="cuda")
    monkeypatch.setattr(step_graph, "CUDA_KERNELS", set())
    with pytest.raises(LongcatUnsupportedError, match="no CUDA kernels"):
        capture(lambda x: x, X, device="cuda")


def test_a_device_that_records_by_itself() -> None:
    """As a GPU in a capture: its graph has torch's kernels and exchanges, so they run; a read is refused as ever."""
    x, recorder = X.clone(), step_graph._Recorder(lambda op, _: op in CPU_KERNELS, records="cpu")
    with recorder:
        total = longcat_ops.add_rows(x, x).sum(0, keepdim=True).to(torch.bfloat16)
        with pytest.raises(LongcatUnsupportedError, match="the host reads"):
            x[0, 0].item()
    assert torch.equal(total, (2 * X).sum(0, keepdim=True).bfloat16())
    elsewhere = step_graph._Recorder(lambda op, _: True, records="cuda")
    with elsewhere, pytest.raises(LongcatUnsupportedError, match=r"aten\.sum\..* is no op of this library"):
        x.sum()
    token = torch.zeros(1, dtype=torch.int64)
    for records, refused in (("cuda", True), ("cpu", False)):  # else the call itself fails: nobody has this handle
        with step_graph._Recorder(lambda op, _: True, records=records), pytest.raises(LongcatError) as error:
            torch.ops.longcat_ops.comm_barrier(10**9, token)
        assert ("comm_barrier meets other ranks, which the host does here" in str(error.value)) == refused


def test_tensors_that_live_at_the_same_time_have_places_of_their_own() -> None:
    draw = random.Random(0)
    for _ in range(200):
        sizes = {i: draw.choice([0, 1, 8, 63, 64, 65, 1000]) for i in range(draw.randint(0, 30))}
        lives = {i: sorted(draw.choices(range(20), k=2)) for i in sizes}
        offsets, total = _arena(lives, sizes)
        assert offsets.keys() == sizes.keys() and all(o % 64 == 0 for o in offsets.values())
        assert total >= max((offsets[i] + sizes[i] for i in sizes), default=0)
        assert total <= sum(-(-s // 64) * 64 for s in sizes.values())
        for i in sizes:
            for j in range(i):
                together = lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]
                apart = offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
                assert apart or not together


def test_temporaries_share_the_arena() -> None:
    """A chain of 50 ops needs two places, whatever its length."""

    def step(x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            x = longcat_ops.add_rows(x, x)
        return x

    x = torch.ones(4, 1024)
    graph = capture(step, x)
    assert torch.equal(graph.replay(), x * 2.0**50)
    places = {t.data_ptr() for _, call in graph._kept for t in call}
    assert len(places) == 4  # the input, the output and two in between
