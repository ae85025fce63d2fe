"""Machine instructions that a kernel needs to be fast, and those that it must not have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    kernels: str  # regular expression, of the whole short name
    must: tuple[str, ...] = ()  # opcodes with the leading modifiers: "LDG.E" also means LDG.E.128
    never: tuple[str, ...] = ()


def _fp8(*widths: int) -> tuple[str, ...]:
    return tuple(f"QGMMA.64x{width}x32.F32.E4M3.E4M3" for width in widths)


def _bf16(*widths: int) -> tuple[str, ...]:
    return tuple(f"HGMMA.64x{width}x16.F32.BF16" for width in widths)


# One row per family of kernels; a kernel must obey every row that matches it. Opcodes are those of nvcc 13.0.
TABLE = (
    Row(".*", never=("LDL", "STL")),
    # Launched while the kernel before still runs, and lets the next one do so.
    Row(r"\w*quant_fp8_kernel<.*>", must=("ACQBULK", "PREEXIT")),
    Row(r"\w+_quant_fp8_kernel<.*>", must=("F2FP.SATFINITE.E4M3.F32",)),
    Row(r"dequant_fp8_kernel<.*>", must=("F2FP.F16.E4M3.UNPACK_B",)),
    # The wide path moves 8 elements at once: 16 or 32 bytes of x, 8 bytes of q.
    Row(r"\w+_quant_fp8_kernel<.*, true>", must=("LDG.E.128", "STG.E.64"), never=("LDG.E.U16", "STG.E.U8")),
    Row(r"dequant_fp8_kernel<.*, true>", must=("LDG.E.64", "STG.E.128"), never=("LDG.E.U8", "STG.E.U16")),
    Row(r"moe_(route|place|plan)_\w*kernel.*", must=("ACQBULK", "PREEXIT"), never=("ATOM", "ATOMG", "ATOMS")),
    # A thread a choice: no shared memory, no barrier.
    Row(r"moe_place_kernel", must=("LDG.E", "STG.E"), never=("BAR", "LDS", "STS", "REDG")),
    # Selection by two warp reductions a round; the counting sort groups lanes without atomics.
    Row(r"moe_route_kernel<.*>", must=("REDUX.MAX", "REDUX.MIN", "REDG.E.ADD")),
    Row(r"moe_route_kernel<Float32, .*, true>", must=("LDG.E.128",)),
    Row(r"moe_plan_\w+_kernel.*", never=("REDG",)),
    Row(r"moe_plan_count_kernel<.*>", must=("MATCH.ANY",)),
    Row(r"moe_plan_count_kernel<\(PlanForm\)1>", must=("UCGABAR_WAIT",)),
    Row(r"mla_write_kernel<.*>", must=("ACQBULK", "PREEXIT")),
    Row(r"mla_write_kernel<.*, true>", must=("LDG.E.128", "STG.E.128")),
    # Scores of 64 heads and 64 rows, then half of the values a warpgroup, which are K of the product and lie in rows.
    Row(
        r"mla_decode_kernel<.*>",
        must=("ACQBULK", "PREEXIT", "UTMALDG.3D", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "USETMAXREG", *_bf16(64)),
        never=("MUFU.EX2", "ATOM", "RED"),
    ),
    *(
        Row(rf"mla_decode_kernel<(\(unsigned int\))?{half}>", must=(*_bf16(half), "LDG.E.128", "STG.E.128"))
        for half in (64, 128, 256)
    ),
    Row(r"mla_merge_kernel<.*>", must=("ACQBULK", "PREEXIT", "LDG.E.128"), never=("BAR",)),
    # Queries: weights by TMA, prefetched, or copied; stores of 16 bytes, transposed through shared memory.
    Row(
        r"mla_query_kernel<.*>",
        must=("ACQBULK", "PREEXIT", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "CCTL.E.PF2", "STSM"),
        never=("QGMMA",),
    ),
    Row(
        r"mla_query_kernel<.*, true>",
        must=("UTMALDG.3D", "LDG.E.128", "STG.E.128"),
        never=("LDG.E.U16", "STG.E.U16"),
    ),
    *(Row(rf"mla_query_kernel<{width}, .*>", must=_bf16(width)) for width in (8, 16, 32, 64)),
    Row(r"(rms_norm|embed_rows|add_rows|silu_and_mul)_kernel<.*>", must=("ACQBULK", "PREEXIT")),
    Row(
        r"((rms_norm|add_rows|silu_and_mul)_kernel<.*, |embed_rows_kernel<)true>",
        must=("LDG.E.128", "STG.E.128"),
        never=("LDG.E.U16", "STG.E.U16"),
    ),
    Row(r"(embed_rows|add_rows|silu_and_mul)_kernel<.*>", never=("BAR",)),
    # The bookkeeping of a decode step: blocks wait for no other, and need no atomics.
    Row(r"(pack_rows|advance_lengths)_kernel", must=("ACQBULK", "PREEXIT"), never=("ATOM", "ATOMG", "ATOMS", "REDG")),
    # The argmax of a row: 16 bytes a load, two reductions of a warp, results through distributed shared memory.
    Row(
        r"verify_greedy_kernel",
        must=("ACQBULK", "PREEXIT", "LDG.E.128", "REDUX.MAX", "REDUX.MIN", "UCGABAR_WAIT"),
        never=("ATOM", "ATOMG", "ATOMS", "REDG"),
    ),
    # Draws: sums in float64 in a fixed order, shown through distributed shared memory.
    Row(
        r"(sample_tokens|verify_sampled|filter_drafts)_kernel",
        must=("ACQBULK", "PREEXIT", "LDG.E.128", "DADD", "UCGABAR_WAIT"),
        never=("ATOM", "ATOMG", "ATOMS", "REDG"),
    ),
    # Permute and combine: 16 bytes at a time, and no barrier of the block.
    Row(r"moe_(permute|permute_quant|combine)_kernel<.*>", must=("ACQBULK", "PREEXIT"), never=("BAR",)),
    Row(r"moe_permute_quant_kernel<.*>", must=("F2FP.SATFINITE.E4M3.F32",)),
    Row(
        r"moe_(permute_quant|combine)_kernel<WideRows<.*>>|moe_permute_kernel<true>",
        must=("LDG.E.128", "STG.E.128"),
        never=("LDG.E.U16", "STG.E.U8", "STG.E.U16"),
    ),
    Row(r"moe_combine_kernel<.*>", never=("FFMA",)),
    # Sums in the switch, in float32, and strong stores to all ranks; nothing of it without NVLS.
    Row(r"exchange_kernel<\(Collective\)[01], F32, Mul.*>", must=("LDGMC.E.ADD.F32x4.RN.STRONG.SYS",)),
    Row(r"exchange_kernel<\(Collective\)[01], Halves<BFl.*, Mul.*>", must=("LDGMC.E.F32ADD.BF16x8.RN.STRONG.SYS",)),
    Row(r"exchange_kernel<\(Collective\)[01], Halves<Fl.*, Mul.*>", must=("LDGMC.E.F32ADD.F16x8.RN.STRONG.SYS",)),
    Row(
        r"exchange_kernel<\(Collective\)[02], .*MulticastSync>", must=("STG.E.128.STRONG.SYS", "REDG.E.ADD.STRONG.SYS")
    ),
    Row(r"exchange_kernel<.*PeerSync>|all_reduce_norm_kernel<.*PeerSync>", never=("LDGMC", "REDG")),
    Row(r"all_reduce_norm_kernel<.*MulticastSync>", must=("STG.E.128.STRONG.SYS", "F2FP.SATFINITE.E4M3.F32")),
    Row(
        r"low_latency_(norm_)?kernel<.*, true>", must=("STG.E.64.STRONG.SYS", "LDG.E.128.STRONG.SYS"), never=("LDGMC",)
    ),
    Row(
        r"low_latency_(norm_)?kernel<.*, false>",
        must=("STG.E.128.STRONG.SYS", "LDG.E.128.STRONG.SYS"),
        never=("LDGMC",),
    ),
    # Expert parallelism: rows move 16 bytes at a time, and a warp spins on nothing but a strong load.
    Row(
        r"ep_(dispatch_kernel<.*>|combine_kernel)",
        must=("LDG.E.128", "STG.E.128", "ATOMG.E.ADD.STRONG.GPU", "STG.E.STRONG.SYS"),
        never=("LDG.E.U16", "STG.E.U8", "STG.E.U16", "LDGMC", "REDG"),
    ),
    Row(r"ep_dispatch_kernel<true>", must=("F2FP.SATFINITE.E4M3.F32",)),
    Row(r"ep_dispatch_kernel<false>", never=("F2FP",)),
    Row(r"ep_counts_kernel", must=("STG.E.64.STRONG.SYS", "LDG.E.64.STRONG.SYS"), never=("LDGMC", "REDG")),
    Row(r"ep_wait_kernel", must=("LDG.E.STRONG.SYS",), never=("BAR",)),
    # The router: three terms of w, which pieces add up through distributed shared memory.
    Row(
        r"router_gemm_kernel<.*>",
        must=("ACQBULK", "PREEXIT", "UTMALDG.3D", "UCGABAR_WAIT", "SYNCS.PHASECHK.TRANS64.TRYWAIT"),
        never=("QGMMA",),
    ),
    *(Row(rf"router_gemm_kernel<{width}, .*>", must=_bf16(width)) for width in (8, 16, 32, 64, 128)),
    # Products for every bucket of tokens, a pipeline of mbarriers, stores transposed through shared memory in bulk.
    Row(
        r"moe_(swiglu_)?gemm_kernel<.*>",
        must=("ACQBULK", "PREEXIT", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "STSM", "UBLKCP.G.S"),
    ),
    Row(r"moe_(swiglu_)?gemm_kernel<\(Operand\)0, .*>", must=_fp8(8, 16, 24, 32), never=("HGMMA",)),
    Row(r"moe_(swiglu_)?gemm_kernel<\(Operand\)1, .*>", must=_bf16(8, 16, 24, 32), never=("QGMMA", "CCTL.E.PF2")),
    Row(
        r"moe_(swiglu_)?gemm_kernel<\(Operand\)0, (256|128), .*>",
        must=("USETMAXREG", "CCTL.E.PF2", *_fp8(48, 64, 96, 128)),
    ),
    Row(r"moe_(swiglu_)?gemm_kernel<\(Operand\)1, (256|128), .*>", must=("USETMAXREG", *_bf16(48, 64, 96, 128))),
    Row(r"moe_(swiglu_)?gemm_kernel<\(Operand\).*, \d+, true.*>", must=("UTMALDG.3D",)),
    # Clusters of a split: sums through distributed shared memory, and a barrier. Nothing of it without one.
    Row(r"moe_gemm_kernel<.*, 32, .*, \(Cluster\)1>", must=("STAS.128", "UCGABAR_WAIT")),
    Row(r"moe_gemm_kernel<.*, \(Cluster\)0>", never=("STAS", "UCGABAR_WAIT", "UTMALDG.3D.MULTICAST")),
    # Pairs: tokens for both blocks, remote arrivals.
    Row(
        r"moe_gemm_kernel<.*, 256, .*, \(Cluster\)2>",
        must=("UTMALDG.3D.MULTICAST", "SYNCS.ARRIVE.TRANS64.RED", "UCGABAR_WAIT"),
    ),
    # Nobody waits for global memory of the whole GPU, not even when a cluster ends.
    Row(r"moe_(swiglu_)?gemm_kernel<.*>", never=("MEMBAR.ALL.GPU",)),
    # With SwiGLU h is e4m3 or bf16.
    Row(r"moe_swiglu_gemm_kernel<.*>", must=("F2FP.SATFINITE.E4M3.F32", "F2FP.BF16.F32.PACK_AB")),
)


def check_opcodes(opcodes: dict[str, Iterable[str]], table: tuple[Row, ...] = TABLE) -> list[str]:
    """What is wrong with kernels, given by short name with the opcodes in each."""
    problems = []
    for row in table:
        fitting = sorted(name for name in opcodes if re.fullmatch(row.kernels, name))
        if not fitting:
            problems.append(f"no kernel is called {row.kernels}: correct or remove that row")
        for name in fitting:
            for wanted in row.must:
                if not any(_is(opcode, wanted) for opcode in opcodes[name]):
                    problems.append(f"{name}: no {wanted}")
            for unwanted in row.never:
                if any(_is(opcode, unwanted) for opcode in opcodes[name]):
                    problems.append(f"{name}: has {unwanted}")
    return problems


def only_in_general(names: Iterable[str], table: tuple[Row, ...] = TABLE) -> list[str]:
    """Kernels that match only the row for all kernels."""
    rows = [row.kernels for row in table if row.kernels != ".*"]
    return sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in rows))


def _is(opcode: str, named: str) -> bool:
    return opcode == named or opcode.startswith(named + ".")
