"""Tables of attention, for docs/mla_decode.md."""

from __future__ import annotations

from longcat_ops.perf import DEVICES, attention, floor, predict, step
from longcat_ops.perf.model import digits

from .markdown import table, with_bound

H100 = DEVICES["H100"]
BATCHES = ((1, 1), (8, 2), (96, 1), (96, 2), (192, 1))  # sequences, tokens of each
CONTEXTS = (1024, 5000, 32768, 131072)
SPLITS = (256, 512, 1024, 2048, 4096)
FLASH_MLA = 660e12, 3.0e12  # flops/s and bytes/s that FlashMLA states for an H800


def splits() -> str:
    """us of both kernels, by split_rows; beside them the floor, and FlashMLA at the rates that it states."""
    heading = ("sequences x tokens", "context", "floor", "FlashMLA", *SPLITS)
    rows = []
    for sequences, tokens in BATCHES:
        for context in CONTEXTS:
            least = attention.floor_counts(attention.Call(sequences, tokens, context))
            us, bound = floor(least, H100)
            theirs = max(1e6 * least.flops / FLASH_MLA[0], 1e6 * least.bytes / FLASH_MLA[1])
            calls = (attention.Call(sequences, tokens, context, split) for split in SPLITS)
            rows.append((f"{sequences} x {tokens}", context, f"{digits(us)}, {bound}", digits(theirs),
                         *(predict(attention.mla_decode(call), H100) for call in calls)))  # fmt: skip
    return table(heading, rows)


def parts() -> str:
    """Of 512 rows a split: pages of the busiest block, partial sums that blocks keep, and what bounds the kernel."""
    heading = ("sequences x tokens", "context", "blocks", "pages, busiest", "kept, MB", "memory, MB", "attend", "merge")
    rows = []
    for sequences, tokens in BATCHES:
        for context in CONTEXTS[1:3]:
            call = attention.Call(sequences, tokens, context)
            shares, counts = list(attention.shares(call)), attention.mla_decode(call)
            kept = attention.SLOT_BYTES * sum(share.kept for share in shares)
            merge = predict(counts[1], H100, overlaps=True) if len(counts) > 1 else "-"
            rows.append((f"{sequences} x {tokens}", context, len(shares), max(share.pages for share in shares),
                         f"{kept / 1e6:.0f}", f"{counts[0].bytes / 1e6:.0f}", with_bound(predict(counts[0], H100)),
                         merge))  # fmt: skip
    return table(heading, rows)


def whole_step() -> str:
    """A step of one rank of EP128, part by part, beside the report's estimate for an H800."""
    ours = {name: step.predicted(DEVICES[name]) for name in ("H100", "H200")}
    report = {"attention": "264", "moe": "60", "ms_a_token": "16.05, with 236 + 472 of dispatch and combine a layer"}
    names = {
        "attention": "one attention, us",
        "ffn": "one dense FFN, us",
        "moe": "experts of a layer, router included, us",
        "layer": "a layer, us",
        "head": "head and verification, us",
        "mtp": "MTP head and draft, us",
        "step": "a step of 28 layers, us",
        "ms_a_token": "ms a token at 80 % accepted",
    }
    rows = [(text, *(getattr(p, name) for p in ours.values()), report.get(name, "")) for name, text in names.items()]
    return table(("part", *ours, "report"), rows)
