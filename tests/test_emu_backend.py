"""LONGCAT_OPS_BACKEND=emu: the tests of the ops that have a CUDA kernel, run by that kernel in the host emulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longcat_ops.ops import emulated

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LONGCAT_OPS_", "PYTEST_"))}
    path = os.pathsep.join([str(ROOT / "python"), clean.get("PYTHONPATH", "")])
    clean |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=1800)


PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "emu"]


@pytest.fixture(scope="module")
def outcomes() -> str:
    """What one pytest says of all ops' own tests; starting one takes as long as the tests of an op."""
    done = run([*PYTEST, "-rpsfE", *(f"tests/test_{op}.py" for op in sorted(emulated.OPS))])
    return done.stdout + done.stderr


@pytest.mark.parametrize("op", sorted(emulated.OPS))
def test_the_op_passes_its_own_tests(outcomes: str, op: str) -> None:
    found = re.findall(rf"^([A-Z]+) .*?\btests/test_{op}\.py:", outcomes, flags=re.M)
    assert found and set(found) == {"PASSED"}, outcomes[-4000:]


def test_the_contract_of_the_ops_holds() -> None:
    done = run([*PYTEST, "tests/test_op_contract.py", "-k", " or ".join(sorted(emulated.OPS))])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_without_the_library_the_remedy_is_named() -> None:
    code = "from longcat_ops import _library\n_library.PACKAGE = _library.Path('/nowhere')\n_library._check_emulator()"
    done = run([sys.executable, "-c", code], LONGCAT_OPS_BACKEND="emu")
    assert done.returncode != 0
    assert "LONGCAT_OPS_BACKEND=emu: the host emulator is built in a source tree" in done.stderr
    assert "python tools/build_emulator.py" in done.stderr
