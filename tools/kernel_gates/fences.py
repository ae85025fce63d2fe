"""The collectives' machine code: one fence for each barrier that releases, and loads of a batch in a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .loops import Instruction

_FENCE, _ARRIVAL = "MEMBAR.ALL.SYS", ("REDG.E.ADD.STRONG.SYS", "STG.E.STRONG.SYS")
_NEAR = 8  # instructions between a fence and what it releases


class Shape(NamedTuple):
    """Of the kernels whose whole short name matches: fences of the whole system, and loads through the switch that
    follow each other with no store between."""

    kernels: str
    fences: int
    batch: int = 0


# A kernel that may copy its input first releases at both barriers, the others at the second alone. Each place that
# reports a failure releases its record: behind each barrier, where row counts are read, where lines are awaited.
SHAPES = (
    Shape(r"exchange_kernel<\(Collective\)0, .*MulticastSync>", 2 + 2, batch=4),
    Shape(r"exchange_kernel<\(Collective\)1, .*MulticastSync>", 2 + 3, batch=4),
    Shape(r"exchange_kernel<\(Collective\)2, .*MulticastSync>", 1 + 3),
    Shape(r"exchange_kernel<\(Collective\)0, .*PeerSync>", 2 + 2),
    Shape(r"exchange_kernel<\(Collective\)1, .*PeerSync>", 2 + 3),
    Shape(r"exchange_kernel<\(Collective\)2, .*PeerSync>", 1 + 3),
    Shape(r"all_reduce_norm_kernel<.*MulticastSync>", 2 + 2, batch=4),
    Shape(r"all_reduce_norm_kernel<.*PeerSync>", 2 + 2),
    Shape(r"low_latency_kernel<.*>", 1),
    # Rows are released once, for all blocks, and the record of a failure once; lines and waits release nothing else.
    Shape(r"ep_(dispatch_kernel<.*>|combine_kernel)", 1 + 1),
    Shape(r"ep_counts_kernel", 4),
    Shape(r"ep_wait_kernel", 1),
)


def longest_batch(code: Sequence[Instruction]) -> int:
    """The most loads through the switch that follow each other with no store between."""
    longest = current = 0
    for instruction in code:
        if instruction.opcode.startswith("LDGMC"):
            current += 1
            longest = max(longest, current)
        elif instruction.opcode.startswith("STG"):
            current = 0
    return longest


def check_fences(code: dict[str, Sequence[Instruction]], shapes: Iterable[Shape] = SHAPES) -> list[str]:
    """What is wrong with kernels, given by short name."""
    problems = []
    for shape in shapes:
        fitting = sorted(name for name in code if re.fullmatch(shape.kernels, name))
        if not fitting:
            problems.append(f"no kernel is called {shape.kernels}: correct or remove that row")
        for name in fitting:
            opcodes = [instruction.opcode for instruction in code[name]]
            fences = [i for i, opcode in enumerate(opcodes) if opcode == _FENCE]
            if len(fences) != shape.fences:
                problems.append(f"{name}: {len(fences)} fences of the whole system, expected {shape.fences}")
            problems += [
                f"{name}: a fence of the whole system that no arrival and no record follows"
                for i in fences
                if not set(_ARRIVAL) & set(opcodes[i : i + _NEAR])
            ]
            if (batch := longest_batch(code[name])) < shape.batch:
                problems.append(f"{name}: {batch} loads through the switch in a row, expected {shape.batch}")
    return problems
