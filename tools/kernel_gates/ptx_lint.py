"""Finds uses of wgmma that the ISA leaves undefined, in the PTX that nvcc made: source order is not PTX order.

A product (wgmma.mma_async) runs beside the instructions after it, until a wgmma.wait_group covers the group it was
committed to. Until then nothing but another product may touch its accumulators or overwrite its fragments of A. A
wgmma.fence must stand between any access to these registers and the product.
https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-fence

The analysis follows every path through branches and loops; what holds on one path only is a finding. Approximations:
a guarded instruction both runs and does not; branch conditions are not compared, so a path that cannot be taken
counts; the first operand is the one an instruction writes; products of different shapes may share accumulators.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NamedTuple

from .ptx import Statement, functions

_REGISTER = re.compile(r"%[a-z]+\d+\b")


@dataclass(frozen=True)
class Finding:
    function: str
    line: int
    problem: str
    statement: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}: {self.statement}"


class Flight(NamedTuple):
    """What may be true before a statement. Sets of registers are the bits of an integer.

    accumulators and fragments are those of products in flight: [0] not committed, [i] in the i-th newest group.
    """

    touched: int  # accessed since the last fence
    accumulators: tuple[int, ...]
    fragments: tuple[int, ...]

    def join(self, other: Flight) -> Flight:
        flying = (tuple(map(or_, ours, theirs)) for ours, theirs in zip(self[1:], other[1:], strict=True))
        return Flight(self.touched | other.touched, *flying)


class Step(NamedTuple):
    """A statement in terms of registers: what it writes and reads or, of a product, accumulates in and reads as A."""

    kind: str  # product, fence, commit, wait, end, other
    writes: int
    reads: int
    groups: int  # of a wait: groups that may stay pending


def lint(text: str) -> list[Finding]:
    """The findings in a file of PTX, one a statement."""
    return [finding for name, body in functions(text) for finding in _lint_function(name, body)]


def _lint_function(name: str, body: list[Statement]) -> list[Finding]:
    products = [s for s in body if s.opcode.startswith("wgmma.mma_async")]
    if not products:
        return []
    registers = sorted({r for s in products for part in _product_operands(s) for r in _REGISTER.findall(part)})
    bits = {register: 1 << i for i, register in enumerate(registers)}
    steps = [_step(statement, bits) for statement in body]
    deepest = 1 + max(step.groups for step in steps)

    states: dict[int, Flight] = {0: Flight((1 << len(bits)) - 1, (0,) * (deepest + 1), (0,) * (deepest + 1))}
    todo = [0]
    while todo:
        i = todo.pop()
        after = _after(steps[i], states[i])
        if body[i].guard:
            after = after.join(states[i])
        for j in body[i].following:
            joined = states[j].join(after) if j in states else after
            if states.get(j) != joined:
                states[j] = joined
                todo.append(j)

    def names(mask: int) -> str:
        found = [register for register in registers if mask & bits[register]]
        return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")

    problems = ((i, _problem(steps[i], states[i], names)) for i in sorted(states))
    return [Finding(name, body[i].line, problem, str(body[i])[:100]) for i, problem in problems if problem]


def _product_operands(statement: Statement) -> tuple[str, str]:
    """The accumulators, and A if it is in registers."""
    lists = re.findall(r"\{([^}]*)\}", statement.operands)
    return lists[0], lists[1] if len(lists) > 1 else ""


def _step(statement: Statement, bits: dict[str, int]) -> Step:
    def mask(text: str) -> int:
        return reduce(or_, (bits.get(register, 0) for register in _REGISTER.findall(text)), 0)

    kind = statement.opcode.split(".")[:2]
    if kind == ["wgmma", "mma_async"]:
        accumulators, fragment = _product_operands(statement)
        return Step("product", mask(accumulators), mask(fragment), 0)
    if kind[0] == "wgmma":
        groups = int(statement.operands) if kind[1] == "wait_group" else 0
        return Step({"fence": "fence", "commit_group": "commit", "wait_group": "wait"}[kind[1]], 0, 0, groups)
    target, rest = re.match(r"(\{[^}]*\}|\[[^\]]*\]|[^,]*)(.*)", statement.operands, re.DOTALL).groups()
    if target.startswith("["):
        target, rest = "", statement.operands
    return Step("end" if kind[0] in ("ret", "exit") else "other", mask(target), mask(rest), 0)


def _after(step: Step, state: Flight) -> Flight:
    touched, accumulators, fragments = state
    used = step.writes | step.reads
    if step.kind == "product":  # what it lacks is reported once, so it counts as fenced from here on
        started = [(ages[0] | new, *ages[1:]) for ages, new in ((accumulators, step.writes), (fragments, step.reads))]
        return Flight(touched & ~used, *started)
    if step.kind == "fence":
        return state._replace(touched=0)
    if step.kind == "commit":
        return Flight(touched, *((0, *ages[:-2], ages[-2] | ages[-1]) for ages in state[1:]))
    if step.kind == "wait":
        kept = step.groups + 1
        return Flight(touched, *(ages[:kept] + (0,) * (len(ages) - kept) for ages in state[1:]))
    return state._replace(touched=touched | used)


def _problem(step: Step, state: Flight, names: Callable[[int], str]) -> str:
    accumulators, fragments = (reduce(or_, ages) for ages in state[1:])
    if step.kind == "product":
        if unfenced := (step.writes | step.reads) & state.touched:
            return f"no wgmma.fence between the last use of {names(unfenced)} and this product"
        if shared := (step.reads & accumulators) | (step.writes & fragments):
            return f"{names(shared)} of a product in flight is used in another role"
    if step.kind == "end" and accumulators:
        return f"ends with a product into {names(accumulators)} in flight"
    if step.kind == "other":
        if touched := (step.writes | step.reads) & accumulators:
            return f"touches {names(touched)}, the accumulator of a product in flight"
        if written := step.writes & fragments:
            return f"overwrites {names(written)}, which a product in flight reads as A"
    return ""
