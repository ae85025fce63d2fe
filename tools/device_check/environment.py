"""Where a check takes the libraries from: the bundle of tools/device_bundle.py, else a build on the spot."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / ".device"
BUILT = ROOT / "build" / "device"
CONFORMANCE = "liblongcat_conformance.so"
SOURCES = ("CMakeLists.txt", "cmake", "cpp", "cuda", "python/longcat_ops", "tests/conformance", "tools/conformance")
SUFFIXES = {".txt", ".cmake", ".py", ".cpp", ".h", ".in", ".inc", ".cu", ".cuh"}


@dataclass(frozen=True)
class Environment:
    python_path: Path
    conformance: Path

    def variables(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.python_path), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "4"}


def source_files(root: Path = ROOT, names: Iterable[str] = SOURCES) -> list[Path]:
    """What the libraries and the package are made of."""
    found = [path for name in names for path in (root / name, *(root / name).rglob("*"))]
    return sorted(path for path in found if path.is_file() and path.suffix in SUFFIXES)


def source_hash(root: Path = ROOT) -> str:
    digest = hashlib.sha256()
    for path in source_files(root):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


LOAD_LIMIT_S = 120  # a sick driver can hang an import of torch

# NOTE: an installed longcat_ops must not stand in for one that is missing here.
LOADS = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
import longcat_ops
assert longcat_ops.__file__.startswith(sys.argv[2]), f"{longcat_ops.__file__} is not in {sys.argv[2]}"
longcat_ops._library.load()
"""


def load_problem(environment: Environment, python: str = sys.executable) -> str:
    """Empty if the package and the conformance library load under `python`, else what it said last."""
    command = [python, "-c", LOADS, str(environment.conformance), str(environment.python_path)]
    # From a folder without the source tree, so that nothing of it is found by accident.
    variables = os.environ | environment.variables()
    try:
        done = subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, timeout=LOAD_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"loading them took more than {LOAD_LIMIT_S} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def bundle(folder: Path = BUNDLE) -> Environment:
    return Environment(folder / "python", folder / CONFORMANCE)


def bundle_problem(folder: Path = BUNDLE, root: Path = ROOT) -> str:
    """Why the bundle cannot be used; empty if it can."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return f"there is no {manifest}"
    if json.loads(manifest.read_text())["sources"] != source_hash(root):
        return "it was made of other sources than these: run tools/device_bundle.py again"
    return load_problem(bundle(folder))


def built() -> Environment:
    return Environment(BUILT / "site", BUILT / CONFORMANCE)


def built_problem(root: Path = ROOT) -> str:
    """Why what was built here earlier cannot be used; empty if it can."""
    manifest = BUILT / "manifest.json"
    if not manifest.exists() or json.loads(manifest.read_text())["sources"] != source_hash(root):
        return "it was made of other sources than these"
    return load_problem(built())


def build_command() -> tuple[str, ...]:
    """Builds both here, offline; needs nvcc, cmake, ninja, pybind11 and setuptools in this interpreter's reach."""
    return (sys.executable, "tools/build_for_device.py", str(BUILT))
