"""The register baseline: how many registers nvcc gave each kernel instance when somebody last looked."""

from __future__ import annotations

import re
from pathlib import Path

BASELINE = Path(__file__).resolve().parents[2] / "tests" / "data" / "kernel_registers.txt"
RENEW = "python tools/check_kernels.py --renew"
_HEAD = f"""\
# Registers per thread of each kernel instance, under its template: registers, template arguments.
# Written by {RENEW}
"""


def render(nvcc: str, registers: dict[str, int]) -> str:
    lines, template = [_HEAD + f"nvcc {nvcc}"], ""
    for name in sorted(registers, key=_natural):
        kernel, arguments = _split(name)
        if kernel != template:
            lines += ["", kernel]
            template = kernel
        lines.append(f"  {registers[name]:3}  {arguments}".rstrip())
    return "\n".join(lines) + "\n"


def parse(text: str) -> tuple[str, dict[str, int]]:
    """The version of nvcc and name -> registers."""
    nvcc, template = "", ""
    registers = {}
    for line in text.splitlines():
        if entry := re.fullmatch(r" +(\d+)(?:  (.+))?", line):
            registers[f"{template}<{entry[2]}>" if entry[2] else template] = int(entry[1])
        elif line.startswith("nvcc "):
            nvcc = line.removeprefix("nvcc ")
        elif not line.startswith("#"):
            template = line
    return nvcc, registers


def diff(old: dict[str, int], new: dict[str, int]) -> list[str]:
    lines = []
    for name in sorted(old.keys() | new.keys(), key=_natural):
        if name not in new:
            lines.append(f"{name}: removed (had {old[name]})")
        elif name not in old:
            lines.append(f"{name}: added with {new[name]}")
        elif old[name] != new[name]:
            lines.append(f"{name}: {old[name]} -> {new[name]}")
    return lines


def _split(name: str) -> tuple[str, str]:
    kernel, _, arguments = name.partition("<")
    return kernel, arguments.removesuffix(">")


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts numbers by value."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", name)]
