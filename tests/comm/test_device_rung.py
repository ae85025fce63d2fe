"""The device rungs over emulated GPUs: every operation, from memory of the communicator and from other memory, gives
what a fixed order of sums gives, and reports what the kernels report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from device_check.collective_calls import in_order
from device_check.expert_ranks import RankLibrary, Watch
from longcat_ops.comm import kernels
from longcat_ops.comm.rungs import device, device_memory
from longcat_ops.comm.rungs.base import Config
from longcat_ops.comm.sizes import communicator_bytes
from longcat_ops.errors import LongcatCommError, LongcatShapeError, LongcatTimeoutError
from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.comm_checks import norm_of
from support.comm_machine import Machine, inputs
from support.emulated_kernels import library, schedule  # noqa: F401

RUNGS = ["multimem", "p2p"]
ROWS = [3, 0, 9, 1]
MAX_BYTES = 256 << 10


class Ranks:
    """A rung per rank over one machine. `run` makes a call on each, then runs all of them together."""

    def __init__(self, name: str, ranks: int, deterministic: bool) -> None:
        config = Config(MAX_BYTES, name, 2, 2, deterministic, 10.0, "auto")
        size = communicator_bytes(ranks, MAX_BYTES, 2)
        self.machine = Machine(ranks, size, name == "multimem", 2, 64, deterministic)
        self.kept: list[Any] = []  # the emulator remembers whose memory it was
        self.rungs = []
        for rank in range(ranks):
            session = SimpleNamespace(rank=rank, ranks=ranks, config=config, watch=Watch(rank))
            shared = device.Shared(name, session, self.machine.symmetric(rank), RankLibrary(self.machine.library, rank))
            shared.library.record, shared.comm.threads = shared.record, 64
            self.rungs.append(device.DeviceRung(shared, 0))

    def run(self, op: str, *arguments: list[Any], only: list[int] | None = None) -> None:
        """arguments[i][rank]."""
        for rank, rung in enumerate(self.rungs):
            if only is None or rank in only:
                given = [argument[rank] for argument in arguments]
                self.kept.append(given)
                getattr(rung, op)(*given)
        self.machine.synchronize()

    def empty(self, shapes: list[tuple[int, ...]] | tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return [rung.empty(shapes[r] if isinstance(shapes, list) else shapes, dtype)
                for r, rung in enumerate(self.rungs)]  # fmt: skip

    def poll(self) -> None:
        for rung in self.rungs:
            rung.poll()


@contextmanager
def ranks_of(name: str, ranks: int = 4, deterministic: bool = False) -> Iterator[Ranks]:
    try:
        made = Ranks(name, ranks, deterministic)
        yield made
        for rung in made.rungs:
            rung.close()
    finally:
        emulated.load().lc_emu_close()


def placed(made: Ranks, tensors: list[Tensor], symmetric: bool) -> list[Tensor]:
    """The tensors in memory of the communicator, or as they are; each in memory of its own."""
    if not symmetric:
        return [tensor.clone() for tensor in tensors]
    return [to.copy_(tensor) for to, tensor in zip(made.empty(tuple(tensors[0].shape), tensors[0].dtype), tensors,
                                                   strict=True)]  # fmt: skip


every_rung = pytest.mark.parametrize("name", RUNGS)
placements = pytest.mark.parametrize("symmetric", [False, True], ids=["foreign", "symmetric"])


@every_rung
@placements
@pytest.mark.parametrize("count", [0, 1, 700, 9001], ids=["none", "one", "lines", "barriers"])
def test_all_reduce(name: str, symmetric: bool, count: int) -> None:
    """In place, and from any memory into any."""
    with ranks_of(name) as made:
        tensors = inputs(4, count, torch.float32, exact=True)
        x = placed(made, tensors, symmetric)
        made.run("all_reduce", x, x)
        if count:
            assert all(torch.equal(out, in_order(tensors)) for out in x)
        x, out = placed(made, tensors, not symmetric), placed(made, tensors, symmetric)
        made.run("all_reduce", x, out)
        for kept, own, result in zip(tensors, x, out, strict=True):
            assert torch.equal(kept, own) and (not count or torch.equal(result, in_order(tensors)))
        made.poll()


@every_rung
@placements
@pytest.mark.parametrize("on_device", [False, True], ids=["list", "tensor"])
def test_rows(name: str, symmetric: bool, on_device: bool) -> None:
    """reduce_scatter and all_gather are each other's opposite; rows behind the counts stay."""
    with ranks_of(name) as made:
        rows = [torch.tensor(ROWS, dtype=torch.int32)] * 4 if on_device else [ROWS] * 4
        rows = [r.clone() if isinstance(r, Tensor) else r for r in rows]
        spare = 2 if on_device else 0
        tensors = [t.view(-1, 10) for t in inputs(4, (sum(ROWS) + spare) * 10, torch.bfloat16, exact=True)]
        x = placed(made, tensors, symmetric)
        own = [torch.full((ROWS[r] + spare, 10), 7.0, dtype=torch.bfloat16) for r in range(4)]
        made.run("reduce_scatter", x, own, rows)
        right = in_order([t.flatten() for t in tensors]).view(-1, 10)[: sum(ROWS)]
        for out, expected in zip(own, right.split(ROWS), strict=True):
            assert torch.equal(out[: len(expected)], expected) and bool((out[len(expected) :] == 7).all())
        whole = placed(made, [torch.full((sum(ROWS) + spare, 10), 5.0, dtype=torch.bfloat16)] * 4, symmetric)
        made.run("all_gather", own, whole, rows)
        for out in whole:
            assert torch.equal(out[: sum(ROWS)], right) and bool((out[sum(ROWS) :] == 5).all())
        made.poll()


@every_rung
@placements
def test_all_gather_of_rows_that_are_in_place(name: str, symmetric: bool) -> None:
    with ranks_of(name) as made:
        whole = placed(made, [torch.full((sum(ROWS), 6), rank + 1.0) for rank in range(4)], symmetric)
        starts = [sum(ROWS[:rank]) for rank in range(4)]
        own = [out[starts[rank] : starts[rank] + ROWS[rank]] for rank, out in enumerate(whole)]
        made.run("all_gather", own, whole, [ROWS] * 4)
        right = torch.cat([torch.full((ROWS[rank], 6), rank + 1.0) for rank in range(4)])
        assert all(torch.equal(out, right) for out in whole)


@every_rung
@placements
def test_broadcast(name: str, symmetric: bool) -> None:
    for source in (0, 2):
        with ranks_of(name, 3) as made:
            x = placed(made, [torch.arange(77).add(rank).to(torch.uint8) for rank in range(3)], symmetric)
            made.run("broadcast_", x, [source] * 3)
            assert all(torch.equal(out, torch.arange(77).add(source).to(torch.uint8)) for out in x)


@every_rung
@pytest.mark.parametrize("shape", [(3, 72), (40, 264)], ids=["lines", "barriers"])
def test_residual_norm(name: str, shape: tuple[int, int]) -> None:
    """Into a tensor, and into codes and scales."""
    x = [t.view(shape) for t in inputs(3, shape[0] * shape[1], torch.bfloat16, exact=True)]
    residual, weight = torch.randn(shape).bfloat16(), torch.rand(shape[1])
    right = norm_of(in_order(x), residual, weight, 1e-5)
    with ranks_of(name, 3) as made:

        def apart(*size: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
            return [torch.zeros(size, dtype=dtype) for _ in range(3)]

        given = [own.clone() for own in x]
        same = [[residual.clone() for _ in range(3)], [weight.clone() for _ in range(3)], [1e-5] * 3]
        y, h, again = apart(*shape), apart(*shape), apart(*shape)
        made.run("all_reduce_residual_rmsnorm", given, *same, y, h)
        scales = apart(shape[0], -(-shape[1] // 128), dtype=torch.float32)
        codes = list(zip(apart(*shape, dtype=torch.float8_e4m3fn), scales, strict=True))
        made.run("all_reduce_residual_rmsnorm", given, *same, codes, again)
        for rank in range(3):
            assert bits([*codes[rank], y[rank], h[rank]]) == bits(right)
            assert bits(again[rank]) == bits(h[rank])
        made.poll()


def test_tensors_off_16_bytes_go_through_others() -> None:
    flat = torch.arange(40, dtype=torch.float32)
    on, off = flat[:16], flat[1:17]
    assert device_memory.aligned(on) is on and device_memory.aligned(on, read=False) is on
    copy = device_memory.aligned(off)
    assert copy.data_ptr() % 16 == 0 and torch.equal(copy, off)
    assert device_memory.aligned(off, read=False).shape == off.shape


@every_rung
def test_channels_run_at_the_same_time(name: str) -> None:
    with ranks_of(name) as made:
        tensors = inputs(4, 9001, torch.float32, exact=True)
        x, other = placed(made, tensors, False), placed(made, tensors, False)
        made.kept.append((x, other))
        for rank, rung in enumerate(made.rungs):
            rung.all_reduce(x[rank], x[rank])
            rung.channel(1).all_reduce(other[rank], other[rank])
        made.machine.synchronize()
        assert all(torch.equal(out, in_order(tensors)) for out in (*x, *other))


@every_rung
def test_who_is_missing_is_named(name: str) -> None:
    with ranks_of(name) as made:
        x = placed(made, inputs(4, 9001, torch.float32, exact=True), False)
        made.run("all_reduce", x, x, only=[0, 1, 3])
        errors = []
        for rank in (0, 1, 3):
            with pytest.raises((LongcatTimeoutError, LongcatCommError)) as found:
                made.rungs[rank].poll()
            errors.append(found.value)
        late = [error for error in errors if isinstance(error, LongcatTimeoutError)]
        assert late and all(error.missing == (2,) and error.expected == 5 for error in late)
        assert late[0].seen == {2: "has come to barrier 0, not to 1"}
        assert "channel 0, block" in late[0].slot and "stage `entry`" in late[0].slot
        assert all("a peer aborted, ranks [" in str(error) for error in errors if error not in late)


@every_rung
def test_a_refusal_ends_the_waits_of_the_others(name: str) -> None:
    with ranks_of(name, 3) as made:
        for rung in made.rungs:
            rung.shared.comm.timeout_ns = 0
        x = placed(made, inputs(3, 9001, torch.float32, exact=True), False)
        made.rungs[0].refused(rank_local=False)
        made.rungs[0].refused(rank_local=True)
        made.run("all_reduce", x, x, only=[1, 2])
        for rank in (1, 2):
            with pytest.raises(LongcatCommError, match=r"a peer aborted, ranks \[0\]"):
                made.rungs[rank].poll()


def test_memory_of_the_communicator_is_handed_out_once() -> None:
    with ranks_of("p2p", 2) as made:
        rung = made.rungs[0]
        first, second = rung.empty((3, 5), torch.bfloat16), rung.empty((7,), torch.float32)
        assert first.shape == (3, 5) and second.data_ptr() - first.data_ptr() == 256
        assert rung.shared.place(second) == rung.shared.offsets["empty"] + 256
        assert rung.shared.place(torch.zeros(3)) is None
        with pytest.raises(LongcatShapeError, match=f"{MAX_BYTES} bytes, and 512 are in use"):
            rung.empty((MAX_BYTES,), torch.uint8)


def test_caps_say_what_the_rungs_can_do() -> None:
    for name, deterministic, fixed in (("multimem", False, False), ("multimem", True, True), ("p2p", False, True)):
        with ranks_of(name, 2, deterministic) as made:
            caps = made.rungs[0].caps
            assert caps.memory_bytes == made.machine.memory[0].numel() == communicator_bytes(2, MAX_BYTES, 2)
            assert (caps.backend, caps.fixed_order, caps.symmetric, caps.graphs) == (name, fixed, True, True)


def test_barrier() -> None:
    with ranks_of("multimem") as made:
        made.run("barrier")
        made.poll()
        made.run("barrier", only=[0, 1])
        with pytest.raises((LongcatTimeoutError, LongcatCommError)):
            made.poll()
        assert {kernels.STAGES[rung.shared.record.stage] for rung in made.rungs[:2]} == {"entry"}
