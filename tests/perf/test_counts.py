"""Counts of products, dispatch, chain and layer equal hand counts, `explain` and the model's configuration."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatFlashConfig, perf
from longcat_ops.perf import chain, dispatch, layer, products
from longcat_ops.perf.chain import Share

H100 = perf.by_name("H100")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_product_is_counted_as_explain_does() -> None:
    """`products` gives, without tensors, the counts and tiles that `explain` gives for a call."""
    rows, (groups, n, k) = 128, (16, 4096, 6144)
    lhs = meta(rows, k, dtype=torch.float8_e4m3fn), meta(rows, k // 128)
    rhs = meta(groups, n, k, dtype=torch.float8_e4m3fn), meta(groups, n // 128, k // 128)
    out, offsets = meta(rows, n, dtype=torch.bfloat16), meta(groups + 1, dtype=torch.int32)
    for split_k in (1, 2):
        called = longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", lhs, rhs, out, offsets, max_m_hint=8,
                                     split_k=split_k)  # fmt: skip
        tiles = products.tiles(groups, rows, n, k, max_rows=8, split_k=split_k)
        assert [vars(tile) for tile in tiles] == [
            {name: value for name, value in vars(c).items() if name != "predictions"} for c in called.candidates
        ]
        chosen = products.product(groups, rows, n, k, max_rows=8, split_k=split_k)
        assert [c.counts for c in called.candidates if c.chosen] == [chosen]
    assert products.product(16, 0, n, k) == perf.Counts("product")


def test_fewer_sms_have_more_to_do() -> None:
    """128 tiles of [128, 6144] and 8 rows take one wave on 132 SMs, two on the 78 of an H20."""
    one, two = (products.product(4, 32, 4096, 6144, max_rows=8, sms=sms) for sms in (132, 78))
    assert one.bytes == two.bytes and two.sm_bytes == 2 * one.sm_bytes == 2 * (128 + 8) * 6144


def test_deep_gemm_reads_whole_blocks() -> None:
    """4 experts of 70 rows take two blocks of 64 each, and the two share their weights as a pair."""
    found = products.deep_gemm(4, 70, 4096, 7168, block=64)
    weights, padded = 4 * (4096 * 7168 + 4 * 32 * 56), 4 * 128
    assert found.bytes == weights + padded * (7168 + 4 * 56 + 2 * 4096)
    assert found.flops == 2 * padded * 4096 * 7168
    assert found.l2_bytes == weights + padded * 32 * 7168
    assert found.l2_shared == weights
    assert found.sm_bytes == 2 * (64 + 128) * 7168  # 256 tiles, two waves
    assert found.sm_flops == 2 * 2 * 64 * 128 * 7168
    # One block of few columns: tiles half as wide, 64 of them.
    assert products.deep_gemm(1, 64, 4096, 7168, block=64).sm_bytes == (64 + 64) * 7168


@pytest.mark.parametrize("tokens", [1, 8, 9, 96, 682, 683, 8192])
def test_routing_and_plan_are_counted_as_explain_does(tokens: int) -> None:
    ids, weights = meta(tokens, 12, dtype=torch.int32), meta(tokens, 12)
    sizes = {"top_k": 12, "num_experts": 768, "num_zero_experts": 256, "scale": 6.0}
    for op, args, kwargs in (
        ("moe_route", (meta(tokens, 768), meta(768)), sizes),
        ("moe_plan", (ids, 512, weights), {}),
    ):
        found, counts = longcat_ops.explain(op, *args, **kwargs), dispatch.OPS[op](tokens)
        assert sum(one.bytes for one in counts) == pytest.approx(found.bytes_read + found.bytes_written)
        assert len(counts) == len(found.launches)
        (on_h100,) = [p for p in found.predictions if p.device == "H100"]
        band = perf.predict(counts, H100)
        assert (band.low, band.high) == pytest.approx((on_h100.low, on_h100.high))


@pytest.mark.parametrize("tokens", [1, 8, 8192])
def test_the_router_is_counted_once(tokens: int) -> None:
    """A layer has the counts of dispatch: the bytes of `explain` with a split weight, and three products of bf16 terms
    where the op has one."""
    x, w = meta(tokens, 6144, dtype=torch.bfloat16), meta(768, 6144)
    found = longcat_ops.explain("router_gemm", x, w, split=meta(3, 768, 6144, dtype=torch.bfloat16))
    (counts,) = dispatch.OPS["router_gemm"](tokens)
    assert counts.bytes == 3 * 2 * 768 * 6144 + 2 * tokens * 6144 + 4 * tokens * 768
    assert (counts.bytes, counts.flops) == (found.bytes_read + found.bytes_written, 3 * found.flops)
    assert counts.bf16 and layer.router(tokens) == [counts]
    small = layer.Sizes(hidden_size=64, num_experts=24)
    assert layer.router(tokens, small)[0].bytes == 3 * 2 * 24 * 64 + 2 * tokens * 64 + 4 * tokens * 24


@pytest.mark.parametrize(("tokens", "ranks"), [(8, 8), (1, 128)])
def test_expected_counts_are_those_of_random_choices(tokens: int, ranks: int) -> None:
    """Expected counts are within 5 standard errors of the mean of 200 draws."""
    share, generator = Share(tokens, ranks), torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(200):
        ids = torch.rand(tokens * ranks, share.experts, generator=generator).argsort(1)[:, : dispatch.REAL]
        here = ids < share.groups
        drawn.append((float(here.sum()), float(here.any(1).sum()), float(len(ids[here].unique()))))
    found = torch.tensor(drawn, dtype=torch.float64)
    expected = torch.tensor([share.rows, share.received, share.active], dtype=torch.float64)
    assert bool(((found.mean(0) - expected).abs() <= 5 * found.std(0) / 200**0.5).all())


def test_bytes_of_one_token() -> None:
    """One token moves the bytes of 8 experts with one row each."""
    quant, gate_up, down, combine = Share(1, 1).fused()
    assert gate_up.bytes == 8 * (4096 * 6144 + 32 * 48 * 4 + 6144 + 48 * 4 + 2048 + 16 * 4)
    assert down.bytes == 8 * (6144 * 2048 + 48 * 16 * 4 + 2048 + 16 * 4 + 2 * 6144)
    assert quant.bytes == 2 * 6144 + 12 * 4 + 8 * (4 + 6144 + 48 * 4)
    assert combine.bytes == 2 * 2 * 6144 + 8 * 2 * 6144 + 2 * 12 * 4 + 4
    padded = Share(1, 1).deep_gemm()
    assert len(padded) == len(Share(1, 1).apart()) == 5
    assert padded[3].bytes - down.bytes == 8 * 63 * (2048 + 16 * 4 + 2 * 6144)
    assert (Share(192, 128).block, Share(1, 1).block) == (128, 64)


def test_a_chain_costs_more_where_nothing_overlaps() -> None:
    for share in chain.shares():
        fused, alone, unfused = (
            chain.chain_us(share, H100, *form) for form in (("fused",), ("fused", False), ("deep_gemm",))
        )
        assert fused.low < alone.low < unfused.low and fused.high < alone.high < unfused.high
        assert alone.low - fused.low == pytest.approx(4 * (1.5 - 0.7))


def test_sizes_of_a_layer_are_those_of_the_model() -> None:
    config = LongcatFlashConfig()
    assert asdict(layer.LONGCAT) == {name: getattr(config, name) for name in asdict(layer.LONGCAT)}
    assert layer.LONGCAT.qk_head_dim == config.qk_head_dim and layer.LONGCAT.latent_width == config.latent_width
    assert (config.hidden_size, config.expert_ffn_hidden_size) == (dispatch.HIDDEN, chain.WIDTH)
    assert config.num_experts == dispatch.EXPERTS + dispatch.ZERO


def test_most_bytes_of_a_layer_are_weights() -> None:
    """For one token, weights and cache pages are all but 1 % of a layer's bytes."""
    linear = 2 * (1536 * 6144 + 12288 * 1536 + 576 * 6144 + 6144 * 8192 + 3 * 12288 * 6144)
    absorbed, experts, pages = 2 * 2 * 64 * 512 * 256, 8 * 3 * 2048 * 6144, 2 * 1024 * 576 * 2
    found = layer.predicted(1, H100)
    assert 1 < found.bytes / (linear + absorbed + experts + pages + 3 * 2 * 768 * 6144) < 1.01
    assert found.layer.low == pytest.approx(found.attention.low + found.ffn.low + found.moe.low)
    faster = layer.predicted(1, perf.by_name("H200"))
    assert faster.layer.low < found.layer.low and faster.bytes == found.bytes
