"""The conformance library: builds it for a GPU, and runs its cases, there or over the emulator."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "conformance"
SOURCE = HERE / "library.cu"
DEVICE_LIBRARY = "liblongcat_conformance.so"


class Case(NamedTuple):
    index: int
    name: str
    primitives: tuple[str, ...]
    note: str


class Outcome(NamedTuple):
    actual: bytes
    expected: bytes
    error: str  # why there is no outcome: a report of the emulator, an error of CUDA


class Library:
    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        for name, result in (
            ("name", ctypes.c_char_p),
            ("primitives", ctypes.c_char_p),
            ("note", ctypes.c_char_p),
            ("error", ctypes.c_char_p),
            ("size", ctypes.c_size_t),
            ("actual", ctypes.c_void_p),
            ("expected", ctypes.c_void_p),
        ):
            getattr(self._c, f"conformance_{name}").restype = result
        self._c.conformance_run.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_int]

    def cases(self) -> list[Case]:
        def text(name: str, i: int) -> str:
            return getattr(self._c, f"conformance_{name}")(i).decode()

        return [
            Case(i, text("name", i), tuple(text("primitives", i).split()), text("note", i))
            for i in range(self._c.conformance_count())
        ]

    def run(self, case: Case, seed: int = 1, policy: int = 0) -> Outcome:
        self._c.conformance_run(case.index, seed, policy)
        size = self._c.conformance_size()
        actual, expected = (
            ctypes.string_at(getattr(self._c, f"conformance_{name}")(), size) if size else b""
            for name in ("actual", "expected")
        )
        return Outcome(actual, expected, self._c.conformance_error().decode())


def first_difference(actual: bytes, expected: bytes) -> str:
    """The first difference of two results, as 32-bit words; empty if they are equal."""
    if actual == expected:
        return ""
    if len(actual) != len(expected):
        return f"{len(actual)} bytes against {len(expected)}"
    words = [i for i in range(0, len(actual), 4) if actual[i : i + 4] != expected[i : i + 4]]
    i = words[0]
    ours, theirs = (int.from_bytes(b[i : i + 4], "little") for b in (actual, expected))
    count = -(-len(actual) // 4)
    return f"{len(words)} of {count} words differ, the first at {i // 4}: {ours:#010x} against {theirs:#010x}"


def build_for_device(folder: Path) -> tuple[Path, str]:
    """The library for a GPU in `folder`, and what nvcc printed (resources of every kernel). Needs no GPU."""
    from cuda_tools import NVCC, PLACES, nvcc_flags

    if NVCC is None:
        raise FileNotFoundError(f"nvcc was not found {PLACES}")
    generated = folder / "generated"
    subprocess.run(
        [sys.executable, ROOT / "cmake" / "generate_wgmma.py", generated / "ptx" / "wgmma_shapes.inc"], check=True
    )
    library = folder / DEVICE_LIBRARY
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [NVCC, "-std=c++20", *nvcc_flags(), "-Xptxas=-v", "-Xcompiler=-fPIC,-ffp-contract=off", "-shared"]
    command += ["-cudart=static", "-Xfatbin=-compress-all", f"-I{ROOT / 'cuda'}", f"-I{generated}"]
    command += ["-o", unfinished, SOURCE]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc could not compile {SOURCE.relative_to(ROOT)}:\n{done.stdout}{done.stderr}"[-6000:])
    unfinished.replace(library)
    return library, done.stdout + done.stderr
