"""How a collective runs: a pure function of what all ranks know, through `_C` and `explain`."""

from __future__ import annotations

import itertools

import pytest
import torch

import longcat_ops
from comm.cells import RAGGED
from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from longcat_ops.perf import DEVICES, comm
from longcat_ops.perf.comm_explain import EXPLAINED

REDUCING = ("all_reduce", "all_reduce_residual_rmsnorm")
KIB, MIB = 2**10, 2**20


def test_forms() -> None:
    for collective in comm.COLLECTIVES:
        for nbytes in (0, 1, 16 * KIB, 16 * KIB + 1, 96 * MIB):
            small = collective in REDUCING and 0 < nbytes <= 16 * KIB
            form = "low latency" if small else "two-shot" if collective in REDUCING else "direct"
            assert comm.choose(collective, 8, nbytes).form == form
    # A limit of 0 turns it off; another one moves it.
    assert comm.choose("all_reduce", 8, 1, ll_bytes=0).form == "two-shot"
    assert [comm.choose("all_reduce", 8, n, ll_bytes=100).form for n in (100, 101)] == ["low latency", "two-shot"]
    assert comm.choose("all_reduce", 1, 8).form == "two-shot"


def test_policies() -> None:
    for collective, ranks in itertools.product(comm.COLLECTIVES, range(1, 9)):
        for nbytes, multicast, deterministic in itertools.product((0, 64, MIB), (True, False), (True, False)):
            found = comm.choose(collective, ranks, nbytes, multicast=multicast, deterministic=deterministic)
            assert (found.policy == "multimem") == (multicast and ranks > 2 and not deterministic)


def test_blocks_depend_on_ranks_alone() -> None:
    expected = {1: 16, 2: 16, 3: 11, 4: 8, 5: 7, 6: 6, 7: 5, 8: 4}
    for collective, (ranks, blocks) in itertools.product(comm.COLLECTIVES, expected.items()):
        for nbytes, part, staged in (
            (0, None, False),
            (14, 14, True),
            (96 * MIB, 0, False),
            (96 * MIB, 96 * MIB, True),
        ):
            found = comm.choose(collective, ranks, nbytes, largest_part=part, staged=staged)
            assert (found.blocks, found.threads, found.packs) == (blocks, 512, 4)
    found = comm.choose("all_reduce", 8, MIB, blocks=2, threads=64)
    assert (found.blocks, found.threads) == (2, 64)


def test_shards_and_scratch() -> None:
    choose = comm.choose
    assert choose("all_reduce", 8, MIB).shard_packs == MIB // 16 // 8
    assert choose("all_reduce", 8, MIB + 2).shard_packs == MIB // 16 // 8 + 1
    assert choose("all_reduce", 8, 160).shard_packs == 10  # the low-latency form sends all to all
    assert choose("broadcast", 8, 162).shard_packs == 11
    assert choose("reduce_scatter", 8, 160).shard_packs == 2
    assert choose("reduce_scatter", 8, 160, largest_part=98).shard_packs == 7
    assert choose("all_gather", 8, 160, largest_part=0).shard_packs == 0
    assert choose("all_reduce", 8, MIB, largest_part=16).shard_packs == MIB // 16 // 8  # it has no rows of a rank
    assert choose("all_reduce_residual_rmsnorm", 8, MIB, largest_part=20000).shard_packs == 1250
    # Scratch: nothing, the tensor in whole packs, or slots of the largest message for 2 parities and each rank.
    assert [choose("all_reduce", 8, MIB + 2, staged=staged).scratch_bytes for staged in (False, True)] == [0, MIB + 16]
    assert choose("all_reduce", 8, 8).scratch_bytes == 2 * 8 * 2 * 16 * KIB
    assert choose("all_reduce", 3, 8, ll_bytes=12, staged=True).scratch_bytes == 2 * 3 * 32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"collective": "all_to_all"}, "argument `collective` is 'all_to_all', expected one of all_reduce, "),
        ({"ranks": 0}, "argument `ranks` is 0, expected 1 .. 8."),
        ({"ranks": 9}, "argument `ranks` is 9, expected 1 .. 8."),
        ({"nbytes": -1}, "argument `nbytes` is -1, expected at least 0."),
        ({"largest_part": 65}, "argument `largest_part` is 65, expected 0 .. nbytes, 64."),
        ({"largest_part": -1}, "argument `largest_part` is -1, expected 0 .. nbytes, 64."),
        ({"blocks": 0}, "argument `blocks` is 0, expected at least 1."),
        ({"threads": 48}, "argument `threads` is 48, expected a multiple of 32 in 32 .. 1024."),
        ({"threads": 2048}, "argument `threads` is 2048, expected a multiple of 32 in 32 .. 1024."),
        ({"ll_bytes": -1}, "argument `ll_bytes` is -1, expected at least 0."),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(change: dict, text: str) -> None:
    with pytest.raises(LongcatShapeError) as caught:
        comm.choose(**({"collective": "reduce_scatter", "ranks": 8, "nbytes": 64} | change))
    assert str(caught.value).startswith(f"perf.comm: {text}")


def test_the_limit_of_the_low_latency_form() -> None:
    """Up to it both ends of its band are the lower ones; beyond, one is not, or its slots take more than 1 MiB."""
    for name, ranks in itertools.product(EXPLAINED, range(2, 9)):
        device = DEVICES[name]
        limit = comm.ll_limit(ranks, device)
        assert limit & (limit - 1) == 0 and 16 * KIB <= limit <= 128 * KIB
        for nbytes, holds in ((limit, True), (2 * limit, False)):
            both = [comm.choose("all_reduce", ranks, nbytes, ll_bytes=most) for most in (nbytes, 0)]
            lines, two_shot = (comm.predict("all_reduce", c, comm.even(nbytes, ranks), device) for c in both)
            fits = both[0].scratch_bytes <= MIB
            assert (fits and lines.low < two_shot.low and lines.high < two_shot.high) == holds, (name, ranks, nbytes)
    limits = {name: [comm.ll_limit(n, DEVICES[name]) // KIB for n in (8, 4, 2)] for name in EXPLAINED}
    assert limits == {"H800": [16, 32, 128], "H100": [32, 64, 128], "H200": [32, 64, 128]}
    # The default where no device is known is the smallest of all.
    least = min(comm.ll_limit(n, DEVICES[name]) for name in EXPLAINED for n in range(2, 9))
    assert [comm.choose("all_reduce", 8, n).form for n in (least, least + 1)] == ["low latency", "two-shot"]
    assert comm.ll_limit(1, DEVICES["H100"]) == KIB


def test_explain_says_what_why_and_why_not() -> None:
    found = longcat_ops.explain(
        "all_reduce", (128, 6144), ranks=8, dtype=torch.bfloat16, device="NVIDIA H100 80GB HBM3"
    )
    assert sum(found.parts) == 128 * 6144 * 2 and found.config == comm.choose("all_reduce", 8, 128 * 6144 * 2)
    report = str(found)
    assert report.splitlines()[0] == "all_reduce of 1,572,864 bytes on 8 ranks"
    for text in (
        "  two-shot by multimem: 4 blocks x 512 threads x 4 packs of 16 bytes, 131,072 bytes of loads in flight",
        "not low latency: 1,572,864 bytes are more than 32,768",
        "not peers: ",
        "sends 1,769,472 bytes and receives 1,769,472",
        "predicted, not measured: H800 15 .. 24 us (wire); at least 8.8, a ring's bytes 17",
    ):
        assert text in report, text
    assert [one.device for one in found.expected] == list(EXPLAINED)
    assert all(one.bound < one.band.low < one.band.high for one in found.expected)


def test_explain_of_each_choice() -> None:
    def report(*args: object, **kwargs: object) -> str:
        return str(longcat_ops.explain(*args, **kwargs))

    assert "not multimem: deterministic was asked for" in report("all_reduce", MIB, deterministic=True)
    assert "not multimem: the ranks have no multicast memory" in report("broadcast", MIB, multicast=False)
    assert "not multimem: with 2 ranks" in report("all_gather", MIB, ranks=2)
    assert "not two-shot: " in report("all_reduce", 4096) and "loads in flight on" not in report("all_reduce", 4096)
    assert "without bytes no rank would hear" in report("all_reduce", (0, 6144))
    assert "it was turned off" in report("all_reduce", 4096, ll_bytes=0)
    assert "2 blocks: as asked" in report("all_reduce", MIB, blocks=2)
    assert "symmetric memory for it: 1,048,576 bytes" in report("all_gather", MIB, staged=True)
    # The limit is the device's: 32 KiB on 8 H100, 16 KiB on 8 H800.
    forms = [longcat_ops.explain("all_reduce", 32 * KIB, device=name).config.form for name in ("H100", "H800")]
    assert forms == ["low latency", "two-shot"]


def test_explain_of_uneven_rows() -> None:
    found = longcat_ops.explain("reduce_scatter", (39, 6144), rows=RAGGED)
    assert found.parts == tuple(12288.0 * n for n in RAGGED) and found.config.shard_packs == 20 * 768
    even = longcat_ops.explain("reduce_scatter", (39, 6144))
    assert (even.config.blocks, even.config.form) == (found.config.blocks, found.config.form)
    assert found.traffic.sent == even.traffic.sent == 39 * 12288 and found.traffic.received == 20 * 12288
    assert "not low latency: not every rank hears from all" in str(found)
    # Bytes may be of any dtype where nothing is added.
    assert sum(longcat_ops.explain("all_gather", (39, 64), rows=RAGGED, dtype="uint8").parts) == 39 * 64


@pytest.mark.parametrize(
    ("op", "size", "options", "text"),
    [
        ("all_reduce", 8, {"dtype": "uint8"}, "`dtype` is 'uint8', expected one of bfloat16, float16, float32."),
        ("all_gather", 8, {"dtype": "complex64"}, "`dtype` is 'complex64', expected one of bfloat16, "),
        ("all_reduce", 8, {"ranks": 9}, "`ranks` is 9, expected 1 .. 8."),
        ("all_reduce", -8, {}, "`size` is -8, expected bytes, at least 0"),
        ("all_reduce", (2, -8, -8), {}, "`size` is (2, -8, -8), expected bytes, at least 0"),
        ("all_reduce", (39, 8), {"rows": RAGGED}, "expected None, since all_reduce has no rows of a rank."),
        ("all_gather", 39, {"rows": RAGGED}, "`size` is 39, expected a shape, since rows are given."),
        ("all_gather", (40, 8), {"rows": RAGGED}, "expected 8 numbers from 0 up that add up to 40, the rows of"),
        ("all_gather", (39, 8), {"rows": RAGGED, "ranks": 4}, "expected 4 numbers from 0 up that add up to 39"),
        ("all_gather", (1, 8), {"rows": [2, -1], "ranks": 2}, "`rows` is [2, -1], expected 2 numbers from 0 up"),
    ],
)
def test_explain_refuses(op: str, size: object, options: dict, text: str) -> None:
    with pytest.raises(LongcatShapeError) as caught:
        longcat_ops.explain(op, size, **options)
    assert text in str(caught.value)


def test_explain_refuses_devices_without_a_switch() -> None:
    with pytest.raises(
        LongcatUnsupportedError, match=r"`device` is 'H100 PCIe', expected a device behind an NVLink sw"
    ):
        longcat_ops.explain("all_reduce", 8, device="NVIDIA H100 PCIe")
    with pytest.raises(LongcatUnsupportedError, match="`device_name` is 'A100'"):
        longcat_ops.explain("all_reduce", 8, device="A100")
