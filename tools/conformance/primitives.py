"""Which primitives cuda/ptx has, and what stands behind each: emulated, conformance cases, results of a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PTX = ROOT / "cuda" / "ptx"
EMULATED = ROOT / "cpp" / "emu" / "ptx"
FUNCTION = re.compile(r"^LC_DEVICE (?:constexpr )?[\w:]+ (\w+)\(", re.MULTILINE)

# Primitives (* for any letters) or whole files of cuda/ptx without a conformance case, and why.
NO_CASE: dict[str, str] = {
    "multimem.cuh": "needs multicast memory, so several GPUs",
    "fence_proxy_alias": "needs two addresses of the same memory",
}

HOW_TO_ADD = (
    "add a case to its chapter in tests/conformance/*.cuh and name the primitive in cases.add (docs/hardware.md, "
    '"Adding a case"), or, if it cannot have one, put it and the reason in NO_CASE of tools/conformance/primitives.py'
)


class Row(NamedTuple):
    name: str
    file: str  # in cuda/ptx
    emulated: bool
    cases: tuple[str, ...]
    evidence: tuple[str, ...]  # golden files that have every one of its cases
    reason: str  # why it has no case


def wrapped() -> dict[str, str]:
    """Name -> file of every function of cuda/ptx that kernels may call."""
    found = {}
    for path in sorted(PTX.glob("*.cuh")):
        text = re.sub(r"namespace detail \{.*?\}  // namespace detail\n", "", path.read_text(), flags=re.DOTALL)
        found |= dict.fromkeys(FUNCTION.findall(text), path.name)
    return found


def emulated_names(names: Iterable[str]) -> set[str]:
    """Those defined in cpp/emu/ptx, as a function or through one of its macros."""
    text = "".join(path.read_text() for path in EMULATED.glob("*.h"))
    return {name for name in names if re.search(rf"(?<![\w:.]){name}\s*[(,]", text)}


def table(cases: Iterable, golden: Iterable[dict]) -> list[Row]:
    names = wrapped()
    emulated = emulated_names(names)
    shown: dict[str, list[str]] = {}
    for case in cases:
        for primitive in case.primitives:
            shown.setdefault(primitive, []).append(case.name)
    files = list(golden)
    rows = []
    for name, file in names.items():
        own = tuple(shown.get(name, ()))
        evidence = tuple(one["file"] for one in files if own and all(case in one["cases"] for case in own))
        reason = next((why for key, why in NO_CASE.items() if key == file or fnmatch(name, key)), "")
        rows.append(Row(name, file, name in emulated, own, evidence, reason))
    return rows


def problems(rows: list[Row], cases: Iterable) -> list[str]:
    """What makes the table incomplete or untrue, each with its remedy."""
    found = []
    for row in rows:
        if not row.emulated:
            found.append(f"{row.name} of cuda/ptx/{row.file} is not in cpp/emu/ptx: add it (docs/emulator.md)")
        if row.cases and row.name in NO_CASE:
            found.append(f"{row.name} has the case {row.cases[0]}: remove it from NO_CASE")
    without = [f"{row.name} ({row.file})" for row in rows if not row.cases and not row.reason]
    if without:
        found.append(f"no conformance case: {', '.join(without)}. For each: {HOW_TO_ADD}")
    known = {row.name for row in rows}
    for case in cases:
        found += [
            f"case {case.name} names {p}, which cuda/ptx does not have" for p in case.primitives if p not in known
        ]
    files = {row.file for row in rows}
    for key in NO_CASE:
        if key not in files and not any(fnmatch(name, key) for name in known):
            found.append(f"NO_CASE names {key}, not in cuda/ptx")
    return found


def summary(rows: list[Row]) -> list[str]:
    """For the end of a test run."""
    with_case = [row for row in rows if row.cases]
    unproven = [row.name for row in rows if not row.evidence]
    lines = [
        f"{len(rows)} primitives: {sum(row.emulated for row in rows)} emulated, {len(with_case)} with conformance "
        f"cases, {len(rows) - len(unproven)} with results of a GPU"
    ]
    if len(unproven) == len(rows):
        lines.append("unproven on hardware: all of them (no golden files in tests/conformance/golden)")
    elif unproven:
        lines.append("unproven on hardware: " + ", ".join(unproven))
    without = [row.name for row in rows if not row.cases]
    if without:
        lines.append("no conformance case: " + ", ".join(without))
    return lines
