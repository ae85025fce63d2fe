"""nvcc for tests, with the flags that the kernels are built with, and the tools that read its output."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_tools import NVCC, PLACES, find_tool, nvcc_flags

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "gates" / "cuda"
GENERATOR = ROOT / "cmake" / "generate_wgmma.py"
LAUNCHER = ROOT / "cmake" / "compile_kernel.py"
NVDISASM = find_tool("nvdisasm")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason=f"nvcc was not found {PLACES}")
needs_nvdisasm = pytest.mark.skipif(
    NVDISASM is None, reason=f"nvdisasm was not found {PLACES}; pip install nvidia-cuda-nvdisasm"
)
needs_cuobjdump = pytest.mark.skipif(
    find_tool("cuobjdump") is None or shutil.which("c++filt") is None,
    reason=f"cuobjdump was not found {PLACES} (pip install nvidia-cuda-cuobjdump), or c++filt not on PATH (binutils)",
)


class Compiler:
    """Generates wgmma_shapes.inc, then compiles each source once for each kind and standard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # as in a build tree, objects lie here as their sources do in the project
        self.shapes = folder / "ptx" / "wgmma_shapes.inc"
        subprocess.run([sys.executable, GENERATOR, self.shapes], check=True)
        self.flags = [*nvcc_flags(), f"-I{ROOT / 'cuda'}", f"-I{folder}"]
        self.compiled: set[tuple] = set()

    def compile(self, source: Path, kind: str = "cubin", standard: int = 20) -> Path:
        """The cubin or object (o) of a source. cmake/compile_kernel.py leaves its files beside it, as in a build."""
        target = self.folder / f"{source.relative_to(ROOT)}.{kind}"
        if (source, kind, standard) not in self.compiled:
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, LAUNCHER, NVCC, f"-std=c++{standard}", *self.flags]
            command += ["-c" if kind == "o" else f"-{kind}", source, "-o", target]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
            self.compiled.add((source, kind, standard))
        return target

    def instructions(self, name: str) -> list[str]:
        """SASS lines: one instruction with its operands each, without predicates and addresses."""
        cubin = self.compile(SOURCES / f"{name}.cu")
        text = subprocess.run([NVDISASM, "-c", cubin], capture_output=True, text=True, check=True).stdout
        lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(.*?)\s*;", text, re.MULTILINE)
        assert len(lines) > 100
        return lines
