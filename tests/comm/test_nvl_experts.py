"""The backend `nvl` over emulated GPUs: the bits of one rank that has all experts, from its own memory and from other;
what kernels record; what a build does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

import longcat_ops
from device_check.expert_ranks import RankLibrary, Watch
from longcat_ops.comm.experts import nvl
from longcat_ops.comm.experts.base import ExpertConfig
from longcat_ops.comm.providers.base import SymmetricMemory
from longcat_ops.comm.rungs.device_memory import Region
from longcat_ops.comm.sizes import expert_bytes, expert_parts
from longcat_ops.errors import LongcatCommError, LongcatTimeoutError
from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import ep_cases
from support.comm_machine import Machine
from support.emulated_kernels import library, schedule  # noqa: F401
from support.ep_cases import SHAPES, Shape


def config_of(shape: Shape, payload: str, **options: Any) -> ExpertConfig:
    given = dict(max_tokens=9, buffers=2) | options
    return ExpertConfig(1, "nvl", 1, 1, True, 10.0, "auto", shape.experts, shape.top_k, shape.hidden,
                        payload=payload, **given)  # fmt: skip


class Ways:
    """A way per rank over one machine."""

    def __init__(self, shape: Shape, ranks: int, payload: str) -> None:
        config = config_of(shape, payload)
        self.size = expert_bytes(ranks, backend="nvl", **config.sizes())
        self.machine, self.kept = Machine(ranks, self.size, False, 1, 32, True), []
        self.ways = []
        for rank in range(ranks):
            session = SimpleNamespace(rank=rank, ranks=ranks, config=config, watch=Watch(rank))
            region = Region(session, self.machine.symmetric(rank), RankLibrary(self.machine.library, rank))
            region.library.record = region.record
            self.ways.append(nvl.NvlExperts(region))

    def each(self, name: str, *arguments: list[Any], only: list[int] | None = None) -> None:
        """A call on each rank, queued. arguments[i][rank]."""
        for rank, way in enumerate(self.ways):
            if only is None or rank in only:
                given = [argument[rank] for argument in arguments]
                self.kept.append(given)
                getattr(way, name)(*given)

    def run(self) -> None:
        self.machine.synchronize()


@contextmanager
def ways_of(shape: Shape, ranks: int, payload: str) -> Iterator[Ways]:
    try:
        made = Ways(shape, ranks, payload)
        yield made
        for way in made.ways:
            way.close()
    finally:
        emulated.load().lc_emu_close()


def plans(parts: list[Any], shape: Shape) -> list[Any]:
    return [longcat_ops.moe_plan(routing.ids, shape.experts, routing.weights) for _, routing in parts]


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: str, payload: str) -> None:
    """Two layers in turn, every case; the second goes through memory that is not the buffer's own."""
    size, ranks = SHAPES[shape], 3
    with ways_of(size, ranks, payload) as made:
        assert all(way.caps.memory_bytes == made.size for way in made.ways)
        for buffer, case in enumerate((*ep_cases.CASES, "uneven")):
            b, foreign = [buffer % 2] * ranks, buffer % 2 == 1
            parts = ep_cases.inputs(case, size, ranks, seed=buffer)
            x, routing = ep_cases.joined(parts)
            plan, all_q, all_s = ep_cases.dispatched(x, routing, size.experts, payload)
            own = plans(parts, size)
            made.each("dispatch_send", b, [p[0] for p in parts], [p[1].ids for p in parts], own)
            to = [copied(way.buffers[b[0]]) if foreign else way.buffers[b[0]] for way in made.ways]
            made.run()
            made.each("dispatch_recv", b, [t.q for t in to], [t.s for t in to], [t.offsets for t in to])
            made.run()
            if foreign:  # the copy ran before the emulated wait
                made.each("dispatch_recv", b, [t.q for t in to], [t.s for t in to], [t.offsets for t in to])
                made.run()
            y = torch.randn(len(all_q), size.hidden, generator=torch.Generator().manual_seed(buffer)).bfloat16()
            sent = []
            for rank, way in enumerate(made.ways):
                first, last = (int(plan.offsets[r * way.shape.local]) for r in (rank, rank + 1))
                count = last - first
                assert int(to[rank].offsets[-1]) == count
                assert bits(to[rank].q[:count]) == bits(all_q[first:last])
                if all_s is not None:
                    assert bits(to[rank].s[:count]) == bits(all_s[first:last])
                sent.append(torch.full((way.caps.rows, size.hidden), torch.nan, dtype=torch.bfloat16))
                sent[-1][:count] = y[first:last]
            made.each("combine_send", b, sent)
            made.run()
            made.each("combine_recv", b, [way.buffers[b[0]].returned for way in made.ways])
            made.run()
            right = longcat_ops.moe_combine(y, plan, routing, x)
            outs = [longcat_ops.moe_combine(way.buffers[b[0]].returned, own[r], parts[r][1], parts[r][0])
                    for r, way in enumerate(made.ways)]  # fmt: skip
            assert bits(torch.cat(outs)) == bits(right)
            for way in made.ways:
                way.poll()
        assert sum(int(way.counters[0]) for way in made.ways) > 0


def copied(buffer: Any) -> Any:
    return type(buffer)(*(None if t is None else torch.empty_like(t) for t in buffer))


def test_who_is_missing_is_raised() -> None:
    """With the stage, by the rank that waits, and the other that it told."""
    shape = Shape()
    parts = ep_cases.inputs("uneven", shape, 3)
    given = [[0] * 3, [p[0] for p in parts], [p[1].ids for p in parts], plans(parts, shape)]
    with ways_of(shape, 3, "bf16") as made:
        made.each("dispatch_send", *given, only=[0, 1])
        made.run()
        with pytest.raises(LongcatTimeoutError, match="stage `counts`") as raised:
            made.ways[0].poll()
            made.ways[1].poll()
        assert raised.value.missing == (2,)
        assert "has not sent its counts of call 1; no call is here yet" in str(raised.value)
    with ways_of(shape, 3, "bf16") as made:
        made.each("dispatch_send", *given)
        made.run()
        buffers = [way.buffers[0] for way in made.ways]
        made.each("dispatch_recv", [0] * 3, [b.q for b in buffers], [b.s for b in buffers],
                  [b.offsets for b in buffers])  # fmt: skip
        made.each("combine_send", [0] * 3, [torch.zeros_like(b.q) for b in buffers], only=[0, 2])
        made.each("combine_recv", [0] * 3, [b.returned for b in buffers], only=[0, 2])
        made.run()
        with pytest.raises(LongcatTimeoutError, match="stage `combine`") as raised:
            made.ways[0].poll()
            made.ways[2].poll()
        assert raised.value.missing == (1,)
        assert raised.value.seen == {1: "has not sent its combine of call 1; no call is here yet"}


def test_a_refusal_and_an_abort_end_the_waits_of_others() -> None:
    shape = Shape()
    parts = ep_cases.inputs("uneven", shape, 2)
    given = [[0] * 2, [p[0] for p in parts], [p[1].ids for p in parts], plans(parts, shape)]
    with ways_of(shape, 2, "fp8") as made:
        made.each("dispatch_send", *given, only=[0])
        made.ways[1].refused(False)
        made.ways[1].refused(True)
        made.run()
        with pytest.raises(LongcatCommError, match=r"a peer aborted, ranks \[1\]"):
            made.ways[0].poll()


@pytest.mark.parametrize("ranks", [1, 9])
def test_the_number_of_ranks_may_be_an_objection(ranks: int) -> None:
    session = SimpleNamespace(config=config_of(Shape(), "fp8"), ranks=ranks)
    with pytest.raises(LongcatCommError, match=f"ranks is {ranks}, and the kernels take 2 to 8"):
        nvl.build(session)


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_what_a_build_does_once(monkeypatch: pytest.MonkeyPatch, payload: str) -> None:
    """Parts are compared, every kernel is loaded, lines and flags are zero, memory is given back if any of it fails."""
    config, store = config_of(Shape(), payload), dist.HashStore()
    size = expert_bytes(2, backend="nvl", **config.sizes())
    tensor = torch.full((size,), 7, dtype=torch.uint8)
    compared, made, loaded = [], [], Counter()

    def memory(*given: object) -> SymmetricMemory:
        assert given[-1] == size
        holder = SimpleNamespace(release=lambda: [], synchronize=lambda: None)
        found = SymmetricMemory(rank=0, pointers=(tensor.data_ptr(),) * 2, multicast=0, tensor=tensor, provider="host",
                                holder=holder)  # fmt: skip
        monkeypatch.setattr(found, "compare_parts", lambda exchange: compared.append(list(found.allocations.parts)))
        made.append(found)
        return found

    class Library:
        def __getattr__(self, name: str) -> Callable[..., int]:
            def function(args: Any, stream: object) -> int:
                comm = args._obj.comm if name == "lc_comm_abort" else args._obj.experts.comm
                assert comm.load_only == 1
                loaded[name] += 1
                return 0

            return function

    monkeypatch.setattr(nvl, "open_memory", memory)
    monkeypatch.setattr(nvl, "load", Library)
    watch = SimpleNamespace(channels=[None], failure=None)
    session = SimpleNamespace(rank=0, ranks=2, config=config, store=store, watch=watch)
    way = nvl.build(session)
    assert compared == [list(expert_parts(2, backend="nvl", **config.sizes()))]
    calls = ("lc_ep_counts", "lc_ep_dispatch", "lc_ep_wait", "lc_ep_combine", "lc_comm_abort")
    assert loaded == dict.fromkeys(calls, 1)
    assert way.caps.memory_bytes == size and way.no_graph == "" and way.caps.graphs
    for name, length in way.shape.parts().items():
        assert not bool(tensor[way.offsets[name] :][:length].any())
    way.close()
    monkeypatch.setattr(nvl, "load", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nvl.build(session)
    assert all(memory.closed for memory in made) and len(made) == 2


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_the_launchers_accept_the_calls_that_only_load(payload: str) -> None:
    with ways_of(Shape(), 2, payload) as made:
        before = [memory.clone() for memory in made.machine.memory]
        for way in made.ways:
            way.load_kernels()
        made.run()
        assert all(torch.equal(a, b) for a, b in zip(before, made.machine.memory, strict=True))


class NoReads(TorchFunctionMode):
    """Refuses what reads a value on the host; addresses of tensors are none."""

    READS = ("__array__", "__bool__", "__float__", "__index__", "__int__", "item", "nonzero", "numpy", "tolist")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        assert name not in self.READS, f"the host reads by {name}"
        return function(*args, **(kwargs or {}))


def test_no_call_reads_on_the_host() -> None:
    with ways_of(Shape(), 2, "fp8") as made:
        parts = ep_cases.inputs("uneven", Shape(), 2)
        own, buffers = plans(parts, Shape()), [way.buffers[0] for way in made.ways]
        y = [torch.zeros(way.caps.rows, Shape().hidden, dtype=torch.bfloat16) for way in made.ways]
        with pytest.raises(AssertionError, match="reads by tolist"), NoReads():
            own[0].offsets.tolist()
        with NoReads():
            made.each("dispatch_send", [0, 0], [p[0] for p in parts], [p[1].ids for p in parts], own)
            made.each("dispatch_recv", [0, 0], *([getattr(b, n) for b in buffers] for n in ("q", "s", "offsets")))
            made.each("combine_send", [0, 0], y)
            made.each("combine_recv", [0, 0], [b.returned for b in buffers])
            for way in made.ways:
                way.poll()
        made.run()


def test_tensors_of_other_memory_are_copied() -> None:
    a, b = torch.zeros(3), torch.ones(3)
    nvl._copied((a, b), (None, None), (b, b))
    assert torch.equal(a, b)
