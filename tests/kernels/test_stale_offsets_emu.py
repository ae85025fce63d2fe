"""counts_ready is the caller's promise that offsets may be read early. If it is false, a row is NaN or right, never a
plausible wrong number: here the kernel's early read sees other offsets than the true ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support import bf16_calls
from support import gemm_calls as calls
from support.emulated_kernels import run
from support.grouped import SENTINEL, activations, place, weights
from support.kernel_mutations import ROOT, Mutation, assert_caught, planted, run_in_every_policy
from support.swiglu_forms import PLAIN, QUANTISED, each

SIZES = (9, 0, 40, 33)
SCHEDULER = "gemm/scheduler.cuh"
EARLY = "const uint32_t digest = walk_groups(p.rows, emit);"
# Rows of other groups; the third group has no rows yet, so the early read makes none of its tiles.
SEEN = "[&](uint32_t g, uint32_t r, uint32_t n) { if (g != 2) emit(g, r / 2, n); }"
STALE = f"const uint32_t digest = walk_groups(p.rows, {SEEN}) ^ 1;"
AGAIN = "if (ptx::any(digest != walk_groups"
CHECK = "if (tile.row < start ||"


def stale(name: str, *more: tuple[str, str], launcher: str = "moe_gemm",
          also: tuple[tuple[str, str, str], ...] = ()) -> Mutation:  # fmt: skip
    """The stale early read, plus further bugs, also in other headers."""
    text = (ROOT / "cuda" / SCHEDULER).read_text()
    new = text
    for before, after in ((EARLY, STALE), *more):
        assert new.count(before) == 1, before
        new = new.replace(before, after)
    return Mutation(name, f"gemm/{launcher}.cu", SCHEDULER, text, new, also)


MUTATIONS = [
    stale("rows_left_as_they_were", (AGAIN, "if (false && ptx::any(digest != walk_groups")),
    stale("stale_tiles_kept", (CHECK, "return true; if (tile.row < start ||"), ("refused = true;", "refused = false;")),
]
# Without scales the consumers refuse a tile, not the producer of scales.
BF16, BF16_SWIGLU = "bf16_moe_gemm", "bf16_moe_swiglu_gemm"
REFUSE, REFUSE_SLABS = "if (tile.refused) refuse(sum[i]);", "if (refused) refuse(sum[0]), refuse(sum[1]);"
BF16_MUTATIONS = [stale("refused_but_kept", launcher=BF16, also=(("gemm/consumer.cuh", REFUSE, ";"),))]
SWIGLU_MUTATIONS = [
    stale(name, launcher=BF16_SWIGLU, also=(("gemm/swiglu_consumer.cuh", REFUSE_SLABS, new),))
    for name, new in (("slabs_refused_but_kept", ""), ("one_slab_refused", "if (refused) refuse(sum[0]);"))
]


def product() -> tuple[Tensor, Tensor, tuple[list, Tensor]]:
    rhs, wide = weights(len(SIZES), 136, 384)
    parts = activations(SIZES, 384)
    starts = [0]
    for size in SIZES:
        starts.append(starts[-1] + size)
    a, sa = place(parts, starts[:-1], starts[-1])
    out = torch.full((len(a), 136), SENTINEL, dtype=torch.bfloat16)
    run("m_grouped_fp8_gemm_nt_offset", a, sa, *rhs, torch.tensor(starts, dtype=torch.int32), 9, True, 1, out)
    return out, torch.tensor(starts), (parts, wide)


def check() -> None:
    out, starts, (parts, wide) = product()
    missing = out.isnan().any(1)
    assert missing[starts[2] : starts[3]].all()  # the early read made none of its tiles
    for g, part in enumerate(parts):
        rows = out[starts[g] : starts[g + 1]]
        right = ~rows.isnan().any(1)
        calls.assert_near([rows[right]], [(part[0][right], part[1][right])], wide[g : g + 1], "exact")


def check_bf16() -> None:
    parts, b = bf16_calls.activations(SIZES, 136), bf16_calls.weights(len(SIZES), 136, 136)
    out = torch.full((sum(SIZES), 136), SENTINEL, dtype=torch.bfloat16)
    offsets = torch.tensor([0, *itertools.accumulate(SIZES)], dtype=torch.int32)
    run("m_grouped_bf16_gemm_nt_offset", torch.cat(parts), b, offsets, 9, True, 1, out)
    for g, (rows, part) in enumerate(zip(out.split(SIZES), parts, strict=True)):
        right = ~rows.isnan().any(1)
        assert g != 2 or not right.any()
        bf16_calls.assert_near([rows[right]], [part[right]], b[g : g + 1], "exact")


def check_swiglu() -> None:
    for form in (PLAIN, QUANTISED):
        parts, weights = form.activations(SIZES, 136), form.weights(len(SIZES), 136, 136)
        outs = form.call(parts, weights, max_m_hint=9, counts_ready=True, lead=0)
        for g, (out, part) in enumerate(zip(outs, parts, strict=True)):
            right = ~(out[1] if form.quantise else out).isnan().any(1)
            assert g != 2 or not right.any()
            if not form.quantise:  # of a tile's channels all are NaN, or none
                assert all(torch.equal(tile.all(1), tile.any(1)) for tile in out.isnan().split(128, 1))
            kept = each(lambda t, right=right: t[right], out)
            form.assert_near([kept], [part[right]], weights[g : g + 1])


@pytest.mark.parametrize(("launcher", "looks"), [(BF16, check_bf16), (BF16_SWIGLU, check_swiglu)])
def test_a_stale_look_without_scales_leaves_nan(
    launcher: str, looks: Callable[[], None], library: None, tmp_path: Path
) -> None:
    with planted(stale(f"stale_{launcher}", launcher=launcher), tmp_path):
        run_in_every_policy(looks, detectors=False)


@pytest.mark.parametrize(
    ("mutation", "looks"),
    [
        pytest.param(mutation, looks, marks=pytest.mark.slow if i else (), id=mutation.name)
        for mutations, looks in ((BF16_MUTATIONS, check_bf16), (SWIGLU_MUTATIONS, check_swiglu))
        for i, mutation in enumerate(mutations)
    ],
)
def test_without_scales_consumers_refuse(
    mutation: Mutation, looks: Callable[[], None], library: None, tmp_path: Path
) -> None:
    assert_caught(mutation, tmp_path, looks, detectors=False)


def test_a_stale_look_at_the_offsets_leaves_nan(library: None, tmp_path: Path) -> None:
    with planted(stale("stale_offsets"), tmp_path):
        run_in_every_policy(check, detectors=False)  # tiles of both reads overlap


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_of_the_two_looks_is_needed(mutation: Mutation, library: None, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check, detectors=False)


def test_offsets_that_are_ready_are_no_loss(library: None) -> None:
    out, _, (parts, wide) = product()
    starts = torch.tensor([0, *SIZES]).cumsum(0)
    for g, part in enumerate(parts):
        calls.assert_near([out[starts[g] : starts[g + 1]]], [part], wide[g : g + 1], "exact")
