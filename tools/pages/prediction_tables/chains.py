"""Tables of the expert chain and of a layer, for docs/fused_moe.md, and of routing and plan, for docs/kernels.md."""

from __future__ import annotations

from longcat_ops.perf import DEVICES, Band, dispatch, predict
from longcat_ops.perf import chain as model
from longcat_ops.perf import layer as layers

from .markdown import table

H100 = DEVICES["H100"]
TOKENS = (1, 8, 96, 192, 1024, 8192)


def chain() -> str:
    heading = ("EP", "T", "experts with rows, of G", "rows of one", "launches, fused / not", "MB, fused / not",
               "us, fused", "us, fused, PDL of no use", "us, not fused", "ratio")  # fmt: skip
    rows = []
    for share in model.shares():
        ours, plain = model.chain_us(share, H100), model.chain_us(share, H100, overlaps=False)
        theirs, routing = model.chain_us(share, H100, "deep_gemm"), len(share.routing())
        launches = " / ".join(str(routing + len(make(share))) for make in (model.Share.fused, model.Share.deep_gemm))
        moved = " / ".join(f"{share.bytes(form) / 1e6:.0f}" for form in ("fused", "deep_gemm"))
        rows.append((share.ranks, share.tokens, f"{share.active:.1f} of {share.groups}", f"{share.mean_rows:.1f}",
                     launches, moved, ours, plain, theirs, ratio(theirs, ours)))  # fmt: skip
    return table(heading, rows)


def ratio(one: Band, other: Band) -> str:
    """The ratio with the kind constants in both, and with the unkind ones; the smaller first."""
    low, high = sorted((one.low / other.low, one.high / other.high))
    return f"{low:.2f} .. {high:.2f}"


def layer() -> str:
    rows = []
    for tokens in layers.TOKENS:
        p = layers.predicted(tokens, H100)
        rows.append((tokens, p.attention, p.ffn, p.moe, p.layer, f"{p.bytes / 1e9:.2f}"))
    return table(("T", "two attentions", "two dense FFNs", "MoE, router included", "layer", "GB"), rows)


def dispatch_ops() -> str:
    names = {"moe_route": "`moe_route`, f32 logits", "moe_plan": "`moe_plan`, with weights"}
    rows = [
        (name, *(predict(dispatch.OPS[op](tokens), H100, overlaps=True) for tokens in TOKENS))
        for op, name in names.items()
    ]
    return table(("T", *TOKENS), rows)
