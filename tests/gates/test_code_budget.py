"""The budget of machine code: after linking, the build measures the kernels' code and fails if it is too large."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from check_kernels import LIBRARY
from kernel_gates import artefact, compilation
from support.kernel_compiler import ROOT, needs_cuobjdump

SCRIPT = ROOT / "cmake" / "code_budget.py"
RECORDS = {
    "cuda/gemm/moe_gemm.cu": {"seconds": 31.4, "kernels": {"_Z1a": 70000, "_Z1b": 30000}},
    "cuda/runtime.cu": {"seconds": 2.0, "kernels": {}},
    "cuda/of_old/gone.cu": {"seconds": 1.0, "kernels": {"_Z1c": 1}},
}


def measure(folder: Path, code: int, library: int) -> tuple[int, list[str]]:
    """Exit status and lines for 100,000 bytes of code and a library of 5,000, under budgets `code` and `library`."""
    for source, record in RECORDS.items():
        kept = folder / f"{source}.o.code"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(record))
    (folder / "lib.so").write_bytes(bytes(5000))
    command = [sys.executable, SCRIPT, folder / "lib.so", folder, code, library]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_within_the_budget(tmp_path: Path) -> None:
    status, lines = measure(tmp_path, 100_000, 5000)
    assert status == 0
    assert [" ".join(line.split()) for line in lines] == [
        "cuda/gemm/moe_gemm.cu 2 kernels 100,000 bytes 31.4 s",
        "cuda/runtime.cu 0 kernels 0 bytes 2.0 s",
        "machine code 100,000 bytes (at most 100,000), lib.so 5,000 (at most 5,000)",
    ]


@pytest.mark.parametrize(
    ("code", "library", "problem"),
    [
        (99_999, 5000, "the kernels' machine code has 100,000 bytes, and a budget of 99,999"),
        (100_000, 4999, "lib.so has 5,000 bytes, and a budget of 4,999"),
    ],
)
def test_an_exceeded_budget_fails(tmp_path: Path, code: int, library: int, problem: str) -> None:
    status, lines = measure(tmp_path, code, library)
    assert status == 1
    assert [line for line in lines if problem in line] == [f"longcat_ops: {problem} (CMakeLists.txt)."]
    assert lines[-1].startswith("  fix: ")


def test_the_build_asks() -> None:
    """After every link the build checks the two budgets of CMakeLists.txt."""
    text = " ".join((ROOT / "CMakeLists.txt").read_text().split())
    assert re.search(r"TARGET longcat_kernels POST_BUILD COMMAND [^)]*code_budget\.py [^)]*LONGCAT_CODE_BUDGET", text)


@pytest.mark.slow
@needs_cuobjdump
def test_the_records_are_right() -> None:
    """The recorded sizes are those that cuobjdump lists for the library, at 16 bytes an instruction."""
    objects = compilation.find_objects(LIBRARY) if LIBRARY.exists() else None
    if objects is None:
        pytest.skip("no kernels, or not of a build in this tree")
    listed = {symbol: 16 * len(code) for symbol, code in artefact.read_code(LIBRARY).items()}
    kept = [json.loads(path.read_text())["kernels"] for path in objects.rglob("*.o.code")]
    assert {symbol: size for kernels in kept for symbol, size in kernels.items()} == listed
