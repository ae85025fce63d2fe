"""Environments that make one machine compute as others do, and the tests whose results may depend on them.

A setting takes effect only in a new process. If this CPU lacks the instructions, the library that reads the setting
lowers it, so every setting runs everywhere. MKL obeys MKL_ENABLE_INSTRUCTIONS only on Intel CPUs; elsewhere
`interposed` builds a small library that makes MKL take its Intel path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.pytests import run_pytest

TESTS = Path(__file__).resolve().parents[1]

SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "mkl sse4.2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "mkl avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl avx512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "aten default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "onednn sse4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "onednn avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "ops baseline": {"LONGCAT_OPS_CPU_ISA": "baseline"},
    "ops avx2": {"LONGCAT_OPS_CPU_ISA": "avx2"},
    "ops avx512": {"LONGCAT_OPS_CPU_ISA": "avx512"},
    "reference ops": {"LONGCAT_OPS_BACKEND": "reference"},
    "a laptop": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "LONGCAT_OPS_CPU_ISA": "avx2",
    },
    "an old machine": {
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "LONGCAT_OPS_CPU_ISA": "baseline",
    },
}

# Relative to tests/. Every file passes in every setting.
SENSITIVE_FILES = (
    "model/test_row_invariance.py",
    "model/test_model_bitwise.py",
    "model/test_model_forward.py",
    "model/test_model_fp8.py",
    "model/test_model_mtp.py",
    "engine/test_generate.py",
    "engine/test_batches.py",
    "engine/test_sampling.py",
    "ops/test_op_contract.py",
)

_INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\nint mkl_serv_intel_cpu(void) { return 1; }\n"


def interposed(folder: Path) -> dict[str, str]:
    """Builds a library in `folder` that makes MKL take any CPU for an Intel one; returns {"LD_PRELOAD": ...}. Without a
    C compiler, it prints a warning and returns {}.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("no C compiler: on a CPU that is not of Intel, settings of MKL change nothing", file=sys.stderr)
        return {}
    source, library = folder / "intel.c", folder / "libintel.so"
    source.write_text(_INTEL)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}


def environment(name: str, folder: Path) -> dict[str, str]:
    """The setting as environment variables; the library that they need is built in `folder`."""
    setting = SETTINGS[name]
    return setting | (interposed(folder) if "MKL_ENABLE_INSTRUCTIONS" in setting else {})


def main(arguments: list[str]) -> int:
    """Runs the sensitive files under each of the named settings (none: all of them); prints a row for each."""
    names = [argument for argument in arguments if argument in SETTINGS] or list(SETTINGS)
    if unknown := [argument for argument in arguments if argument not in SETTINGS]:
        print(f"no such setting: {', '.join(unknown)}; these are: {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            start = time.monotonic()
            options = [] if name == "two threads" else ["-n", "2", "--dist", "loadscope"]
            files = [str(TESTS / file) for file in SENSITIVE_FILES]
            done = run_pytest(*options, *files, **environment(name, Path(folder)))
            lines = done.stdout.strip().splitlines() or ["no output"]
            failed += done.returncode != 0
            print(f"{name:16s} {time.monotonic() - start:5.0f} s  {lines[-1]}", flush=True)
            if done.returncode != 0:
                print("\n".join(lines[-25:]), done.stderr[-2000:], sep="\n", flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
