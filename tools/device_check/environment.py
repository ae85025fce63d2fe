"""Where a check takes the libraries from: the bundle of tools/device_bundle.py, else a build on the spot. A rehearsal
uses the emulator's libraries."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / ".device"
BUILT = ROOT / "build" / "device"
CORE, MODULE_PARTS = "liblongcat_core.a", "module"  # what _C is linked with, and where the bundle has it
CONFORMANCE, TRACED = "liblongcat_conformance.so", "liblongcat_traced.so"
SOURCES = ("CMakeLists.txt", "cmake", "cpp", "cuda", "python/longcat_ops", "tests/conformance", "tools/conformance")
SUFFIXES = {".txt", ".cmake", ".py", ".cpp", ".h", ".in", ".inc", ".cu", ".cuh"}


@dataclass(frozen=True)
class Environment:
    """python_path: of the package. device: "cuda", or "cpu" in a rehearsal, where the libraries are the emulator's."""

    python_path: Path
    conformance: Path
    traced: Path
    device: str = "cuda"

    @property
    def real(self) -> bool:
        return self.device == "cuda"

    def variables(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.python_path), os.environ.get("PYTHONPATH")]))
        # A hardware queue for each stream: a rank's launch may not stand behind one that waits for it.
        found = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "4",
                 "CUDA_DEVICE_MAX_CONNECTIONS": "32"}  # fmt: skip
        return found if self.real else found | {"LONGCAT_OPS_BACKEND": "emu", "OMP_NUM_THREADS": "1"}


def source_files(root: Path = ROOT, names: Iterable[str] = SOURCES) -> list[Path]:
    """The sources of the libraries and the package."""
    found = [path for name in names for path in (root / name, *(root / name).rglob("*"))]
    return sorted(path for path in found if path.is_file() and path.suffix in SUFFIXES)


def source_hash(root: Path = ROOT) -> str:
    digest = hashlib.sha256()
    for path in source_files(root):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


LOAD_LIMIT_S = 120  # a sick driver can hang an import of torch

# NOTE: an installed longcat_ops must not replace one that is missing here.
LOADS = """
import ctypes, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library)
import longcat_ops
assert longcat_ops.__file__.startswith(sys.argv[1]), f"{longcat_ops.__file__} is not in {sys.argv[1]}"
longcat_ops._library.load()
"""


def load_problem(environment: Environment, python: str = sys.executable) -> str:
    """Empty if the package and the other libraries load under `python`, else its last line of output."""
    libraries = map(str, (environment.conformance, environment.traced))
    command = [python, "-c", LOADS, str(environment.python_path), *libraries]
    # From a folder without the source tree, so that nothing of it is found by accident.
    variables = os.environ | environment.variables()
    try:
        done = subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, timeout=LOAD_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"loading them took more than {LOAD_LIMIT_S} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def bundle(folder: Path = BUNDLE) -> Environment:
    return Environment(folder / "python", folder / CONFORMANCE, folder / TRACED)


def bundle_problem(folder: Path = BUNDLE, root: Path = ROOT) -> str:
    """Why the bundle cannot be used; empty if it can."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return f"there is no {manifest}"
    if json.loads(manifest.read_text())["sources"] != source_hash(root):
        return "it was made of other sources than these: run tools/device_bundle.py again"
    return module_problem(folder) or load_problem(bundle(folder))


def module_problem(folder: Path) -> str:
    """Compiles _C if the bundle has none for this interpreter. Empty if that worked."""
    from .module import Interpreter, compile_module

    package, parts = folder / "python" / "longcat_ops", folder / MODULE_PARTS
    suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")
    if (package / f"_C{suffix}").exists():
        return ""
    try:
        python = Interpreter(suffix, include, platform.python_version())
        compile_module(python, package, parts / CORE, parts / "generated")
    except (RuntimeError, ImportError) as error:
        return str(error)
    return ""


def built() -> Environment:
    return Environment(BUILT / "site", BUILT / CONFORMANCE, BUILT / TRACED)


def rehearsal() -> Environment:
    """The emulator's libraries, built first if they are not up to date."""
    import build_emulator

    emulated = build_emulator.build()
    return Environment(ROOT / "python", build_emulator.build_tests() / "libemu_conformance.so", emulated, "cpu")


def built_problem(root: Path = ROOT) -> str:
    """Why what was built here earlier cannot be used; empty if it can."""
    manifest = BUILT / "manifest.json"
    if not manifest.exists() or json.loads(manifest.read_text())["sources"] != source_hash(root):
        return "it was made of other sources than these"
    return load_problem(built())


def build_command() -> tuple[str, ...]:
    """Builds them here, offline. This interpreter must find nvcc, cmake, ninja, pybind11 and setuptools."""
    return (sys.executable, "tools/build_for_device.py", str(BUILT))
