"""The tile choice of the FP8 GEMMs, through `explain`: a pure function that needs no GPU."""

from __future__ import annotations

import pytest
import torch

from longcat_ops.ops.explain import Candidate, Prediction, explain
from longcat_ops.perf import DEVICES, predict
from support.tile_choices import BF16, F32, FP8, I32, chosen, meta, pair

GATE_UP, DOWN = (4096, 6144), (6144, 2048)
TILES = [(rows, tokens, False) for rows in (128, 64) for tokens in (32, 64, 128, 256)]
PAIRS = [(128, 128, True), (128, 256, True)]


def offset(groups: int, rows: int, n: int, k: int, hint: int | None = None, split_k: int = 1) -> tuple[Candidate, ...]:
    """`rows` counts the rows of all groups."""
    weights, out = pair(groups, n, k, block_rows=128), meta(rows, n, dtype=BF16)
    offsets = meta(groups + 1, dtype=I32)
    hints = {"max_m_hint": hint, "split_k": split_k}
    return explain("m_grouped_fp8_gemm_nt_offset", pair(rows, k), weights, out, offsets, **hints).candidates


@pytest.mark.parametrize(
    ("hint", "tokens"), [(0, 32), (1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (129, 256), (10**9, 256)]
)
def test_a_hint_chooses_the_smallest_tile_that_holds_it(hint: int, tokens: int) -> None:
    assert chosen(offset(16, 8000, *GATE_UP, hint)).tokens == tokens


@pytest.mark.parametrize(
    ("groups", "rows", "tokens"),
    [(16, 16 * 8, 32), (16, 16 * 8 + 1, 64), (16, 16 * 33, 256), (64, 33, 32), (64, 1, 32), (4, 100, 128), (1, 33, 64)],
)
def test_without_one_a_group_may_be_four_times_the_mean(groups: int, rows: int, tokens: int) -> None:
    """The tile holds four times the mean, but no more rows than there are."""
    assert chosen(offset(groups, rows, *GATE_UP)).tokens == tokens


def test_the_other_layouts() -> None:
    weights = pair(8, *DOWN, block_rows=128)
    out, counts = meta(8, 512, DOWN[0], dtype=BF16), meta(8, dtype=I32)
    for expected_m, tokens in ((0, 32), (8, 32), (9, 64), (32, 128), (33, 256), (512, 256)):
        found = explain("m_grouped_fp8_gemm_nt_masked", pair(8, 512, DOWN[1]), weights, out, counts, expected_m)
        assert chosen(found.candidates).tokens == tokens
    indices, out = meta(512, dtype=I32), meta(512, DOWN[0], dtype=BF16)
    found = explain("m_grouped_fp8_gemm_nt_contiguous", pair(512, DOWN[1]), weights, out, indices)
    assert chosen(found.candidates).tokens == 256
    for rows, tokens in ((1, 32), (32, 32), (33, 64), (4096, 256)):
        found = explain("fp8_gemm_nt", pair(rows, 2048), pair(*DOWN, block_rows=128))
        assert chosen(found.candidates).tokens == tokens


@pytest.mark.parametrize(
    ("groups", "shape", "rows"),
    [(1, GATE_UP, 64), (2, GATE_UP, 64), (3, GATE_UP, 128), (1, DOWN, 64), (2, DOWN, 128), (1, (576, 6144), 64)],
)
def test_low_tiles_where_they_put_more_sms_to_work(groups: int, shape: tuple[int, int], rows: int) -> None:
    """Tiles are low up to 66 tiles of 128 rows, for 132 SMs."""
    assert chosen(offset(groups, 8 * groups, *shape, 8)).rows == rows
    assert chosen(offset(groups, 8 * groups, *shape, 8)).blocks == min(132, groups * -(-shape[0] // rows))


@pytest.mark.parametrize(
    ("groups", "hint", "shape", "paired"),
    [
        (16, 128, GATE_UP, True),
        (16, 10**9, DOWN, True),
        (3, 129, GATE_UP, True),  # 96 tiles
        (16, 64, GATE_UP, False),  # fewer tokens: memory binds
        (2, 256, GATE_UP, True),  # 64 tiles, cut in two
        (1, 64, GATE_UP, False),  # tiles of 64 rows
        (80, 256, (128, 2048), False),  # one weight tile, so no pair
        (16, 256, (576, 6144), True),  # five weight tiles per group: 80, or 96 with empty ones
        (23, 256, (576, 6144), False),  # 115 in one wave, or 138 in two
        (40, 256, (576, 6144), True),  # 200 or 240 in two waves
    ],
)
def test_blocks_share_tokens_where_l2_binds(groups: int, hint: int, shape: tuple[int, int], paired: bool) -> None:
    """Blocks are paired from 128 tokens on, if pairs need no more waves than single blocks."""
    candidates = offset(groups, 256 * groups, *shape, hint)
    best = chosen(candidates)
    assert best.paired == paired
    alone = next(c for c in candidates if (c.rows, c.tokens, c.paired) == (best.rows, best.tokens, False))
    assert best.waves <= alone.waves or hint > 256
    for together, single in zip(best.predictions, alone.predictions, strict=True):
        assert together.low <= single.low  # at the high end a multicast saves nothing


def test_no_tile_for_no_rows() -> None:
    assert offset(16, 0, *GATE_UP) == ()
    assert explain("moe_plan", meta(4, 2, dtype=I32), 2).candidates == ()


def test_rows_off_16_bytes_are_copied() -> None:
    """Warps copy the rows if K, or the row stride of `a`, is not a multiple of 16."""
    assert "copy them" in chosen(offset(2, 300, 128, 136)).reason
    assert chosen(offset(2, 300, 128, 136)).tokens == 32
    apart = torch.empty_strided((300, 128), (136, 1), dtype=FP8, device="meta")
    found = explain("fp8_gemm_nt", (apart, meta(300, 1, dtype=F32)), pair(128, 128, block_rows=128))
    assert chosen(found.candidates).tokens == 32


@pytest.mark.parametrize(("groups", "rows"), [(1, 1), (4, 4), (16, 512), (512, 4096), (3, 1200)])
@pytest.mark.parametrize(("n", "k"), [GATE_UP, DOWN, (576, 6144), (8, 128)])
def test_every_candidate_can_run(groups: int, rows: int, n: int, k: int) -> None:
    candidates = offset(groups, rows, n, k)
    assert [(c.rows, c.tokens, c.paired) for c in candidates] == TILES + PAIRS
    active = min(groups, rows)
    for c in candidates:
        weight_tiles = -(-n // c.rows)
        if c.paired:
            weight_tiles += weight_tiles % 2
            assert c.blocks % 2 == 0
        assert c.smem_bytes <= 227 * 1024 and c.stages >= 4
        # A stage has the tile's rows of weights and its tokens, 128 bytes each, and a scale per token.
        assert c.stages * (128 * (c.rows + c.tokens) + 4 * c.tokens) < c.smem_bytes
        assert 0 < c.blocks <= 132 and c.blocks <= (active - 1 + -(-(rows - active + 1) // c.tokens)) * weight_tiles
        mean = -(-rows // active)
        assert c.tiles == active * -(-mean // c.tokens) * weight_tiles
        assert c.waves == -(-c.tiles // c.blocks)
    small = candidates[0]
    assert small.smem_bytes <= 200 * 1024 and small.stages == 9


@pytest.mark.parametrize(
    ("groups", "shape", "split_k", "rows", "blocks"),
    [
        (1, GATE_UP, 2, 64, 128),
        (1, GATE_UP, 4, 128, 128),
        (2, GATE_UP, 2, 128, 128),
        (2, GATE_UP, 4, 128, 128),
        (1, DOWN, 2, 128, 96),
        (1, (576, 6144), 2, 64, 18),
        (1, (576, 6144), 4, 64, 36),
        (1, (1536, 6144), 4, 64, 96),
    ],
)
def test_split_k(groups: int, shape: tuple[int, int], split_k: int, rows: int, blocks: int) -> None:
    """Clusters of split_k blocks, of which 66 or 32 are resident on 132 SMs: a GPC has 18 SMs at most, so room for 4
    clusters of 4. Tiles are low where that keeps more clusters busy."""
    resident = {2: 66, 4: 32}[split_k]
    candidates = offset(groups, groups, *shape, 1, split_k)
    assert [(c.rows, c.tokens) for c in candidates] == [(128, 32), (64, 32)]
    best = chosen(candidates)
    assert (best.rows, best.blocks) == (rows, blocks)
    for c in candidates:
        tiles = groups * -(-shape[0] // c.rows)
        assert c.blocks == split_k * min(resident, tiles)
        assert c.tiles == tiles and c.waves == -(-tiles // resident)
        # Shared memory also holds float32 sums of a tile from each block of the cluster except the first.
        sums = (split_k - 1) * c.rows * 32 * 4
        assert c.stages * (128 * (c.rows + 32) + 4 * 32) + sums < c.smem_bytes <= 200 * 1024 and c.stages >= 7
    large = chosen(offset(groups, 300, *shape, 300, split_k))  # more rows take more tiles, not larger ones
    assert large.tokens == 32 and large.tiles == groups * -(-300 // groups // 32) * -(-shape[0] // large.rows)


def test_split_k_of_rows_that_warps_copy() -> None:
    (best,) = [c for c in offset(2, 300, 128, 136, None, 4) if c.chosen]
    assert "copy them" in best.reason and (best.rows, best.tokens) == (128, 32)


def test_the_report_with_split_k() -> None:
    report = str(explain("fp8_gemm_nt", pair(40, 6144), pair(576, 6144, block_rows=128), split_k=4))
    assert "tile of 64 x 32 tokens (chosen): clusters of 4 blocks share K; a group of 40 rows" in report
    assert "takes 2 tiles" in report and "tile of 128 x 32 tokens: too few tiles for all clusters" in report


def test_counts_with_split_k() -> None:
    """Counts equal hand counts: a block loads its piece of K; the model adds the cost of a cluster."""
    for split_k, blocks in ((1, 48), (2, 24), (4, 12)):
        tile = chosen(offset(1, 8, 576, 6144, 8, split_k))
        assert (tile.counts.sm_bytes, tile.counts.pieces) == (blocks * (64 + 8) * 128, split_k)
        assert split_k == 4 or {p.bound for p in tile.predictions} == {"loads of an SM"}
    # Five blocks of K: the longest of four pieces has two.
    assert chosen(offset(1, 8, 64, 640, 8, 4)).counts.sm_bytes == 2 * (64 + 8) * 128


def test_counts() -> None:
    """Counts equal hand counts: weights once, rows with their scales and bf16 results."""
    weights, tokens = 16 * 4096 * 6144, 16 * 32 * (6144 + 4 * 48 + 2 * 4096)
    tile = chosen(offset(16, 16 * 32, *GATE_UP, 32))
    assert tile.counts.bytes == weights + tokens and tile.counts.flops == 2 * 16 * 32 * 4096 * 6144
    assert [p.device for p in tile.predictions] == ["H100", "H800", "H200"]
    for p in tile.predictions:
        assert p == Prediction(p.device, *vars(predict(tile.counts, DEVICES[p.device])).values())
        assert p.bound == "memory"
    # 256 tokens of one group give 32 tiles, or 64 if cut in two, in one wave of 48 stages; each pass reads the weights
    # once.
    best, large = chosen(offset(1, 256, *GATE_UP)), offset(1, 256, *GATE_UP)[3]
    assert (best.rows, best.tokens, best.waves, large.rows, large.tokens, large.waves) == (128, 128, 1, 128, 256, 1)
    for tile, tokens, passes in ((best, 128, 1), (large, 256, 2)):
        assert tile.counts.sm_flops == 48 * 2 * 128 * tokens * 128
        assert tile.counts.sm_smem_bytes == 48 * 128 * (passes * 128 + 2 * tokens)
        assert tile.predictions[0].bound == "tensor cores"
    # Each tile of half the height reads all tokens.
    low = offset(1, 256, *GATE_UP)[7]
    assert low.counts.l2_bytes == (4096 + 64 * 256) * 6144
    # Five tiles of the latent projection.
    latent = offset(1, 8, 576, 6144)[0]
    assert latent.counts.sm_bytes == 48 * (128 + 8) * 128 and latent.predictions[0].bound == "loads of an SM"
    # Single tiles fetch as many bytes of tokens as of weights; pairs, which fetch their tokens once, half of that.
    for tile, fetched in zip((offset(16, 16 * 128, *GATE_UP, 128)[i] for i in (2, 8)), (2.0, 1.5), strict=True):
        assert tile.counts.l2_bytes == fetched * weights
        assert tile.counts.l2_bytes + tile.counts.l2_shared == 2 * weights
    # 32-token tiles of large groups read weights and tokens again and again.
    small = offset(4, 4096, *DOWN)[0]
    assert small.counts.l2_bytes == 4 * 32 * 6144 * 2048 + 4 * 32 * 48 * 32 * 2048
    assert small.predictions[0].bound == "L2"


def test_the_report_names_every_tile() -> None:
    report = str(explain("fp8_gemm_nt", pair(40, 2048), pair(*DOWN, block_rows=128)))
    assert "tile of 64 x 64 tokens (chosen): the smallest that holds a group of 40 rows" in report
    assert (
        "tile of 64 x 32 tokens: a group of 40 rows, four times the mean or all there are, would read its weights 2"
        in report
    )
    assert "tile of 64 x 128 tokens: larger than" in report
    assert "tile of 128 x 64 tokens: too few tiles for all SMs" in report
