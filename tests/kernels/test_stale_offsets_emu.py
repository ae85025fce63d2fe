"""counts_ready is the caller's promise that offsets may be read early. If it is false, a row is NaN or right, never a
plausible wrong number: here the kernel's early read sees other offsets than the true ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from support import gemm_calls as calls
from support.emulated_kernels import run
from support.grouped import SENTINEL, activations, place, weights
from support.kernel_mutations import ROOT, Mutation, assert_caught, planted, run_in_every_policy

SIZES = (9, 0, 40, 33)
SCHEDULER = "gemm/scheduler.cuh"
EARLY = "const uint32_t digest = walk_groups(p.rows, emit);"
# Rows of other groups; the third group has no rows yet, so the early read makes none of its tiles.
SEEN = "[&](uint32_t g, uint32_t r, uint32_t n) { if (g != 2) emit(g, r / 2, n); }"
STALE = f"const uint32_t digest = walk_groups(p.rows, {SEEN}) ^ 1;"
AGAIN = "if (ptx::any(digest != walk_groups"
CHECK = "if (tile.row < start ||"


def stale(name: str, *more: tuple[str, str]) -> Mutation:
    """The stale early read, plus further bugs."""
    text = (ROOT / "cuda" / SCHEDULER).read_text()
    new = text
    for before, after in ((EARLY, STALE), *more):
        assert new.count(before) == 1, before
        new = new.replace(before, after)
    return Mutation(name, "gemm/moe_gemm.cu", SCHEDULER, text, new)


MUTATIONS = [
    stale("rows_left_as_they_were", (AGAIN, "if (false && ptx::any(digest != walk_groups")),
    stale("stale_tiles_kept", (CHECK, "return true; if (tile.row < start ||"), ("refused = true;", "refused = false;")),
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
