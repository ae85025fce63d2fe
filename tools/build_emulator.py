"""Builds liblongcat_emu.so, the CUDA kernels over the host emulator, and puts it beside the package. `build_tests`
builds the emulator's own tests.

python tools/build_emulator.py [--tests]           # needs cmake, ninja and a C++20 compiler; nothing if up to date
LONGCAT_OPS_BACKEND=emu python your_script.py      # CPU tensors now run the kernels in the emulator
python -m pytest --backend emu tests/ops/test_dequant_fp8.py
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "liblongcat_emu.so"
INSTALLED = ROOT / "python" / "longcat_ops" / NAME


def find_tool(name: str) -> str:
    """The tool of this interpreter's environment, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: pip install -r requirements/build.txt")
    return found


def build() -> Path:
    """The library, built and installed if it is not up to date. Raises RuntimeError with the compiler's output."""
    with _built("longcat_emu") as tree:
        built = tree / NAME
        if not INSTALLED.exists() or INSTALLED.stat().st_mtime < built.stat().st_mtime:
            copy = INSTALLED.with_suffix(f".{os.getpid()}")
            shutil.copy2(built, copy)
            copy.replace(INSTALLED)  # a process that has loaded the old one keeps it
    return INSTALLED


def build_tests() -> Path:
    """The folder with emu_tests, libemu_numerics.so and libemu_conformance.so, up to date. Raises RuntimeError with the
    compiler's output."""
    with _built("emu_tests", "emu_numerics", "emu_conformance") as tree:
        return tree


def build_sanitized() -> Path:
    """The folder with an emu_tests that the address and undefined-behaviour sanitizers watch."""
    flags = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"
    tree = ROOT / "build" / "emu-sanitized"
    with _built("emu_tests", tree=tree, options=["-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={flags}"]):
        return tree


@contextlib.contextmanager
def _built(*targets: str, tree: Path = ROOT / "build" / "emu", options: Sequence[str] = ()) -> Iterator[Path]:
    """Inside, the targets are up to date and nobody else builds: several test processes may ask at once."""
    tree.mkdir(parents=True, exist_ok=True)
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    configure = [cmake, "-S", ROOT, "-B", tree, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options]
    configure += ["-DLONGCAT_CUDA=OFF", "-DLONGCAT_EMU=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    with (tree / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (tree / "build.ninja").exists():
            _run(configure)
        _run([cmake, "--build", tree, "--target", *targets, "--parallel", str(os.cpu_count() or 1)])
        yield tree


def _run(command: list) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command[:3]))} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    print(build())
    if "--tests" in sys.argv[1:]:
        print(build_tests())
