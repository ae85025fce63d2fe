"""Collectives: bytes by hand, bands by hand, Little's law, published times beside bound and band."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from longcat_ops import LongcatUnsupportedError
from longcat_ops.perf import DEVICES, Band, comm
from longcat_ops.perf.comm_published import Published, published

H100, H800, H200 = DEVICES["H100"], DEVICES["H800"], DEVICES["H200"]
MIB, LARGEST = 2**20, 96 * 2**20
PUBLISHED = published()


def us(collective: str, ranks: int, nbytes: int, device: object = H100, **options: object) -> Band:
    return comm.predict(collective, comm.choose(collective, ranks, nbytes, **options), comm.even(nbytes, ranks), device)


@pytest.mark.parametrize(
    ("collective", "form", "multimem", "peers", "ring"),
    [  # sent and received at 4 ranks, in S
        ("all_reduce", "two-shot", (1.25, 1.25), (1.5, 1.5), 1.5),
        ("all_reduce", "low latency", (2, 8), (6, 6), 1.5),
        ("reduce_scatter", "direct", (1, 0.25), (0.75, 0.75), 0.75),
        ("all_gather", "direct", (0.25, 1), (0.75, 0.75), 0.75),
        ("broadcast", "direct", (1, 1), (3, 1), 1),
        ("all_reduce_residual_rmsnorm", "two-shot", (1.5, 2.25), (2.25, 2.25), 1.5),
    ],
)
def test_bytes_by_hand(collective: str, form: str, multimem: tuple, peers: tuple, ring: float) -> None:
    parts = comm.even(1000, 4)
    for policy, expected in (("multimem", multimem), ("peers", peers)):
        found = comm.traffic(collective, form, policy, parts)
        assert (found.sent / 1000, found.received / 1000) == expected and found.wire == 1000 * max(expected)
    assert comm.ring(collective, parts) == 1000 * ring


def test_all_bytes_that_are_sent_are_received() -> None:
    """By peers, what all GPUs send is what all receive; of uneven parts, `traffic` has the busiest of each side."""
    for ranks in range(1, 9):
        parts = comm.even(840, ranks)
        for collective, form in (("all_reduce", "two-shot"), ("reduce_scatter", "direct"), ("all_gather", "direct")):
            found = comm.traffic(collective, form, "peers", parts)
            assert found.sent == pytest.approx(found.received) and (ranks > 1 or found.wire == 0)
    parts = (100.0, 0.0, 20.0)
    assert comm.traffic("reduce_scatter", "direct", "multimem", parts) == comm.Traffic(120, 100, 100)
    assert comm.traffic("all_gather", "direct", "multimem", parts) == comm.Traffic(100, 120, 100)
    # The rank without rows sends all it has, that with 100 hears from two; a ring is padded to 3 x 100.
    assert comm.traffic("reduce_scatter", "direct", "peers", parts) == comm.Traffic(120, 200, 200)
    assert comm.traffic("all_gather", "direct", "peers", parts) == comm.Traffic(200, 120, 200)
    assert comm.ring("reduce_scatter", parts) == 200 and comm.ring("all_gather", parts) == 120


def test_only_a_fused_two_shot_beats_a_ring() -> None:
    for ranks in range(3, 9):
        parts = comm.even(1, ranks)
        fused = comm.traffic("all_reduce", "two-shot", "multimem", parts).wire
        apart = sum(comm.traffic(name, "direct", "multimem", parts).wire for name in ("reduce_scatter", "all_gather"))
        assert apart == pytest.approx(2) and apart > comm.ring("all_reduce", parts)
        assert fused < comm.ring("all_reduce", parts) or ranks == 3  # 4/3 S both
    assert comm.ring("all_reduce", comm.even(1, 8)) / comm.traffic(
        "all_reduce", "two-shot", "multimem", comm.even(1, 8)
    ).wire == pytest.approx(1.556, abs=1e-3)


def test_96_mib_by_hand() -> None:
    parts = comm.even(LARGEST, 8)
    assert [round(comm.bound("all_reduce", parts, d)) for d in (H100, H800)] == [252, 566]
    assert [round(1e6 * comm.ring("all_reduce", parts) / comm.rates(d)[0]) for d in (H100, H800)] == [476, 1074]
    found = us("all_reduce", 8, LARGEST)
    assert (found.low, found.high) == pytest.approx((4.6 + 1.125e6 * LARGEST / 370e9, 10.8 + 1.125e6 * LARGEST / 309e9))
    assert found.bound == "wire"
    found = us("reduce_scatter", 8, LARGEST, H800)
    assert (found.low, found.high) == pytest.approx((4.6 + 1e6 * LARGEST / 164e9, 6.1 + 1e6 * LARGEST / 138e9))
    assert us("all_gather", 8, LARGEST, H800) == found


def test_small_messages_by_hand() -> None:
    found = us("all_reduce", 8, 4096)
    assert (found.low, found.high) == pytest.approx((2.3 + 16e6 * 4096 / 370e9, 5.9 + 16e6 * 4096 / 309e9))
    assert found.bound == "fixed cost"
    # One block reads 120 or 80 GB/s of lines.
    found = us("all_reduce", 8, 4096, blocks=1)
    assert (found.low, found.high) == pytest.approx((2.3 + 16e6 * 4096 / 120e9, 5.9 + 16e6 * 4096 / 80e9))


def test_littles_law() -> None:
    """A shard of 12 MiB in trips of 128 KB at 1.5 or 2.5 us each; half of that in flight takes twice as long."""
    trips = LARGEST / 8 / (4 * 512 * 4 * 16)
    config = comm.choose("reduce_scatter", 8, LARGEST)
    parts = comm.even(LARGEST, 8)
    for c, latency in ((comm.KIND, 1.5), (comm.UNKIND, 2.5)):
        found = comm.limits("reduce_scatter", config, parts, 370e9, c, 1e15)
        assert found["loads in flight"] == pytest.approx(trips * latency) and found["loads in flight"] < found["wire"]
    one = us("reduce_scatter", 8, LARGEST, blocks=1)
    assert one.bound == "loads in flight" and one.low == pytest.approx(4.6 + 4 * trips * 1.5)
    # In flight for the wire of an H100 at 2 us: 82 KB, as the page says. NCCL has 2 x 512 x 8 packs, as many as ours.
    assert abs(370e9 / 9 * 2e-6 - 82e3) < 1e3 and 4 * 512 * 4 * 16 == 2 * 512 * 8 * 16 == 131072
    # Stores wait for nobody, and lines are in flight all at once.
    for name, size in (("all_gather", LARGEST), ("broadcast", LARGEST), ("all_reduce", 64)):
        assert "loads in flight" not in comm.limits(name, comm.choose(name, 8, size), parts, 1.0, comm.KIND, 1.0)
    # A loop over 7 peers has 8 or 4 loads in flight: 7/2 or 7 times as long for each pack as through the switch.
    twin = comm.choose("all_reduce", 8, LARGEST, deterministic=True)
    found = comm.limits("all_reduce", twin, parts, 370e9, comm.KIND, 1e15)
    assert found["loads in flight"] == pytest.approx(trips * 1.5 * 7 / 2)


@pytest.mark.parametrize("collective", comm.COLLECTIVES)
def test_more_bytes_take_longer_and_more_blocks_do_not(collective: str) -> None:
    for ranks, device, deterministic in itertools.product((2, 3, 4, 8), (H100, H800, H200), (False, True)):
        options = {"deterministic": deterministic, "ll_bytes": 0}
        bands = [us(collective, ranks, n * MIB, device, **options) for n in (1, 2, 64, 96)]
        for before, after in itertools.pairwise(bands):
            assert before.low < after.low and before.high < after.high
        bands = [us(collective, ranks, LARGEST, device, blocks=n, **options) for n in (1, 2, 4, 16)]
        for before, after in itertools.pairwise(bands):
            assert before.low >= after.low and before.high >= after.high
        assert all(band.low < band.high for band in bands)


def test_nothing_is_below_the_bound() -> None:
    for collective, ranks, size in itertools.product(comm.COLLECTIVES, range(2, 9), (0, 1, 4096, MIB, LARGEST)):
        for device, deterministic in itertools.product((H100, H800, H200), (False, True)):
            found = us(collective, ranks, size, device, deterministic=deterministic)
            assert comm.bound(collective, comm.even(size, ranks), device) < found.low


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda p: f"{p.collective}-{p.ranks}-{p.nbytes}-{p.device}-{p.source}")
def test_published_times(one: Published) -> None:
    """None is below the bound. Those outside our band say what is known of them, and nothing else does."""
    assert one.source and one.us and all(us > one.bound for us in one.us.values())
    assert not one.outside or one.why
    assert {what for what in one.outside} == OUTSIDE.get((one.collective, one.ranks, one.nbytes), set())


# A time that leaves its band, or returns to it, is a finding.
OUTSIDE = {("all_reduce", 8, n * MIB): {"torch multimem"} for n in (4, 8, 16, 32, 64, 128)}
OUTSIDE |= {("all_reduce", 6, n * MIB // 2): {"torch multimem"} for n in (1, 2, 8)}
OUTSIDE |= {("all_reduce", 4, n * MIB // 2): {"NCCL symmetric"} for n in (1, 2, 4, 8)}
OUTSIDE |= {("all_gather", 8, 128 * MIB): {"NCCL symmetric"}}


def test_what_is_published_at_96_mib() -> None:
    """The kernel must be named: 367 us is NCCL's NVLS kernel, about 440 what NCCL does with unregistered buffers."""
    found = {(p.device, *p.us): round(*p.us.values()) for p in PUBLISHED if p.nbytes == LARGEST}
    assert found == {
        ("H100", "NCCL NVLS"): 367,
        ("H200", "NCCL NVLS"): 371,
        ("H800", "NCCL NVLS"): 819,
        ("H100", "NCCL, between its 64 and 128 MiB"): 440,
    }
    between = {p.nbytes // MIB: p.us["NCCL"] for p in PUBLISHED if p.source.startswith("vLLM 42324") and "NCCL" in p.us}
    assert (between[64] + between[128]) / 2 == pytest.approx(440, rel=0.01)


def test_one_set_is_kinder_in_everything() -> None:
    k, u = comm.KIND, comm.UNKIND
    assert k.peer_loads > u.peer_loads
    for name in ("low_latency_us", "direct_us", "latency_us", "two_shot_us"):
        assert getattr(k, name) < getattr(u, name)
    assert k.low_latency_us < k.direct_us <= k.two_shot_us and u.low_latency_us < u.direct_us < u.two_shot_us


def test_devices_without_a_switch_are_refused() -> None:
    for name in ("H100 PCIe", "H100 NVL", "H200 NVL"):
        with pytest.raises(LongcatUnsupportedError, match=f"argument `device` is '{name}'"):
            comm.rates(DEVICES[name])


def test_the_lines_of_the_page_run(capsys: pytest.CaptureFixture) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "nvls.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert "all_reduce of 1,572,864 bytes on 8 ranks" in capsys.readouterr().out
