"""Counts become bands: equal to hand calculations, monotonic in the work, and ordered."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from longcat_ops.perf import DEVICES, KIND, UNKIND, Band, Counts, by_name, floor, predict
from longcat_ops.perf.model import Constants, digits, limits

H100, H200, H20 = (by_name(name) for name in ("H100", "H200", "H20"))
PARTS = {  # the count that dominates -> the bound that it sets
    "bytes": "memory",
    "flops": "tensor cores",
    "l2_bytes": "L2",
    "sm_bytes": "loads of an SM",
    "sm_flops": "tensor cores",
    "sm_smem_bytes": "shared memory",
    "issued": "instructions",
}


def test_by_hand() -> None:
    """3.35 GB of memory take 1000 us at the peak, longer at either share, plus the launch."""
    found = predict(Counts("read", bytes=3.35e9), H100)
    assert found.low == pytest.approx(1000 / 0.94 + 1.5) and found.high == pytest.approx(1000 / 0.75 + 4)
    assert found.bound == "memory" and found.middle == pytest.approx((found.low + found.high) / 2)
    found = predict(Counts("fetch", l2_bytes=8e9), H100)
    assert (found.low, found.high) == pytest.approx((1000 + 1.5, 8e9 / 5.5e12 * 1e6 + 4))
    found = predict(Counts("multicast", l2_bytes=8e9, l2_shared=4e9), H100)
    assert (found.low, found.high) == pytest.approx((1000 + 1.5, 12e9 / 5.5e12 * 1e6 + 4))
    found = predict(Counts("load", sm_bytes=1.2e6), H200)
    assert (found.low, found.high) == pytest.approx((10 + 1.5, 15 + 4))
    # A 132nd of the flops on one SM takes as long as all flops on all SMs.
    all_sms, one_sm = Counts("mma", flops=1.979e12), Counts("mma", sm_flops=1.979e12 / 132)
    assert predict(all_sms, H100) == predict(one_sm, H100)
    assert predict(all_sms, H100).low == pytest.approx(1000 / 0.81 + 1.5)
    # At 1830 MHz, one warp issues an instruction per clock, or one per 2.5 slower clocks.
    found = predict(Counts("chain", serial=1830), H100)
    assert (found.low, found.high) == pytest.approx((1 + 1.5, 2.5 / 0.75 + 4), rel=1e-3)
    # Four instructions per clock and SM.
    assert limits(Counts("x", issued=4 * 132 * 1830), H100, KIND)["instructions"] == pytest.approx(1, rel=1e-3)
    assert limits(Counts("x", sm_smem_bytes=128 * 1830), H100, KIND)["shared memory"] == pytest.approx(1, rel=1e-3)


def test_an_h20_has_slow_tensor_cores() -> None:
    product = Counts("mma", bytes=1e6, sm_flops=1e8)
    assert predict(product, H20).high > 3 * predict(product, H100).high


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("part", [*PARTS, "serial"])
def test_more_work_takes_longer(part: str, device: object) -> None:
    small, large = (Counts("x", **{part: work}) for work in (1e9, 2e9))
    bands = predict(small, device), predict(large, device)
    assert bands[0].low < bands[1].low and bands[0].high < bands[1].high
    assert all(band.low < band.high for band in bands)
    assert part == "serial" or bands[0].bound == PARTS[part]


def test_more_launches_take_longer() -> None:
    one = Counts("x", bytes=1e6)
    bands = [predict([one] * n, H100) for n in range(1, 5)]
    for before, after in itertools.pairwise(bands):
        assert after.low > before.low and after.high > before.high
    # The first stands alone, the others overlap with it.
    nothing = Counts("nothing")
    assert predict([nothing] * 3, H100) == Band(pytest.approx(1.5 + 2 * 0.7), 4 + 2 * 2.5)
    assert predict([nothing] * 3, H100, overlaps=True) == Band(pytest.approx(3 * 0.7), 3 * 2.5)
    assert predict(nothing, H100, overlaps=True).low < predict(nothing, H100).low
    assert predict(replace(nothing, pieces=2), H100).low > predict(nothing, H100).low


def test_one_set_is_kinder_in_everything() -> None:
    """KIND has the higher share, the higher rate and the lower cost in every field."""
    for field in fields(Constants):
        kind, unkind = getattr(KIND, field.name), getattr(UNKIND, field.name)
        costs = field.name.endswith(("_us", "_clocks"))
        assert kind < unkind if costs else kind > unkind, field.name
    shares = [getattr(c, name) for c in (KIND, UNKIND) for name in ("memory_share", "fp8_share", "clock_share")]
    assert all(0 < share <= 1 for share in shares)
    # Published measurements lie in between: copies on an H100 and an H200; launches that do not overlap.
    for device in (H100, H200):
        assert UNKIND.memory_share < device.copied.value / device.memory.value < KIND.memory_share
    assert KIND.alone_us <= 2.5 <= UNKIND.alone_us and KIND.follows_us <= 2.1 <= UNKIND.follows_us


def test_the_floor_is_below_every_band() -> None:
    counts = Counts("x", bytes=1e8, flops=1e11)
    for device in DEVICES.values():
        us, bound = floor(counts, device)
        assert us < predict(counts, device).low
        memory, products = 1e14 / device.memory.value, 1e17 / device.fp8.value
        assert us == pytest.approx(max(memory, products))
        assert bound == ("memory" if memory > products else "tensor cores")
    assert floor([counts, counts], H100)[0] == pytest.approx(2 * floor(counts, H100)[0])


def test_what_binds_may_differ_between_the_ends() -> None:
    """1 GB of memory at 3.15 TB/s outlasts 2.4 GB of L2 at 8 TB/s, but at the slow ends L2 at 5.5 TB/s lasts longer."""
    assert predict(Counts("x", bytes=1e9, l2_bytes=2.4e9), H100).bound == "memory or L2"
    assert predict([Counts("x", bytes=1e9)] * 2, H100).bound == ""


def test_bands_as_text() -> None:
    assert [digits(us) for us in (0.04, 1.5, 9.949, 9.95, 12.4, 99.6, 4280.7)] == [
        "0.0", "1.5", "9.9", "10", "12", "100", "4281",
    ]  # fmt: skip
    assert str(Band(1.5, 12.345, "L2")) == "1.5 .. 12"
    assert 1.5 in Band(1.5, 2) and 2 in Band(1.5, 2) and 2.01 not in Band(1.5, 2) and float("nan") not in Band(1, 2)


def test_the_model_needs_no_torch() -> None:
    code = (
        "import sys; from longcat_ops import perf; from longcat_ops.perf import chain, layer; "
        "print(perf.predict(perf.Counts('x', 1e6), perf.by_name('H200')), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1.7 .. 4.3 False\n"
