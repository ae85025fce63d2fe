"""Tables of expert parallelism, for docs/expert_parallel.md: bytes of three forms, what zero experts save, times."""

from __future__ import annotations

from longcat_ops.perf import DEVICES, comm, model
from longcat_ops.perf.comm_explain import EXPLAINED
from longcat_ops.perf.expert_parallel import FORMS, LINE_BYTES, NODE, NODE_RATE, Layer, as_reported, fixed_us
from longcat_ops.perf.model import digits
from longcat_ops.perf.step import LAYERS

from .markdown import table

TOKENS = (1, 8, 96, 192, 1024, 8192)
SHARES, MANY = (2, 4, 8, 16, 32, 64, 128), (32, 64, 128)
BATCH = 96  # tokens of a rank


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f}"


def sent() -> str:
    """Rows and MB that a rank sends to others, there and back."""
    rows = []
    for ranks in SHARES:
        layer = Layer(BATCH, ranks)
        cells: list[object] = [ranks]
        for form in FORMS:
            both = layer.sent(form)
            cells.append(f"{layer.rows(form):.0f}: {_mb(both.dispatch)}, {_mb(both.combine)}")
        rows.append((*cells, f"{layer.distinct(ranks):.2f}"))
    return table(("EP", *FORMS, "ranks a token reaches"), rows)


def saved() -> str:
    rows = []
    for payload in ("fp8", "bf16"):
        for ranks in (8, 128):
            layer = Layer(BATCH, ranks, payload=payload)
            share = f"{100 * layer.saved.both / layer.sent(FORMS[0]).both:.1f} %"
            row = f"{layer.row.dispatch:,}, {layer.row.combine:,}"
            step = f"{LAYERS * layer.saved.both / 1e6:.0f}"
            rows.append((payload, ranks, row, f"{layer.saved_a_token:,.0f}", _mb(layer.saved.both), step, share))
    heading = ("payload", "EP", "bytes of a row, there and back", "saved a token", "MB a layer")
    heading += (f"MB in {LAYERS} layers", "of every choice")
    return table(heading, rows)


def times() -> str:
    """Behind one switch: dispatch / combine of ours, and of every choice."""
    heading = ["EP", "T"]
    for name in EXPLAINED:
        heading += [f"{name}: dispatch", "combine", "both, of every choice"]
    rows = []
    for ranks in (4, 8):
        for tokens in TOKENS:
            cells: list[object] = [ranks, tokens]
            for name in EXPLAINED:
                layer = Layer(tokens, ranks)
                naive = layer.predicted(DEVICES[name], FORMS[0])
                cells += [*layer.predicted(DEVICES[name]), naive[0] + naive[1]]
            rows.append(cells)
    return table(heading, rows)


def nodes() -> str:
    """Between nodes: dispatch, combine."""
    rows = []
    for tokens in (BATCH, 2 * BATCH):
        for ranks in MANY:
            layer = Layer(tokens, ranks)
            cells: list[object] = [ranks, tokens, f"{100 * (1 - NODE / ranks):.0f} %"]
            for form in FORMS:
                us = layer.between_nodes_us(form)
                cells.append(f"{layer.rows(form, between_nodes=True):.0f}: {digits(us.dispatch)}, {digits(us.combine)}")
            rows.append(cells)
    reported = as_reported(Layer(2 * BATCH, MANY[-1]))
    cell = f"{2 * BATCH * 8}: {digits(reported.dispatch)}, {digits(reported.combine)}"
    rows.append(("report", 2 * BATCH, "100 %", "", cell, ""))
    return table(("EP", "T", "to other nodes", *FORMS[:2], "one copy a node"), rows)


def constants() -> str:
    sources = {
        "counts": "the low-latency form of the collectives ([nvls.md](nvls.md)): each rank hears from all",
        "push": "a launch that waits for the one ahead ([performance_model.md](performance_model.md))",
        "flags": "a load from other ranks, under load",
        "wait": "such a launch again",
    }
    ends = [fixed_us(False, *pair) for pair in ((comm.KIND, model.KIND), (comm.UNKIND, model.UNKIND))]
    rows = [(name, *(end[name] for end in ends), source) for name, source in sources.items()]
    for combine, name in ((False, "dispatch"), (True, "combine")):
        pairs = ((comm.KIND, model.KIND), (comm.UNKIND, model.UNKIND))
        rows.append((f"{name}, in all", *(f"{sum(fixed_us(combine, *pair).values()):.1f}" for pair in pairs), ""))
    lines = LINE_BYTES * (Layer(1, 8).experts + 1)
    rows.append(("counts, bytes to each rank", f"{lines:,}", f"{lines:,}", "513 offsets of 4 bytes, each with a tag"))
    rows.append(("between nodes, GB/s a GPU", *[f"{NODE_RATE.value / 1e9:g}"] * 2, NODE_RATE.source))
    return table(("us, in a CUDA graph", "kind", "unkind", "from"), rows)
