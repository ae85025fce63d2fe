"""Tables of collectives, for docs/nvls.md: bytes, times by size, published times, blocks, limits, uneven rows."""

from __future__ import annotations

from comm.cells import RAGGED
from longcat_ops.perf import DEVICES, comm
from longcat_ops.perf.comm_explain import EXPLAINED, expected
from longcat_ops.perf.comm_published import KIB, MIB, published
from longcat_ops.perf.model import digits

from .markdown import table

SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 96 * MIB)
GPUS = (8, 4)
LARGEST = SIZES[-1]
ROW = 2 * 6144  # bytes of a token
ROWS = {
    "even": [1024] * 8,
    "1, 20, 3, 0, 5, 1, 0, 9, each x 210": [210 * n for n in RAGGED],
    "32 x 2^i": [32 * 2**i for i in range(8)],
    "all on one rank": [8192, *[0] * 7],
}


def size(nbytes: int) -> str:
    return (
        f"{nbytes // MIB} MiB" if nbytes % MIB == 0 else f"{nbytes // KIB} KiB" if nbytes % KIB == 0 else f"{nbytes} B"
    )


def us(value: float) -> str:
    """Also of times far below 1 us."""
    return "< 0.01" if value < 0.01 else f"{value:.1g}" if value < 0.95 else digits(value)


def _by_size(collective: str) -> str:
    heading = ["GPUs", "S"]
    for name in EXPLAINED:
        heading += [f"{name}: bound", "ring", "ours"]
    rows = []
    for ranks in GPUS:
        for nbytes in SIZES:
            cells: list[object] = [ranks, size(nbytes)]
            for name in EXPLAINED:
                config = comm.choose(collective, ranks, nbytes, ll_bytes=comm.ll_limit(ranks, DEVICES[name]))
                one = expected(collective, config, comm.even(nbytes, ranks), name)
                cells += [us(one.bound), us(one.ring), f"{one.band}{' LL' * (config.form == 'low latency')}"]
            rows.append(cells)
    return table(heading, rows)


def all_reduce() -> str:
    return _by_size("all_reduce")


def one_phase() -> str:
    """Reduce-scatter; an all-gather of even parts has the same table."""
    return _by_size("reduce_scatter")


def bytes_each_way() -> str:
    """Sent and received by the busiest of 8 GPUs, as multiples of S."""
    rows = []
    for collective, form in (
        ("all_reduce", "two-shot"),
        ("all_reduce", "low latency"),
        ("reduce_scatter", "direct"),
        ("all_gather", "direct"),
        ("broadcast", "direct"),
    ):
        parts = comm.even(1, 8)
        both = [comm.traffic(collective, form, policy, parts) for policy in comm.POLICIES]
        cells = [f"{t.sent:.4g}, {t.received:.4g}" for t in both]
        rows.append((f"{collective}, {form}", *cells, f"{comm.ring(collective, parts):.4g}"))
    both = [comm.traffic(name, "direct", "multimem", comm.even(1, 8)) for name in ("reduce_scatter", "all_gather")]
    one_by_one = f"{sum(t.wire for t in both):.4g}"
    rows.append(("reduce_scatter, then all_gather", f"{one_by_one} in time", "", "1.75"))
    return table(("at 8 GPUs, in S", "multimem: sent, received", "peers: sent, received", "ring, each way"), rows)


def constants() -> str:
    k, u = comm.KIND, comm.UNKIND
    return table(("us, in a CUDA graph", "kind", "unkind", "from"), [
        ("low latency", k.low_latency_us, u.low_latency_us,
         "NCCL symmetric, tuned, 8 bytes on 8 H800 or H200 (nccl issue 1940); MSCCL++, 2 KiB (SGLang 22734)"),
        ("direct, two barriers", k.direct_us, u.direct_us,
         "what NCCL symmetric takes beyond its bytes at 2 to 32 MiB (Megatron-LM 5596)"),
        ("two-shot, two barriers", k.two_shot_us, u.two_shot_us, "as direct; MSCCL++ beyond its bytes at 1 MiB"),
        ("a load from other ranks, under load", k.latency_us, u.latency_us, "2 in public accounts; not measured"),
    ])  # fmt: skip


def published_times() -> str:
    rows = []
    for one in published():
        times = "; ".join(f"{what} **{value:.3g}**" for what, value in one.us.items())
        where = f"{', '.join(one.outside)}: {one.why}" if one.outside else ""
        rows.append((one.collective, one.ranks, size(one.nbytes), one.device, times, us(one.bound), one.band, where,
                     one.source))  # fmt: skip
    heading = ("collective", "GPUs", "S", "device", "published, us", "bound", "ours, predicted", "outside it", "source")
    return table(heading, rows)


def blocks() -> str:
    """All-reduce of 96 MiB by numbers of blocks."""
    rows = []
    for ranks in GPUS:
        for number in (1, 2, 4, 8, 16):
            cells: list[object] = [ranks, f"**{number}**" if number == _default(ranks) else number]
            for deterministic in (False, True):
                config = comm.choose("all_reduce", ranks, LARGEST, blocks=number, deterministic=deterministic)
                for name in ("H800", "H100"):
                    band = expected("all_reduce", config, comm.even(LARGEST, ranks), name).band
                    cells.append(f"{band} ({band.bound})")
            rows.append(cells)
    heading = ("GPUs", "blocks", "multimem, H800", "multimem, H100", "peers, H800", "peers, H100")
    return table(heading, rows)


def _default(ranks: int) -> int:
    return comm.choose("all_reduce", ranks, LARGEST).blocks


def limits() -> str:
    """Up to which bytes the low-latency form takes an all-reduce."""
    ranks = range(2, comm.MAX_RANKS + 1)
    rows = [(name, *(size(comm.ll_limit(n, DEVICES[name])) for n in ranks)) for name in EXPLAINED]
    return table(("GPUs", *ranks), rows)


def uneven() -> str:
    """Reduce-scatter and all-gather of 8192 tokens, or about as many."""
    rows = []
    for name, counts in ROWS.items():
        parts = [float(ROW * n) for n in counts]
        cells: list[object] = [name, f"{sum(counts)}"]
        for collective in ("reduce_scatter", "all_gather"):
            config = comm.choose(collective, 8, round(sum(parts)), largest_part=round(max(parts)))
            one = expected(collective, config, parts, "H100")
            cells += [us(one.ring), f"{one.band} ({one.band.bound})"]
        rows.append(cells)
    heading = ("rows of the ranks", "in all", "reduce-scatter: ring, padded", "ours", "all-gather: ring", "ours")
    return table(heading, rows)
