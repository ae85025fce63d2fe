"""The inner loops of matrix products and attention: instructions of a stage, that is of 128 bytes of K."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# (kernels, a regular expression of the whole short name; the most instructions by form). A form is the width of the
# products in tokens and how many of 64 rows of weights a stage has. What nvcc 13.0 gives is 0 to 10 % below.
LIMITS = (
    (r"moe_gemm_kernel<\(Operand\)0, 32, .*>", {"8": 50, "16": 54, "24": 59, "32": 64}),
    (
        r"moe_gemm_kernel<\(Operand\)0, 256, .*>",
        {"8": 52, "16": 58, "24": 62, "32": 67, "48": 76, "64": 86, "96": 108, "128": 130,
         "2 x 96": 185, "2 x 128": 235},
    ),
    (r"moe_swiglu_gemm_kernel<\(Operand\)0, 32, .*>", {"2 x 8": 66, "2 x 16": 80, "2 x 24": 92, "2 x 32": 105}),
    (
        r"moe_swiglu_gemm_kernel<\(Operand\)0, 128, .*>",
        {"2 x 8": 66, "2 x 16": 80, "2 x 24": 92, "2 x 32": 104, "2 x 48": 130, "2 x 64": 155, "2 x 96": 205,
         "2 x 128": 260},
    ),
    (r"moe_gemm_kernel<\(Operand\)1, 32, .*>", {"8": 44, "16": 46, "24": 52, "32": 56}),
    (
        r"moe_gemm_kernel<\(Operand\)1, 256, .*>",
        {"8": 48, "16": 52, "24": 56, "32": 60, "48": 66, "64": 74, "96": 91, "128": 108, "2 x 96": 155,
         "2 x 128": 196},
    ),
    (r"moe_swiglu_gemm_kernel<\(Operand\)1, 32, .*>", {"2 x 8": 58, "2 x 16": 66, "2 x 24": 74, "2 x 32": 82}),
    (
        r"moe_swiglu_gemm_kernel<\(Operand\)1, 128, .*>",
        {"2 x 8": 56, "2 x 16": 64, "2 x 24": 72, "2 x 32": 80, "2 x 48": 98, "2 x 64": 115, "2 x 96": 149,
         "2 x 128": 190},
    ),
    (r"mla_decode_kernel<.*>", {"64": 34}),
)  # fmt: skip
_PRODUCTS = 4  # of 32 bytes of K, in a stage


class Instruction(NamedTuple):
    address: int
    opcode: str
    target: int | None  # of a branch


def stage_instructions(code: Sequence[Instruction]) -> dict[str, float]:
    """Form -> instructions of a stage, of each innermost loop with products."""
    jumps = [(i.target, i.address) for i in code if i.opcode.startswith("BRA") and i.target and i.target < i.address]
    loops: dict[tuple[int, int], list[str]] = {}
    for product in (i for i in code if i.opcode.startswith(("QGMMA", "HGMMA"))):
        around = [jump for jump in jumps if jump[0] <= product.address <= jump[1]]
        if around:
            loops.setdefault(min(around, key=lambda jump: jump[1] - jump[0]), []).append(product.opcode)
    found = {}
    for start, end in loops:
        if any(start <= a and b <= end and (a, b) != (start, end) for a, b in loops):
            continue  # the loop over tiles, with the products before and behind an inner loop
        body = [i.opcode for i in code if start <= i.address <= end]
        # mla_decode has waited for a page before it scores it, 128 bytes of each row in a turn.
        stages = sum(opcode.startswith("SYNCS.PHASECHK") for opcode in body) or 1
        passes = len(loops[start, end]) // (_PRODUCTS * stages)
        width = re.match(r"[QH]GMMA\.64x(\d+)x", loops[start, end][0])
        found[f"{passes} x {width[1]}" if passes > 1 else width[1]] = len(body) / stages
    return found


def check_loops(loops: dict[str, dict[str, float]], limits: Iterable[tuple[str, dict[str, int]]] = LIMITS) -> list[str]:
    """What is wrong with kernels, given by short name with `stage_instructions` of each."""
    problems = []
    for pattern, most in limits:
        fitting = sorted(name for name in loops if re.fullmatch(pattern, name))
        if not fitting:
            problems.append(f"no kernel is called {pattern}: correct or remove that row")
        for name in fitting:
            if gone := most.keys() ^ loops[name].keys():
                problems.append(f"{name}: forms of the inner loop differ from those of the table: {sorted(gone)}")
            problems += [
                f"{name}: {found:g} instructions a stage at {form} tokens, expected at most {most[form]}"
                for form, found in loops[name].items()
                if found > most.get(form, found)
            ]
    return problems
