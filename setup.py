"""Builds the native libraries with CMake; everything else is in pyproject.toml.

torch must already be importable, so build without isolation: `pip install --no-build-isolation .`
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

NO_TORCH = """longcat_ops: torch is not importable in the build environment ({python}).
  Install torch >= 2.11 first, then build with
      pip install --no-build-isolation .
  (an isolated build would download a torch of several GB that need not match yours), or use ./run demo.
"""


def require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(NO_TORCH.format(python=sys.executable))


def find_tool(name: str) -> str | None:
    """The tool of this interpreter's environment, activated or not, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def require_compiler() -> None:
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([wanted] if wanted else ["c++", "g++", "clang++"])):
        found = f"CXX={wanted} was not found" if wanted else "none of c++, g++, clang++ is on PATH"
        raise SystemExit(
            f"longcat_ops: no C++ compiler: {found}.\n  Install one with C++20, for example: apt install g++"
        )


class CMakeBuild(build_ext):
    """One CMake tree per interpreter and LONGCAT_CUDA value, installed into the wheel or, when editable, the source."""

    def build_extension(self, ext: Extension) -> None:
        require_torch()
        require_compiler()
        cmake = find_tool("cmake")
        if cmake is None:
            raise SystemExit("longcat_ops: cmake was not found.\n  pip install -r requirements/build.txt")
        cuda = os.environ.get("LONGCAT_CUDA", "AUTO").upper()
        tree = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{cuda.lower()}"
        configure = [cmake, "-S", str(ROOT), "-B", str(tree), f"-DLONGCAT_CUDA={cuda}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", *os.environ.get("LONGCAT_CMAKE_ARGS", "").split()]
        if ninja := find_tool("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        self.configure(configure, tree)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 2)
        subprocess.check_call([cmake, "--build", str(tree), "--parallel", jobs])

        destinations = [Path(self.build_lib).resolve()]
        if self.inplace or getattr(self, "editable_mode", False):
            destinations.append(ROOT / "python")
        for destination in destinations:
            # A build with other options may have left a library that this one does not make.
            for stale in (destination / "longcat_ops").glob("liblongcat_*.so"):
                stale.unlink()
            subprocess.check_call([cmake, "--install", str(tree), "--prefix", str(destination)])
            # Installed files keep the times of the build, and a library that is still right is not built again.
            for library in (destination / "longcat_ops").glob("liblongcat_*.so"):
                library.touch()

    @staticmethod
    def configure(command: list[str], tree: Path) -> None:
        """Configures; a tree that an interrupted or moved build left unusable is removed and tried once more."""
        had_cache = (tree / "CMakeCache.txt").exists()
        try:
            subprocess.check_call(command)
        except subprocess.CalledProcessError:
            if not had_cache:
                raise SystemExit("longcat_ops: CMake could not configure; its message is above.") from None
            print(f"longcat_ops: {tree} cannot be configured; starting it afresh", flush=True)
            shutil.rmtree(tree)
            subprocess.check_call(command)


if {"dist_info", "bdist_wheel", "editable_wheel", "build_ext", "install"} & set(sys.argv):
    require_torch()

setup(ext_modules=[Extension("longcat_ops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
