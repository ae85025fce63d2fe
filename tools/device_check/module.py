"""Compiles _C, the package's module for one CPython, for an interpreter other than that of the last build: where the
bundle is packed, or where it is unpacked. Its source is small and has no torch; the rest comes from the last build."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .environment import ROOT


@dataclass(frozen=True)
class Interpreter:
    """suffix: of its extension modules. include: the folder of its headers."""

    suffix: str
    include: str
    version: str


def compile_module(python: Interpreter, package: Path, core: Path, generated: Path) -> Path:
    """_C in `package`, whose other libraries it is linked with; core: liblongcat_core.a, generated: its headers. Raises
    RuntimeError with the remedy, or with what the compiler said."""
    import pybind11

    if not (Path(python.include) / "Python.h").exists():
        problem = f"Python {python.version} has no headers in {python.include}: install its dev package"
        raise RuntimeError(problem)
    target = package / f"_C{python.suffix}"
    includes = [python.include, pybind11.get_include(), ROOT / "cpp", ROOT / "cuda", ROOT / "cuda/include", generated]
    command = [shutil.which("g++") or "c++", "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += ["-DLONGCAT_WITH_CUDA", *(f"-I{path}" for path in includes), ROOT / "cpp/bindings/module.cpp", core]
    command += [f"-L{package}", "-Wl,--no-as-needed", "-llongcat_torch", "-llongcat_kernels", "-Wl,--as-needed"]
    command += ["-Wl,--exclude-libs,ALL", "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN", "-o", target]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"_C for Python {python.version} does not compile:\n{done.stderr[-3000:]}")
    return target
