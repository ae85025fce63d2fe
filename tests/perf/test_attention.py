"""Counts of mla_decode: the deal covers every split once, and equals what the op says of its launches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import longcat_ops
from longcat_ops import perf
from longcat_ops.perf import attention
from longcat_ops.perf.attention import Call, Share

ROOT = Path(__file__).resolve().parents[2]
CALLS = [Call(1, 1, 64), Call(1, 1, 131072), Call(8, 2, 5000), Call(3, 3, 700, 128), Call(96, 2, 5000),
         Call(192, 1, 1024, 4096), Call(96, 1, 131072, 256), Call(5, 2, 40000, 64, sms=7)]  # fmt: skip


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_deal(call: Call) -> None:
    """Every page of every token once; no block keeps more than it can; the runs of a lane differ by one unit, where no
    cut moves."""
    found = list(attention.shares(call))
    assert len(found) == call.blocks
    assert sum(share.pages for share in found) == call.tokens * -(-call.context // 64)
    assert all(share.kept <= attention.RAW_SPLITS + 1 and share.folds < max(share.pages, 1) for share in found)
    if call.splits <= attention.RAW_SPLITS:
        each = call.split_rows // 64
        assert max(share.pages for share in found) - min(share.pages for share in found) <= 2 * each


def test_by_hand() -> None:
    """Ten splits of one row on four blocks: 2, 3, 2 and 3. The first merges its two; the others keep theirs."""
    call = Call(1, 1, 5000, 512, sms=4)
    assert list(attention.shares(call)) == [Share(16, 1, 3, 1, 1), Share(24, 1, 3, 0, 3), Share(16, 1, 2, 0, 2),
                                            Share(23, 1, 3, 0, 3)]  # fmt: skip
    attend, merge = attention.mla_decode(call)
    rows, tile, slot = 5000 * 1152, 64 * 576 * 2, 4 * 64 * 514
    assert attend.bytes == rows + tile + 64 * 512 * 2 + 9 * slot and merge.bytes == 9 * slot
    assert attend.sm_bytes == 25 * tile + 3 * slot and attend.flops == 5000 * 139264
    # Pairs: each lane has a token and two blocks, of five splits; rows leave memory once.
    assert list(attention.shares(Call(1, 2, 5000, 512, sms=4))) == 2 * [Share(40, 1, 9, 4, 1)] + 2 * [
        Share(39, 1, 5, 0, 5)
    ]
    assert attention.mla_decode(Call(1, 2, 5000, 512, sms=4))[0].bytes < 1.6 * attend.bytes


@pytest.mark.parametrize(("sequences", "rows", "pages"), [(1, 1, 1), (1, 1, 80), (8, 2, 80), (96, 2, 2048), (3, 1, 8)])
def test_launches_are_those_of_explain(sequences: int, rows: int, pages: int) -> None:
    tokens, table = sequences * rows, meta(sequences, pages, dtype=torch.int32)
    q, at = meta(tokens, 64, 576), meta(tokens, dtype=torch.int32)
    found = longcat_ops.explain("mla_decode", q, meta(9, 64, 576), table, at, at, latent=512, scale=1.0).launches
    call = Call(sequences, rows, 64 * pages)
    assert [(shape.kernel, shape.blocks) for shape in found[:1]] == [("mla_decode", call.blocks)]
    assert [shape.kernel for shape in found] == [counts.name for counts in attention.mla_decode(call)]


def test_the_workspace_is_what_the_blocks_keep() -> None:
    """A slot for what a block merges, and the most that it keeps unmerged: cuda/mla/config.h."""
    slots = (ROOT / "cuda/mla/config.h").read_text().split("#else")[1]
    assert f"kMostRawSplits = {attention.RAW_SPLITS};" in slots
    assert attention.workspace_bytes(512) == 0 and attention.workspace_bytes(513) == 132 * 2 * attention.SLOT_BYTES
    assert attention.workspace_bytes(131072, latent=100) == 132 * 65 * 64 * (128 + 2) * 4


def test_predictions_are_above_the_floor() -> None:
    for device in map(perf.by_name, ("H100", "H200")):
        for call in CALLS:
            least, _ = perf.floor(attention.floor_counts(call), device)
            assert least < perf.predict(attention.mla_decode(call), device).low
