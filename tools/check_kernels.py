"""The compiler gates: what must hold of the compiled kernels and can be seen without a GPU. Exit 1 if it does not.

python tools/check_kernels.py              # the library beside the package, as ./run build leaves it
python tools/check_kernels.py LIBRARY.so   # another one; it must be in a build tree of this project (build/*/)
python tools/check_kernels.py --renew      # accept the registers as they are: writes tests/data/kernel_registers.txt
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cuda_tools import NVCC, PLACES
from kernel_gates import artefact, compilation
from kernel_gates.baseline import BASELINE, RENEW, diff, parse, render
from kernel_gates.fences import SHAPES, Shape, check_fences
from kernel_gates.loops import LIMITS, Instruction, check_loops, stage_instructions
from kernel_gates.opcodes import TABLE, Row, check_opcodes, only_in_general
from kernel_gates.ptx import ENTRY
from kernel_gates.ptx_lint import lint

FEWEST_REGISTERS = 168  # kFewestRegisters of cuda/gemm/layout.h
LIBRARY = compilation.ROOT / "python" / "longcat_ops" / "liblongcat_kernels.so"


@dataclass
class Verdict:
    gate: str
    problems: list[str]
    summary: str  # what was looked at

    def __str__(self) -> str:
        first = f"{'FAIL' if self.problems else 'ok  '}  {self.gate}: {self.summary}"
        return "\n".join([first, *(f"        {problem}" for problem in self.problems)])


class Library:
    """A compiled library, the compilations that made it, and its gates."""

    def __init__(self, path: Path, objects: Path | None = None) -> None:
        self.path = path
        self.resources = artefact.read_resources(path)
        self.names = artefact.short_names(self.resources)
        objects = objects or compilation.find_objects(path)
        self.compilations = compilation.read_compilations(objects) if objects else []

    @property
    def nvcc(self) -> str:
        return self.compilations[0].nvcc if self.compilations else "of an unknown version"

    @property
    def registers(self) -> dict[str, int]:
        return {self.names[symbol]: resources.registers for symbol, resources in self.resources.items()}

    @cached_property
    def code(self) -> dict[str, list[Instruction]]:
        return {self.names[symbol]: found for symbol, found in artefact.read_code(self.path).items()}

    @cached_property
    def opcodes(self) -> dict[str, Counter[str]]:
        return {name: Counter(i.opcode for i in code) for name, code in self.code.items()}

    def check_memory(self) -> Verdict:
        """No stack frame, no local memory. Spilled registers lie in the stack frame."""
        problems = [
            f"{self.names[symbol]}: {has.stack} bytes of stack, {has.local} of local memory"
            for symbol, has in self.resources.items()
            if has.stack or has.local
        ]
        return Verdict("stack and spills", problems, f"{len(self.resources)} kernels")

    def check_registers(self, baseline: Path = BASELINE) -> Verdict:
        """Registers as in the baseline. Another nvcc allots other numbers; then a change is only shown."""
        if not baseline.exists():
            return Verdict("registers", [f"there is no {baseline}; make it: {RENEW}"], "no baseline")
        nvcc, old = parse(baseline.read_text())
        changes = diff(old, self.registers)
        if nvcc == self.nvcc or old.keys() != self.registers.keys():
            remedy = [f"if that is meant: {RENEW} and commit {baseline.name}"] if changes else []
            return Verdict("registers", changes + remedy, f"{len(self.resources)} kernels, nvcc {self.nvcc}")
        summary = f"not compared: this is nvcc {self.nvcc}, the baseline was made with {nvcc}"
        return Verdict("registers", [], "\n        ".join([summary, *changes]))

    def check_handed_over(self) -> Verdict:
        """Where consumers take registers over, there are enough of them, whichever nvcc it was: with fewer they would
        wait forever."""
        takers = {name for name, code in self.opcodes.items() if any(o.startswith("USETMAXREG") for o in code)}
        problems = [
            f"{name}: {self.registers[name]} registers, expected at least {FEWEST_REGISTERS} (kFewestRegisters)"
            for name in sorted(takers)
            if self.registers[name] < FEWEST_REGISTERS
        ]
        return Verdict("registers handed over", problems, f"{len(takers)} kernels")

    def check_loops(self, limits: tuple[tuple[str, dict[str, int]], ...] = LIMITS) -> Verdict:
        """Instructions of a stage. Another nvcc is only shown."""
        loops = {name: stage_instructions(code) for name, code in self.code.items()}
        problems = check_loops(loops, limits)
        summary = f"{sum(map(len, loops.values()))} loops"
        if BASELINE.exists() and parse(BASELINE.read_text())[0] != self.nvcc:
            return Verdict("inner loops", [], "\n        ".join([f"{summary}, by another nvcc", *problems]))
        return Verdict("inner loops", problems, summary)

    def check_fences(self, shapes: tuple[Shape, ...] = SHAPES) -> Verdict:
        return Verdict("collectives", check_fences(self.code, shapes), f"{len(shapes)} kinds")

    def check_notes(self) -> Verdict:
        """ptxas left wgmma and setmaxnreg as they were written. Its output is on record for every kernel."""
        problems = [f"{c.source}: {note}" for c in self.compilations for note in c.notes]
        known = {symbol for c in self.compilations for symbol in ENTRY.findall(c.ptx)}
        if unknown := sorted(self.resources.keys() - known):
            problems.append(
                f"{len(unknown)} kernels, {self.names[unknown[0]]} the first, have no record of their compilation:"
                " build them here (./run build); in a tree from before there were records, remove its objects first"
            )
        return Verdict("notes of ptxas", problems, f"{len(self.compilations)} compilations")

    def check_ptx(self) -> Verdict:
        findings = [(c.source, finding) for c in self.compilations for finding in lint(c.ptx)]
        names = artefact.short_names({finding.function for _, finding in findings})
        problems = [f"{source}.o.ptx: {names[finding.function]}: {finding}" for source, finding in findings]
        products = sum(c.ptx.count("wgmma.mma_async") for c in self.compilations)
        return Verdict("wgmma in PTX", problems, f"{products} products")

    def check_code(self) -> Verdict:
        """Machine code of sm_90a, and nothing that a driver would compile for another device."""
        machine, ptx = artefact.list_code(self.path)
        problems = [f"machine code for another architecture: {name}" for name in machine if ".sm_90a." not in name]
        problems += [f"PTX: {name}" for name in ptx]
        return Verdict("only sm_90a", problems, f"{len(machine)} files of machine code, {len(ptx)} of PTX")

    def check_opcodes(self, table: tuple[Row, ...] = TABLE) -> Verdict:
        summary = f"{len(self.opcodes)} kernels, {len(table)} rows"
        if general := only_in_general(self.opcodes, table):
            summary += f"; no row of its own: {', '.join(dict.fromkeys(name.split('<')[0] for name in general))}"
        return Verdict("opcodes", check_opcodes(self.opcodes, table), summary)

    def gates(self) -> list[Callable[[], Verdict]]:
        return [
            self.check_memory,
            self.check_registers,
            self.check_handed_over,
            self.check_loops,
            self.check_fences,
            self.check_notes,
            self.check_ptx,
            self.check_code,
            self.check_opcodes,
        ]


def renew(library: Library, baseline: Path = BASELINE) -> None:
    old = parse(baseline.read_text())[1] if baseline.exists() else {}
    for change in diff(old, library.registers):
        print(change)
    baseline.write_text(render(library.nvcc, library.registers))
    print(f"wrote {baseline.name}: {len(library.registers)} kernels")


def why_no_kernels() -> str:
    if os.environ.get("LONGCAT_CUDA", "").upper() == "OFF":
        return "LONGCAT_CUDA=OFF"
    return "" if NVCC else f"nvcc was not found {PLACES}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY)
    parser.add_argument("--renew", action="store_true", help="write the register baseline first")
    args = parser.parse_args(arguments)
    if not args.library.exists():
        if args.library == LIBRARY and (reason := why_no_kernels()):
            print(f"compiler gates left out: {reason}, so there are no kernels")
            return 0
        print(f"{args.library} does not exist; build it: ./run build")
        return 1
    try:
        library = Library(args.library)
    except (FileNotFoundError, RuntimeError) as error:  # no cuobjdump, or nothing that it can read
        print(error)
        return 1
    if args.renew and library.compilations:  # else check_notes says what is missing
        renew(library)
    verdicts = [gate() for gate in library.gates()]
    print(*verdicts, sep="\n")
    return int(any(verdict.problems for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
