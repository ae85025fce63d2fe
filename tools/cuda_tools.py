"""nvcc and its companions: where they are, and the flags that the kernels are compiled with."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = "on PATH, in CUDA_HOME, in /usr/local/cuda or in the wheels of the extra [test]"


def find_tool(name: str) -> str | None:
    """On PATH, in a CUDA toolkit, or in a wheel that has it: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm, triton."""
    folders = [Path(os.environ[key], "bin") for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ]
    folders.append(Path("/usr/local/cuda/bin"))
    for package, pattern in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            folders += Path(location).glob(pattern)
    return shutil.which(name) or next((str(f / name) for f in folders if os.access(f / name, os.X_OK)), None)


NVCC = os.environ.get("CUDACXX") or find_tool("nvcc")


def nvcc_flags() -> list[str]:
    """Those of cmake/Cuda.cmake."""
    listed = re.search(r"set\(LONGCAT_NVCC_FLAGS ([^)]*)\)", (ROOT / "cmake" / "Cuda.cmake").read_text())
    assert listed
    return listed[1].split()
