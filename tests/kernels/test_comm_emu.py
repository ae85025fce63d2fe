"""The collectives on several emulated GPUs, the emulator's detectors on: sums against float64 and against a fixed
order, the same bits on every rank, any sizes, rows and alignments, repeated and mixed calls."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from comm.cells import RAGGED
from device_check.collective_calls import DTYPES, in_order
from device_check.ranks import BEFORE_THE_WRAP
from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import comm_machine as comm
from support.comm_checks import mixed, norm_of, residual_norm
from support.comm_machine import FORMS, assert_sum, inputs
from support.emulated_kernels import FILLER, library, schedule  # noqa: F401

RANKS = [2, 3, 4, 8]
every_form = pytest.mark.parametrize("form", FORMS)
every_world = pytest.mark.parametrize("ranks", RANKS)


def configure(seed: int) -> None:
    emulated.configure(seed=seed, policy=list(emulated.POLICIES)[seed % 3])


def rows_of(ranks: int) -> list[list[int]]:
    """Even, one row too many, powers of two, one rank without rows, one rank with all of them, none at all."""
    return [[2] * ranks, [2] * (ranks - 1) + [3], [2**r + 1 for r in range(min(ranks, 4))] + [1] * (ranks - 4),
            list(RAGGED[:ranks]), [0] * (ranks - 1) + [7], [0] * ranks]  # fmt: skip


@every_form
@every_world
def test_all_reduce(ranks: int, form: str) -> None:
    """Sizes with and without a head, packs and a tail, fewer packs than ranks; staged and in place; aligned or not."""
    cases = itertools.product((1, 7, 8, 67, 515, 1027), (True, False), (0, 1))
    for seed, (count, staged, offset) in enumerate(cases):
        configure(seed)
        with comm.of_form(ranks, form) as m:
            for call in range(2):
                tensors = inputs(ranks, count, DTYPES[(seed + call) % 3], exact=call == 0, seed=seed)
                results = comm.all_reduce(m, tensors, staged=staged, offset=offset)
                assert m.statuses() == ["ok"] * ranks
                for out in results:
                    assert_sum(out, tensors, fixed_order=form != "multicast" or call == 0)
                    assert torch.equal(out, results[0])


@every_form
@every_world
def test_reduce_scatter(ranks: int, form: str) -> None:
    for seed, (rows, width) in enumerate(itertools.product(rows_of(ranks), (1, 8, 130))):
        configure(seed)
        dtype, staged, on_device = DTYPES[seed % 3], seed % 2 == 0, seed % 5 < 2
        tensors = inputs(ranks, sum(rows) * width, dtype, exact=seed % 4 == 0, seed=seed)
        with comm.of_form(ranks, form) as m:
            results = comm.reduce_scatter(m, tensors, rows, width, staged=staged, on_device=on_device, offset=seed % 2)
            assert m.statuses() == ["ok"] * ranks
        for rank, out in enumerate(results):
            begin, count = sum(rows[:rank]) * width, rows[rank] * width
            own = [tensor[begin : begin + count] for tensor in tensors]
            assert_sum(out[:count], own, fixed_order=form != "multicast" or seed % 4 == 0)
            assert bool((out[count:].view(torch.uint8) == FILLER).all())


@every_form
@every_world
def test_all_gather(ranks: int, form: str) -> None:
    """Values of every kind pass unchanged. Rows behind the counts stay as they were."""
    for seed, (rows, width) in enumerate(itertools.product(rows_of(ranks), (1, 16, 65))):
        configure(seed)
        dtype, on_device = (torch.bfloat16, torch.float32, torch.uint8)[seed % 3], seed % 5 < 2
        whole = torch.arange(sum(rows) * width).to(dtype)
        parts = list(whole.split([r * width for r in rows]))
        with comm.of_form(ranks, form) as m:
            results = comm.all_gather(m, parts, rows, width, staged=seed % 2 == 0, on_device=on_device, extra=3,
                                      offset=seed % 2)  # fmt: skip
            assert m.statuses() == ["ok"] * ranks
            for out in results:
                assert torch.equal(out[: len(whole)], whole)
                rest = out[len(whole) :].view(torch.uint8)
                assert bool((rest == (FILLER if seed % 2 == 0 else 0)).all())


@every_form
def test_broadcast_is_an_all_gather_of_one_rank(form: str) -> None:
    for source in range(3):
        rows = [5 if rank == source else 0 for rank in range(3)]
        parts = [torch.full((rows[rank] * 11,), rank + 1, dtype=torch.float16) for rank in range(3)]
        with comm.of_form(3, form) as m:
            for out in comm.all_gather(m, parts, rows, 11, staged=source % 2 == 0):
                assert torch.equal(out, parts[source])


@every_form
@every_world
def test_low_latency(ranks: int, form: str) -> None:
    """Lines sum in the order of ranks in every form."""
    for seed, count in enumerate((1, 5, 8, 127, 129, 256)):
        configure(seed)
        with comm.of_form(ranks, form) as m:
            for call in range(3):
                tensors = inputs(ranks, count, DTYPES[(seed + call) % 3], exact=False, seed=seed + call)
                for out in comm.low_latency(m, tensors, offset=seed % 2):
                    assert torch.equal(out, in_order(tensors))
            assert m.statuses() == ["ok"] * ranks


@every_form
def test_special_values(form: str) -> None:
    """NaN and infinities reach every rank; -0 + -0 is -0; inf - inf is NaN."""
    inf, nan = float("inf"), float("nan")
    a, b = torch.tensor([-0.0, -0.0, inf, inf, nan, 3e38, 1.0]), torch.tensor([-0.0, 0.0, 1.0, -inf, 1.0, 3e38, nan])
    expected = torch.tensor([-0.0, 0.0, inf, nan, nan, inf, nan])
    for dtype in DTYPES:
        tensors = [a.to(dtype).repeat(5), b.to(dtype).repeat(5)]
        with comm.of_form(2, form) as m:
            outs = comm.all_reduce(m, tensors, staged=True) + comm.low_latency(m, tensors)
        for out in outs:
            assert torch.equal(out.isnan(), expected.isnan().repeat(5))
            kept = ~out.isnan()
            assert torch.equal(out[kept].float(), expected.repeat(5)[kept])
            assert torch.equal(out[kept].signbit(), expected.repeat(5)[kept].signbit())


@every_form
@pytest.mark.parametrize("lines", [False, True], ids=["barriers", "lines"])
def test_residual_norm(form: str, lines: bool) -> None:
    """Fewer rows than ranks and more than blocks; widths of several teams, of one, and of rows that threads share."""
    shapes = [(1, 8), (2, 24), (1, 128), (3, 72)] if lines else [(1, 8), (2, 136), (7, 256), (13, 24), (5, 512)]
    for seed, (shape, codes, staged) in enumerate(itertools.product(shapes, (True, False), (True, False))):
        configure(seed)
        dtype = DTYPES[0] if lines and shape == (3, 72) else DTYPES[seed % 3]
        residual_norm(
            form,
            shape,
            dtype,
            seed,
            ranks=2 + seed % 3,
            threads=32 * (1 + seed % 3),
            lines=lines,
            codes=codes,
            staged=staged,
        )


@every_form
@pytest.mark.parametrize("epoch", [0, BEFORE_THE_WRAP], ids=["fresh", "wrap"])
def test_calls_in_a_row(form: str, epoch: int) -> None:
    """Collectives that nothing but their own barriers keeps apart, across the wrap-around of epochs."""
    for seed in range(6):
        configure(seed)
        with comm.of_form(4, form) as m:
            m.start_epochs(epoch + seed % 3)
            for repeat in range(4):
                mixed(m, 10 * seed + repeat, 257, [3, 0, 9, 1])


def test_512_threads() -> None:
    """A block of the default size, once for each kernel."""
    tensors = inputs(2, 20011, torch.bfloat16, exact=True)
    norm = [tensor[:4112].view(2, 2056) for tensor in tensors]
    right = norm_of(in_order(norm), norm[0], torch.ones(2056), 1e-5)
    with comm.of_form(2, "multicast", blocks=2, threads=512) as m:
        assert torch.equal(comm.all_reduce(m, tensors, staged=True)[1], in_order(tensors))
        results = comm.reduce_scatter(m, tensors, [2, 1], 6003, staged=True)
        assert torch.equal(results[0], in_order(tensors)[: 2 * 6003])
        parts = [tensors[0][:12006], tensors[0][12006:18009]]
        assert torch.equal(comm.all_gather(m, parts, [2, 1], 6003, staged=True)[1], tensors[0][:18009])
        got = comm.residual_norm(m, norm, norm[0], torch.ones(2056), 1e-5)
        assert all(bits(a) == bits(b) for a, b in zip(got[1], right, strict=True))
        few: list[Tensor] = [tensor[:500] for tensor in tensors]
        assert torch.equal(comm.low_latency(m, few)[0], in_order(few))
