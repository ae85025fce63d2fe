"""The tile choice of the GEMM with SwiGLU, through `explain`: a pure function that needs no GPU."""

from __future__ import annotations

import pytest

from longcat_ops.ops.explain import Candidate, explain
from support.tile_choices import F32, I32, chosen, meta, pair

WIDTH, K = 2048, 6144


def swiglu(groups: int, rows: int, width: int = WIDTH, k: int = K, hint: int | None = None) -> tuple[Candidate, ...]:
    """`rows` counts the rows of all groups."""
    gate_up = meta(groups, 2 * width, k), meta(groups, 2 * -(-width // 128), -(-k // 128), dtype=F32)
    offsets = meta(groups + 1, dtype=I32)
    op = "m_grouped_fp8_swiglu_gemm_nt_offset"
    return explain(op, pair(rows, k), gate_up, offsets, max_m_hint=hint).candidates


@pytest.mark.parametrize(("hint", "tokens"), [(0, 32), (32, 32), (33, 64), (64, 64), (65, 128), (10**9, 128)])
def test_a_hint_chooses_the_smallest_tile_that_holds_it(hint: int, tokens: int) -> None:
    best = chosen(swiglu(16, 8000, hint=hint))
    assert (best.rows, best.tokens) == (256, tokens)


@pytest.mark.parametrize(("groups", "rows", "tokens"), [(16, 128, 32), (16, 129, 64), (4, 100, 128), (1, 33, 64)])
def test_without_one_a_group_may_be_four_times_the_mean(groups: int, rows: int, tokens: int) -> None:
    assert chosen(swiglu(groups, rows)).tokens == tokens


def test_rows_off_16_bytes_are_copied() -> None:
    best = chosen(swiglu(2, 300, 136, 136))
    assert "copy them" in best.reason and best.tokens == 32


@pytest.mark.parametrize(("groups", "rows"), [(1, 1), (4, 4), (16, 512), (512, 4096), (3, 1200)])
@pytest.mark.parametrize(("width", "k"), [(WIDTH, K), (136, 384), (8, 128)])
def test_every_candidate_can_run(groups: int, rows: int, width: int, k: int) -> None:
    candidates = swiglu(groups, rows, width, k)
    assert [(c.rows, c.tokens, c.stages) for c in candidates] == [(256, 32, 5), (256, 64, 5), (256, 128, 4)]
    active = min(groups, rows)
    for c in candidates:
        weight_tiles = -(-2 * width // 256)
        # A stage has weights and tokens, 128 bytes of each row, and two scales per token; then per token 128 codes and
        # the maxima of eight warps.
        assert c.stages * (128 * (256 + c.tokens) + 8 * c.tokens) + c.tokens * (128 + 32) < c.smem_bytes
        assert c.smem_bytes <= (200 if c.tokens == 32 else 227) * 1024
        mean = -(-rows // active)
        assert 0 < c.blocks <= 132 and c.tiles == active * -(-mean // c.tokens) * weight_tiles


def test_counts() -> None:
    """Counts equal hand counts; h takes one byte per value and a scale per 128."""
    weights, tokens = 16 * 2 * WIDTH * K, 16 * 32 * (K + 4 * 48 + WIDTH + 4 * 16)
    tile = chosen(swiglu(16, 16 * 32, hint=32))
    assert tile.counts.bytes == weights + tokens and tile.predictions[0].bound == "memory"
    # One group has 16 tiles, and an SM loads one of them.
    one = chosen(swiglu(1, 8))
    assert one.counts.sm_bytes == 48 * (256 + 8) * 128 and one.predictions[0].bound == "loads of an SM"
    assert "tile of 256 x 32 tokens (chosen)" in str(
        explain("m_grouped_fp8_swiglu_gemm_nt_offset", pair(8, 128), (meta(1, 16, 128), meta(1, 2, 1, dtype=F32)),
                meta(2, dtype=I32))
    )  # fmt: skip
