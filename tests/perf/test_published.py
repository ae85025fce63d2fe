"""Published times of similar kernels, compared with the bands of the same counts."""

from __future__ import annotations

import pytest

from longcat_ops.perf import by_name, floor
from longcat_ops.perf.published import Published, published

PUBLISHED = published()
# A time that leaves its band, or returns to it, is a finding: the page names those outside.
OUTSIDE = {
    ("16 experts x 32 rows, 4096 x 7168", "H20"),
    ("16 experts x 32 rows, 7168 x 2048", "H20"),
    ("dense, 64 rows, 7168 x 2048", "H800"),
    ("dense, 64 rows, 4096 x 7168", "H100"),
    ("one product, 64 blocks of 512 KB each, cold", "H200"),
}


def of(case: str, device: str) -> Published:
    (found,) = [p for p in PUBLISHED if p.case.startswith(case) and p.device == device]
    return found


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda p: f"{p.case}, {p.device}, {p.us:.4g}")
def test_inside_its_band_or_known_to_be_outside(one: Published) -> None:
    outside = (one.case, one.device) in OUTSIDE
    assert (one.us in one.band) != outside
    assert bool(one.why) == outside and one.source


def test_a_published_layer() -> None:
    """128 experts of 2048 x 768 with 8 rows each: 604 MB of weights at 3.71 TB/s of an H200's 4.8."""
    layer = of("a layer's 128 active experts x 8 rows", "H200")
    weights = 128 * 3 * 2048 * 768
    assert weights / layer.us / 1e6 == pytest.approx(3.71, abs=0.01)
    assert sum(one.bytes for one in layer.launches) == pytest.approx(weights, rel=0.04)
    assert layer.us == 162.7 and layer.us in layer.band and layer.band.high < 1.4 * layer.band.low


def test_a_published_dense_product() -> None:
    dense = of("dense, 16 rows, 12288 x 2048", "H200")
    assert dense.us == 8.9 and dense.overlaps and dense.us in dense.band


def test_only_what_lay_in_l2_is_faster_than_the_floor_allows() -> None:
    below = [one.case for one in PUBLISHED if one.us < floor(one.launches, by_name(one.device))[0]]
    assert below == []


def test_bands_are_narrow_enough_to_be_wrong() -> None:
    """A band spans less than a factor of 2, and of 1.35 where memory binds and the launch is a small part."""
    for one in PUBLISHED:
        assert one.band.high < 2 * one.band.low, one.case
        assert one.band.high < 1.35 * one.band.low or one.band.low < 30 or one.band.bound != "memory", one.case
    assert len(OUTSIDE) < len(PUBLISHED) / 3
