"""LONGCAT_OPS_BACKEND=emu: every op with a CUDA kernel passes its own tests on that kernel in the host emulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import longcat_ops  # noqa: F401  (registers the ops)
from longcat_ops.ops import emulated
from longcat_ops.ops.registry import OPS
from support.pytests import run_pytest

WITH_KERNEL = sorted(op for op in OPS if emulated.has_kernel(op))
ANY_BACKEND = "compiles", "fakes", "flattened", "opcheck"  # tests of the contract that run no kernel, or ask torch


@pytest.fixture(scope="module")
def outcomes() -> str:
    """The output of one pytest over all ops' own tests; starting a pytest takes as long as the tests of an op."""
    done = run_pytest("--backend", "emu", "-rpsfE", *(f"tests/ops/test_{op}.py" for op in WITH_KERNEL))
    return done.stdout + done.stderr


@pytest.mark.parametrize("op", WITH_KERNEL)
def test_the_op_passes_its_own_tests(outcomes: str, op: str) -> None:
    found = re.findall(rf"^([A-Z]+) .*?\btests/ops/test_{op}\.py:", outcomes, flags=re.M)
    assert "PASSED" in found and set(found) <= {"PASSED", "SKIPPED"}, outcomes[-4000:]


def test_the_contract_of_the_ops_holds() -> None:
    done = run_pytest(
        "--backend",
        "emu",
        "tests/ops/test_op_contract.py",
        "-k",
        f"({' or '.join(WITH_KERNEL)}) and not ({' or '.join(ANY_BACKEND)})",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_absent_choices_stay_absent_through_the_chain() -> None:
    done = run_pytest("--backend", "emu", "tests/ops/test_absent_choices.py")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_without_the_library_the_remedy_is_named() -> None:
    code = "from longcat_ops import _library\n_library.PACKAGE = _library.Path('/nowhere')\n_library._check_emulator()"
    environment = os.environ | {"LONGCAT_OPS_BACKEND": "emu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "LONGCAT_OPS_BACKEND=emu: the host emulator is built in a source tree" in done.stderr
    assert "python tools/build_emulator.py" in done.stderr
