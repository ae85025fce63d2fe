"""In the emulator every primitive of cuda/ptx does what the ISA specifies and, where recorded, what a GPU did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import build_emulator
import primitives_page
from conformance import golden, library, primitives
from conformance.library import Library, first_difference
from cuda_tools import NVCC
from support import summary

SCHEDULES = [(1, 0), (2, 1), (3, 2)]  # (seed, policy): random, asynchronous work first, last


@pytest.fixture(scope="module")
def emulated() -> Library:
    return Library(build_emulator.build_tests() / "libemu_conformance.so")


@pytest.fixture(scope="module")
def outcomes(emulated: Library) -> dict[str, list[library.Outcome]]:
    return {case.name: [emulated.run(case, *schedule) for schedule in SCHEDULES] for case in emulated.cases()}


def test_the_emulator_does_what_the_isa_says(outcomes: dict[str, list[library.Outcome]]) -> None:
    wrong = {}
    for name, runs in outcomes.items():
        for outcome in runs:
            if outcome.error or not outcome.actual or outcome.actual != outcome.expected:
                wrong[name] = outcome.error or first_difference(outcome.actual, outcome.expected) or "no output"
    assert not wrong, "\n".join(f"{name}: {text}" for name, text in wrong.items())


@pytest.mark.parametrize("recorded", golden.read() or [None], ids=lambda g: g["file"] if g else "none")
def test_the_emulator_does_what_a_gpu_did(outcomes: dict[str, list[library.Outcome]], recorded: dict | None) -> None:
    if recorded is None:
        pytest.skip("no results of a GPU in tests/conformance/golden: docs/hardware.md says how to get them")
    stale = [name for name in recorded["cases"] if name not in outcomes]
    assert not stale, f"cases that are no more: record {recorded['file']} again or remove them: {stale}"
    wrong = {
        name: first_difference(outcomes[name][0].actual, golden.unpack(packed))
        for name, packed in recorded["cases"].items()
        if outcomes[name][0].actual != golden.unpack(packed)
    }
    assert not wrong, f"{recorded['device']}, driver {recorded['driver']}:\n" + "\n".join(
        f"{name}: {text}" for name, text in wrong.items()
    )


def test_every_primitive_is_emulated_and_has_a_case(emulated: Library, request: pytest.FixtureRequest) -> None:
    cases = emulated.cases()
    rows = primitives.table(cases, golden.read())
    request.config.stash[summary.PRIMITIVES] = primitives.summary(rows)
    assert not (found := primitives.problems(rows, cases)), "\n".join(found)


def test_the_table_of_primitives_in_the_docs(emulated: Library) -> None:
    rows = primitives.table(emulated.cases(), golden.read())
    text = primitives_page.PAGE.read_text(encoding="utf-8")
    assert text == primitives_page.renewed(text, rows), (
        "docs/emulator.md is stale: python tools/pages/primitives_page.py"
    )
    assert [line.split("`")[1] for line in primitives_page.render(rows).splitlines()[2:]] == [row.name for row in rows]


def test_problems_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [library.Case(0, "a/one", ("x", "y"), ""), library.Case(1, "a/two", ("y", "gone"), "")]
    monkeypatch.setattr(primitives, "wrapped", lambda: dict.fromkeys(("x", "y", "new", "late_cluster"), "f.cuh"))
    monkeypatch.setattr(primitives, "emulated_names", lambda names: {"x", "y", "late_cluster"})
    monkeypatch.setattr(primitives, "NO_CASE", {"*_cluster": "later", "x": "none", "absent": "none"})
    rows = primitives.table(cases, [{"file": "h100.json", "cases": {"a/one": ""}}])
    assert [(row.name, row.cases, row.evidence, row.reason) for row in rows] == [
        ("x", ("a/one",), ("h100.json",), "none"),
        ("y", ("a/one", "a/two"), (), ""),
        ("new", (), (), ""),
        ("late_cluster", (), (), "later"),
    ]
    found = "\n".join(primitives.problems(rows, cases))
    for text in (
        "new of cuda/ptx/f.cuh is not in cpp/emu/ptx",
        "no conformance case: new (f.cuh). For each: add a case to its chapter in tests/conformance/*.cuh",
        "x has the case a/one: remove it from NO_CASE",
        "case a/two names gone, which cuda/ptx does not have",
        "NO_CASE names absent, not in cuda/ptx",
    ):
        assert text in found
    assert "late_cluster" not in found
    summary = primitives.summary(rows)
    assert summary[0] == "4 primitives: 3 emulated, 2 with conformance cases, 1 with results of a GPU"
    assert summary[1:] == ["unproven on hardware: y, new, late_cluster", "no conformance case: new, late_cluster"]


@pytest.mark.skipif(NVCC is None, reason="nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda")
def test_the_cases_compile_for_a_gpu(emulated: Library, tmp_path: Path) -> None:
    """nvcc compiles the same cases without a warning, a ptxas advisory, a stack frame or a spill."""
    path, printed = library.build_for_device(tmp_path)
    kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", printed)
    assert len(kernels) > 10 and set(kernels) == {("0", "0", "0")}
    told = [line for line in printed.splitlines() if re.search(r"warning|error|C7\d{3}", line)]
    assert not told, "\n".join(told)
    assert [case[1:] for case in Library(path).cases()] == [case[1:] for case in emulated.cases()]
