"""Counts of `mla_decode` at LongCat-Flash's sizes: the kernel that attends, dealt out as cuda/mla/decode_deal.cuh does,
and the one that merges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .model import Counts

HEADS, LATENT, ROPE, PAGE = 64, 512, 64, 64  # of a token; values; the rest of a row; rows of a page
WIDTH = LATENT + ROPE
RAW_SPLITS = 64  # that a block can keep unmerged
# Instructions of a warp, from the machine code (nvcc 13.0.88): the weights of a page, between its two products; a merge
# of one split in place; a merge of one partial sum by the second kernel.
PAGE_INSTRUCTIONS, FOLD_INSTRUCTIONS, MERGE_INSTRUCTIONS = 690, 400, 90
SLOT_BYTES = 4 * HEADS * (LATENT + 2)  # of a partial sum
TILE_BYTES = 2 * HEADS * WIDTH  # of a query, and of a page


@dataclass(frozen=True)
class Call:
    """A decode pass: `rows` tokens of each of `sequences`, each with `context` rows before it and itself."""

    sequences: int
    rows: int
    context: int
    split_rows: int = 512
    sms: int = 132

    @property
    def tokens(self) -> int:
        return self.sequences * self.rows

    @property
    def splits(self) -> int:
        return -(-self.context // self.split_rows)

    @property
    def blocks(self) -> int:
        return min(self.sms, self.tokens * self.splits)


def workspace_bytes(context: int, latent: int = LATENT, split_rows: int = 512, sms: int = 132) -> int:
    """Most bytes that a call needs beside its arguments, whatever the batch: a partial sum a block, and as many as a
    block can keep unmerged (cuda/mla/config.h)."""
    splits = -(-context // split_rows)
    if splits < 2:
        return 0
    half = next(columns for columns in (64, 128, 256) if 2 * columns >= latent)
    return sms * (1 + min(RAW_SPLITS, splits - 1)) * 4 * 64 * (2 * half + 2)


@dataclass(frozen=True)
class Share:
    """What one block has to do: pages and queries that it reads, slots that it writes and reads, in its own place for
    splits that it merges (folds) or for the second kernel (kept).
    """

    pages: int
    queries: int
    slots: int
    folds: int
    kept: int


def shares(call: Call) -> Iterator[Share]:
    """Of every block. Where rows come in pairs, each lane of blocks deals with one token of each pair."""
    lanes = 2 if call.rows % 2 == 0 and call.blocks % 2 == 0 else 1
    rows, runs, n = call.tokens // lanes, call.blocks // lanes, call.splits
    total = rows * n
    cuts = [_moved(total * j // runs, n, -(-total // runs), [total * k // runs for k in range(j, runs + 1)])
            for j in range(runs + 1)]  # fmt: skip
    for begin, end in pairwise(cuts):
        share = _share(call, begin, end)
        yield from [share] * lanes


def _moved(unit: int, n: int, longest: int, cuts: list[int]) -> int:
    """The cut at `unit`, or where it moves so that a block keeps at most RAW_SPLITS unmerged."""
    begin = unit // n * n
    for cut in cuts:
        if not begin < cut < begin + n or longest <= RAW_SPLITS or begin + n - cut <= RAW_SPLITS:
            return min(cut, begin + n)
    return begin + n


def _share(call: Call, begin: int, end: int) -> Share:
    n, each, all_pages = call.splits, call.split_rows // PAGE, -(-call.context // PAGE)
    pages = queries = slots = folds = kept = 0
    while begin < end:
        first, last = begin % n, min(n, begin % n + end - begin)
        pages += min(last * each, all_pages) - first * each
        queries += 1
        merged, done = first == 0, first == 0 and last == n
        folds += (last - 1) * merged
        slots += 2 * (last - 1) + (not done) if merged else last - first
        kept += (not done) if merged else last - first
        begin += last - first
    return Share(pages, queries, slots, folds, kept)


def mla_decode(call: Call) -> list[Counts]:
    """Counts of both kernels. Tokens of a pair read their rows from memory once; partial sums that the second kernel
    merges go to memory and back, others stay in L2.
    """
    dealt = list(shares(call))
    kept = sum(share.kept for share in dealt)
    readers = -(-call.rows // 2) if call.rows % 2 == 0 and call.blocks % 2 == 0 else call.rows
    moved = call.sequences * readers * call.context * 2 * WIDTH + 2 * call.tokens * HEADS * (WIDTH + LATENT)
    fetched = [TILE_BYTES * (s.pages + s.queries) + SLOT_BYTES * s.slots for s in dealt]
    flops = 2.0 * HEADS * (WIDTH + LATENT)
    most = max(s.pages for s in dealt)
    waits = max(PAGE_INSTRUCTIONS * s.pages + FOLD_INSTRUCTIONS * s.folds for s in dealt)
    attend = Counts("mla_decode", moved + SLOT_BYTES * kept, flops * call.tokens * call.context, sum(fetched),
                    sm_bytes=max(fetched), sm_flops=flops * PAGE * most, product_waits=waits, bf16=True)  # fmt: skip
    if call.splits == 1:
        return [attend]
    partials = min(call.splits, kept)  # of one row
    parts = 8 if 8 * call.tokens >= call.sms else 32
    waves = -(-call.tokens * parts // (2 * call.sms))
    merge = Counts("mla_merge", SLOT_BYTES * kept, l2_bytes=SLOT_BYTES * kept,
                   sm_bytes=2 * waves * partials * SLOT_BYTES / parts if kept else 0,
                   serial=MERGE_INSTRUCTIONS * partials)  # fmt: skip
    return [attend, merge]


def floor_counts(call: Call) -> Counts:
    """What no kernel avoids: the rows of each sequence once, queries and results, and the products."""
    moved = call.sequences * call.context * 2 * WIDTH + 2 * call.tokens * HEADS * (WIDTH + LATENT)
    return Counts("floor", moved, 2.0 * HEADS * (WIDTH + LATENT) * call.tokens * call.context, bf16=True)
