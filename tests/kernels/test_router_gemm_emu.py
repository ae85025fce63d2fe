"""The router's product in the host emulator with its detectors on: every width, ragged ends, pieces of K, tokens by
TMA, copied and split; values against fp64 and a chain of float32, bits against each other. Then planted bugs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat_ops import split_bf16x3
from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.emulated_kernels import run
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy
from support.router_oracle import chosen, fma_chain, logits, rms, tokens, weight


def router(x: Tensor, w: Tensor) -> Tensor:
    """The kernel's result, in rows that have a gap between them, which stays as it was."""
    out = torch.full((len(x), len(w) + 3), torch.nan)
    run("router_gemm", x, w, split_bf16x3(w), out[:, : len(w)])
    assert bool(out[:, len(w) :].isnan().all())
    return out[:, : len(w)].contiguous()


def off_16_bytes(x: Tensor) -> Tensor:
    return torch.empty(len(x), x.shape[1] + 1, dtype=x.dtype)[:, 1:].copy_(x)


def assert_near(x: Tensor, w: Tensor, out: Tensor) -> None:
    value, bound = logits(x, w)
    assert bool(((out.double() - value).abs() <= bound).all())


# Tokens around every width, experts of one and several tiles, columns of 1 to 8 pieces with a part of a stage.
SHAPES = [
    (1, 8, 8),
    (8, 64, 136),
    (9, 70, 200),
    (16, 13, 72),
    (17, 130, 584),
    (33, 24, 264),
    (65, 40, 64),
    (130, 8, 136),
]
CASES = [
    pytest.param(shape, policy, marks=() if i % 3 == j else pytest.mark.slow)
    for i, shape in enumerate(SHAPES)
    for j, policy in enumerate(emulated.POLICIES)
]


@pytest.mark.parametrize(("shape", "policy"), CASES, ids=str)
def test_values(shape: tuple[int, int, int], policy: str) -> None:
    """In both accumulation modes; a float32 x, and rows off 16 bytes, take the slow ways in."""
    w = weight(*shape[1:])
    for seed, mma in enumerate(emulated.MMA_MODES):
        emulated.configure(seed, policy, mma=mma)
        x = tokens(shape[0], shape[2])
        out = router(x, w)
        assert_near(x, w, out)
        assert bits(router(off_16_bytes(x), w)) == bits(out)
        wide = tokens(shape[0], shape[2], torch.float32)
        assert_near(wide, w, router(off_16_bytes(wide) if seed else wide, w))


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
def test_every_product_of_terms(mma: str) -> None:
    emulated.configure(mma=mma)
    check_every_product()


@pytest.mark.parametrize("sd", [1.0, *(pytest.param(sd, marks=pytest.mark.slow) for sd in (0.5, 2.0))])
def test_as_accurate_as_a_chain_of_float32(sd: float) -> None:
    """With a tensor core's truncation, at the size of the model; the chosen experts are those of fp64."""
    emulated.configure(mma="hopper", detectors=False)
    x, w = tokens(8, 6144), weight(768, 6144, sd)
    value, bound = logits(x, w)
    out = router(x, w)
    chain = fma_chain(x, w)
    assert rms(out, value) <= rms(chain, value)
    assert float((out - value).abs().max()) <= float((chain - value).abs().max())
    assert torch.equal(*chosen(out, value, bound))


@pytest.mark.slow
def test_a_float32_x_is_as_accurate_as_a_chain() -> None:
    emulated.configure(mma="hopper", detectors=False)
    x, w = tokens(8, 6144, torch.float32), weight(128, 6144)
    value, _ = logits(x, w)
    assert rms(router(x, w), value) <= rms(fma_chain(x, w), value)


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
def test_the_bits_of_a_row_are_its_own(mma: str) -> None:
    """In every width, at every place, beside NaN and infinity."""
    emulated.configure(mma=mma)
    for dtype in (torch.bfloat16, torch.float32):
        x, w = tokens(129, 136, dtype), weight(8, 136)
        expected = router(x, w)
        assert len(set(bits(list(expected)))) == 129
        for first, count in ((0, 1), (3, 8), (9, 16), (40, 31), (60, 64)):
            assert bits(router(x[first : first + count], w)) == bits(expected[first : first + count])
        beside = x[:9].clone()
        beside[1], beside[7] = torch.nan, torch.inf
        kept = [0, 2, 3, 4, 5, 6, 8]
        assert bits(router(beside, w)[kept]) == bits(expected[:9][kept])


def test_inf_and_nan_show() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        x, w = tokens(4, 64, dtype).abs() + 1, weight(16, 64).abs() + 1
        x[1, 3], x[2, 5] = torch.inf, torch.nan
        out = router(x, w)
        assert bool(out[2].isnan().all()) and bool(out[[0, 3]].isfinite().all())
        assert not bool(out[1].isfinite().any())


KERNEL = "router/router_gemm.cuh"
COPY = (
    "  device::Pipeline stages = stages_of(p, base);\n"
    "  for (uint32_t block = work.begin; block < work.end; ++block, stages.advance()) {\n"
    "    const uint32_t to = base + stages.stage * p.smem.stage_bytes + kTerms"
)


def planted(name: str, old: str, new: str, file: str = KERNEL) -> Mutation:
    return Mutation(name, "router/router_gemm.cu", file, old, new)


MUTATIONS = [
    planted("largest_terms_first", "order = kTerms; order-- > 0;", "order = 0; order < kTerms; ++order"),
    planted("a_term_left_out", "j < terms(kTokens) && j <= order", "j < terms(kTokens) && j < order + (order < 2)"),
    planted("one_promotion_at_the_end", "k > 0 || j > 0 || order + 1 < kTerms", "true"),
    planted("pieces_in_another_order", "piece = 1; piece < p.pieces", "piece = 1; piece + 1 < p.pieces"),
    planted("sums_not_waited_for", "  ptx::cluster_arrive_relaxed();\n  ptx::cluster_wait_acquire();\n  const",
            "  const"),
    planted("ends_while_another_reads", "  ptx::cluster_arrive_release();  // no block ends while another reads its "
            "sums\n  ptx::cluster_wait_acquire();\n", ""),
    planted("tokens_beyond_the_last", "work.token + token < p.tokens && ", ""),
    planted("experts_beyond_the_last", " && work.expert + expert < p.experts", ""),
    planted("stage_overwritten", "    stages.wait_empty();\n    ptx::mbarrier_arrive_expect_tx",
            "    ptx::mbarrier_arrive_expect_tx"),
    planted("read_before_it_is_full", "    stages.wait_full();", "//"),
    planted("bytes_of_the_tokens_forgotten", "(kMapped ? kWidth * kStageBytes : 0)", "0"),
    planted("copies_not_fenced", "    ptx::fence_proxy_async_shared();", "//"),
    planted("copies_not_swizzled", "chunk ^ row % 8", "chunk"),
    planted("rows_beyond_the_tokens_copied", "work.token + row < p.tokens && ", ""),
    planted("columns_beyond_the_last_copied", " && column < p.columns", ""),
    planted("x_read_too_soon", "  ptx::grid_dependency_wait();\n" + COPY, COPY),
    planted("one_consumer_short", "                          kConsumerWarps);", "kConsumerWarps - 1);"),
]  # fmt: skip


def check() -> None:
    """All ways in, several stages more than the ring has, 4 and 8 pieces, ragged ends; the order of sums; all terms."""
    for (count, experts, columns), dtype in itertools.product(
        ((9, 70, 328), (3, 8, 2056)), (torch.bfloat16, torch.float32)
    ):
        x, w = tokens(count, columns, dtype), weight(experts, columns)
        out = router(x, w)
        assert_near(x, w, out)
        assert bits(router(off_16_bytes(x), w)) == bits(out)
    check_order()
    check_every_product()
    test_inf_and_nan_show()


def check_order() -> None:
    """The sums of the order of terms, of stages and of pieces, exact within an instruction."""
    columns, stages, pieces = 1096, 18, 8
    x, w = tokens(3, columns), weight(8, columns)
    terms, total = split_bf16x3(w), None
    for piece in range(pieces):
        part = torch.zeros(3, 8)
        for stage in range(stages * piece // pieces, stages * (piece + 1) // pieces):
            block = torch.zeros(3, 8)
            for term in terms.flip(0):
                for k in range(64 * stage, min(64 * stage + 64, columns), 16):
                    block = (block.double() + x[:, k : k + 16].double() @ term[:, k : k + 16].double().mT).float()
            part = part + block
        total = part if total is None else total + part
    assert bits(router(x, w)) == bits(total)


def check_every_product() -> None:
    """Results that are exact in float32, and wrong if a product of terms is missing."""
    unit = torch.eye(8, 64)
    x, w = tokens(3, 64, torch.float32), weight(8, 64)
    assert torch.equal(router(x, unit), x[:, :8])  # every term of x, times the first of w
    assert torch.equal(router(unit.bfloat16(), w), w.mT[:8])
    assert torch.equal(router(unit, w), w.mT[:8])
    second = 1 + 2.0**-9  # in two terms; the square needs the product of the second ones
    assert torch.equal(router(second * unit, second * unit), torch.eye(8) * second**2)


def test_the_order_of_sums() -> None:
    check_order()


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS, 2), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check)
