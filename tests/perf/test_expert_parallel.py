"""Expert parallelism: rows, bytes and times by hand, what zero experts save, and what `explain` says of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from longcat_ops.perf import DEVICES, Band
from longcat_ops.perf.comm_explain import EXPLAINED
from longcat_ops.perf.expert_parallel import FORMS, HOST_READS, Bytes, Layer, as_reported

H100, H800 = DEVICES["H100"], DEVICES["H800"]
EVERY, OURS, ONE_COPY = FORMS


def test_rows_and_bytes_by_hand() -> None:
    """96 tokens on each of 8 ranks: 7/8 of 8 rows a token leave, 7/8 of 12 where nobody knows zero experts."""
    layer = Layer(96, 8)
    assert layer.row == (6144 + 4 * 48, 2 * 6144) == (6336, 12288)
    assert (layer.rows(), layer.rows(EVERY)) == (96 * 8 * 7 / 8, 96 * 12 * 7 / 8) == (672, 1008)
    assert layer.sent() == (672 * 6336, 672 * 12288)
    assert layer.sent(EVERY) == (1008 * 6336, 1008 * 12288)
    assert layer.sent().both == 12_515_328
    wide = Layer(96, 8, payload="bf16")
    assert wide.row == (12288, 12288) and wide.sent().dispatch == 672 * 12288
    assert Layer(0, 8).sent() == (0, 0)
    for form in FORMS:
        assert Layer(96, 1).rows(form) == 0


def test_a_third_is_saved() -> None:
    """4 of 12 choices: 74,496 bytes a token there and back, and a third of what would go to other ranks."""
    for ranks, payload in itertools.product((2, 8, 128), ("fp8", "bf16")):
        layer = Layer(96, ranks, payload=payload)
        assert layer.saved.both / layer.sent(EVERY).both == pytest.approx(1 / 3)
        assert layer.saved.both == pytest.approx(96 * layer.saved_a_token * (1 - 1 / ranks))
    assert Layer(96, 8).saved_a_token == 4 * (6336 + 12288) == 74_496
    assert Layer(96, 8).saved == pytest.approx((336 * 6336, 336 * 12288))
    assert Layer(96, 8, real=12).saved_a_token == 0


@pytest.mark.parametrize(
    ("ranks", "expected"), [(1, 1.0), (8, 5.27), (16, 6.49), (32, 7.22), (64, 7.63), (128, 7.84), (512, 8.0)]
)
def test_distinct_ranks_of_a_token(ranks: int, expected: float) -> None:
    assert round(Layer(1, ranks).distinct(ranks), 2) == expected


def test_distinct_ranks_are_those_of_random_choices() -> None:
    """Within 5 standard errors of the mean of 20000 draws of different experts; and by all pairs, exactly."""
    generator = torch.Generator().manual_seed(0)
    for experts, ranks, real in ((512, 8, 8), (16, 4, 3)):
        ids = torch.rand(20000, experts, generator=generator).argsort(1)[:, :real]
        here = torch.zeros(20000, ranks).scatter_(1, ids // (experts // ranks), 1.0).sum(1)
        found = Layer(1, ranks, experts=experts, real=real).distinct(ranks)
        assert abs(found - float(here.mean())) < 5 * float(here.std()) / 20000**0.5
    pairs = [len({a // 2, b // 2}) for a, b in itertools.permutations(range(6), 2)]
    assert Layer(1, 3, experts=6, real=2).distinct(3) == pytest.approx(sum(pairs) / len(pairs))
    # Between whole numbers of experts on a line; all experts reach all ranks.
    low, high = (Layer(1, 8, real=real).distinct(8) for real in (7, 8))
    assert Layer(1, 8, real=7.25).distinct(8) == pytest.approx(0.75 * low + 0.25 * high)
    assert Layer(1, 4, experts=4, choices=4, real=4).distinct(4) == pytest.approx(4)
    assert Layer(1, 4, real=0).distinct(4) == 0


def test_one_copy_a_rank_moves_least() -> None:
    assert round(Layer(96, 8).rows(ONE_COPY)) == 443
    for ranks in (2, 8, 64, 512):
        rows = [Layer(96, ranks).rows(form) for form in FORMS]
        assert rows[0] > rows[1] >= rows[2] * (1 - 1e-12)


def test_between_nodes_by_hand() -> None:
    """Nodes of 8: of 32 ranks three quarters of the rows leave, of 128 fifteen sixteenths; 40 GB/s a GPU."""
    for ranks, every, ours, one_copy in ((32, 864, 576, 260), (64, 1008, 672, 443), (128, 1080, 720, 584)):
        found = [round(Layer(96, ranks).rows(form, between_nodes=True)) for form in FORMS]
        assert found == [every, ours, one_copy]
    assert Layer(96, 128).between_nodes_us() == pytest.approx((720 * 6336 / 40e3, 720 * 12288 / 40e3))
    assert [round(us) for us in Layer(96, 128).between_nodes_us()] == [114, 221]
    assert Layer(96, 8).between_nodes_us() == (0, 0)


def test_the_reports_236_and_472() -> None:
    """192 tokens x 8 rows of 6144 and 12288 bytes at 40 GB/s, each to another node, without scales."""
    found = as_reported(Layer(192, 128))
    assert found == pytest.approx((192 * 8 * 6144 / 40e3, 192 * 8 * 12288 / 40e3))
    assert [round(us) for us in found] == [236, 472]
    assert [round(us) for us in Layer(192, 128).between_nodes_us()] == [228, 442]
    assert [round(us * 128 / 120) for us in Layer(192, 128).between_nodes_us()] == [243, 472]  # all remote, with scales


def test_times_by_hand() -> None:
    """Dispatch: counts 2.3 or 5.9, two launches of 1.5 or 4, flags 1.5 or 2.5; the wire carries rows, and 8 bytes for
    each expert and one more to each rank. Combine has no counts."""
    dispatch, combine = Layer(96, 8).predicted(H100)
    nbytes = 672 * 6336 + 7 * 8 * 513
    assert (dispatch.low, dispatch.high) == pytest.approx((6.8 + nbytes / 370e3, 16.4 + nbytes / 309e3))
    assert (combine.low, combine.high) == pytest.approx((4.5 + 672 * 12288 / 370e3, 10.5 + 672 * 12288 / 309e3))
    assert (dispatch.bound, combine.bound) == ("wire or fixed cost", "wire")
    dispatch, combine = Layer(96, 8).predicted(H800)
    assert (dispatch.low, combine.high) == pytest.approx((6.8 + nbytes / 164e3, 10.5 + 672 * 12288 / 138e3))
    dispatch, combine = Layer(0, 8).predicted(H100)
    assert dispatch.bound == combine.bound == "fixed cost" and combine == Band(4.5, 10.5, "fixed cost")


def test_memory_is_faster_than_the_wire() -> None:
    """Which the model leaves out, therefore: x read and 8 rows a token written in dispatch, 8 read and 8 written in
    combine. Of two ranks half of the rows stay, so the wire has least to do."""
    for name in EXPLAINED:
        device = DEVICES[name]
        for nbytes, memory in zip(Layer(1, 2).sent(), (12288 + 8 * 6336, 2 * 8 * 12288), strict=True):
            for rate, share in zip((device.wire_high, device.wire_low), (0.94, 0.75), strict=True):
                assert memory / (share * device.memory.value) < 0.5 * nbytes / rate.value


def test_more_tokens_take_longer_and_zero_experts_cost() -> None:
    for ranks, name in itertools.product((2, 4, 8), EXPLAINED):
        bands = [Layer(tokens, ranks).predicted(DEVICES[name]) for tokens in (0, 8, 96, 1024)]
        for before, after in itertools.pairwise(bands):
            assert all(a.low < b.low and a.high < b.high for a, b in zip(before, after, strict=True))
        ours, every = (Layer(96, ranks).predicted(DEVICES[name], form) for form in (OURS, EVERY))
        assert all(a.low < b.low and a.high < b.high for a, b in zip(ours, every, strict=True))


def test_no_time_without_a_switch() -> None:
    with pytest.raises(LongcatUnsupportedError, match="NVLink switch"):
        Layer(96, 8).predicted(DEVICES["H100 PCIe"])
    for ranks in (1, 16):
        with pytest.raises(LongcatShapeError, match=f"`ranks` is {ranks}, expected 2 .. 8"):
            Layer(96, ranks).predicted(H100)


def test_explain_behind_one_switch() -> None:
    found = longcat_ops.explain("expert_parallel", (96, 6144), ranks=8)
    assert found.sent == {form: Layer(96, 8).sent(form) for form in FORMS}
    assert found.saved_a_step == 28 * (336 * 6336 + 336 * 12288)
    assert found.host_reads == HOST_READS == {"local": 0, "nvl": 0, "torch": 1, "deepep": 1}
    assert [one.device for one in found.expected] == list(EXPLAINED) and found.between_nodes == {}
    report = str(found)
    assert report.splitlines()[:3] == [
        "expert_parallel: 96 tokens of 6,144 on each of 8 ranks, in a layer",
        "  512 FFN experts, 64 a rank; 8 of 12 choices",
        "  a row of fp8: 6,336 bytes there, 12,288 in bf16 back",
    ]
    for text in (
        "every choice: 1,008 rows to other ranks, 6,386,688 bytes there and 12,386,304 back",
        "FFN choices (ours): 672 rows to other ranks, 4,257,792 bytes there and 8,257,536 back",
        "one copy a rank: 443 rows to other ranks, ",
        "saved by zero experts: 33.3 %, 74,496 bytes a token and layer",
        "not one copy a rank: 5.27 ranks a token, but sums would be rounded twice",
        "predicted, not measured: H100 dispatch 18 .. 30 us (wire or fixed cost), combine 27 .. 37 us (wire)",
        "host reads, torch: 1 a dispatch, the counts, so no CUDA graph can hold it",
        "host reads, nvl: none",
        "host reads, deepep: 1 a dispatch, the counts, so no CUDA graph can hold it",
    ):
        assert text in report, text


def test_explain_between_nodes() -> None:
    found = longcat_ops.explain("expert_parallel", [192, 6144], ranks=128, payload="bf16")
    assert found.expected == () and found.between_nodes[OURS] == Layer(192, 128, payload="bf16").between_nodes_us()
    assert "between nodes, FFN choices: dispatch 442 us, combine 442 us at 40 GB/s a GPU" in str(found)
    assert "between nodes, one copy a node: " in str(found)
    found = longcat_ops.explain("expert_parallel", (4, 64), ranks=4, experts=8, top_k=3, real=1.5, node=2)
    assert "2 a rank; 1.5 of 3 choices" in str(found)
    assert found.sent[OURS] == Bytes(4 * 1.5 * 3 / 4 * (64 + 4), 4 * 1.5 * 3 / 4 * 128)
    alone = longcat_ops.explain("expert_parallel", (96, 6144), ranks=1)
    assert alone.expected == () and all(sent == (0, 0) for sent in alone.sent.values())


@pytest.mark.parametrize(
    ("size", "options", "text"),
    [
        (96, {}, "`size` is 96, expected (tokens, hidden), hidden a positive multiple of 16."),
        ((96,), {}, "`size` is (96,), expected (tokens, hidden)"),
        ((-1, 6144), {}, "`size` is (-1, 6144), expected (tokens, hidden)"),
        ((96, 6152), {}, "`size` is (96, 6152), expected (tokens, hidden), hidden a positive multiple of 16."),
        ((96.5, 6144), {}, "`size` is (96.5, 6144), expected"),
        ("96", {}, "`size` is '96', expected"),
        ((96, 6144), {"ranks": 0}, "`ranks` is 0, expected at least 1."),
        ((96, 6144), {"ranks": 3}, "`experts` is 512, expected a positive multiple of ranks = 3."),
        ((96, 6144), {"top_k": 33}, "`top_k` is 33, expected 1 .. 32."),
        ((96, 6144), {"real": 13}, "`real` is 13, expected 0 .. 12, of top_k and experts."),
        ((96, 6144), {"real": math.nan}, "`real` is nan, expected 0 .. 12"),
        ((96, 6144), {"experts": 4, "ranks": 4}, "`real` is 8, expected 0 .. 4, of top_k and experts."),
        ((96, 6144), {"payload": "e4m3"}, "`payload` is 'e4m3', expected 'fp8' or 'bf16'."),
        ((96, 6144), {"ranks": 16, "node": 3}, "`node` is 3, expected 1 or more that divide ranks = 16"),
        ((96, 6144), {"node": 0}, "`node` is 0, expected 1 or more"),
    ],
)
def test_explain_refuses(size: object, options: dict, text: str) -> None:
    with pytest.raises(LongcatShapeError) as caught:
        longcat_ops.explain("expert_parallel", size, **options)
    assert str(caught.value).startswith("explain: argument `") and text in str(caught.value)
