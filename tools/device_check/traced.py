"""The kernels compiled with LC_TRACE: when the blocks of the expert chain start, and how they are launched.

`build` makes the library for a GPU; for the emulator it is liblongcat_emu.so. cuda/device/trace.cuh has the layout of
the records, cuda/launch/trace.cpp the functions.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .environment import ROOT, TRACED

KERNELS = ("moe_permute_quant", "gate_up", "down", "moe_combine")  # TracedKernel
POINTS, BLOCKS = ("entered", "ready"), 1024


def sources() -> list[Path]:
    """The kernels of the library with their launchers, as cmake/Kernels.cmake finds them, and what traces them."""
    cuda = ROOT / "cuda"
    launch = [cuda / "launch" / f"{name}.cpp" for name in ("device_check", "launch", "status", "tensor_map", "trace")]
    return [*sorted(cuda.glob("*/*.cu")), *sorted(cuda.glob("*/config.cpp")), *launch, cuda / "runtime.cu"]


def build(folder: Path) -> Path:
    """Needs nvcc, no GPU."""
    from cuda_tools import NVCC, PLACES, nvcc_flags

    if NVCC is None:
        raise FileNotFoundError(f"nvcc was not found {PLACES}")
    generated = folder / "generated"
    subprocess.run([sys.executable, ROOT / "cmake/generate_wgmma.py", generated / "ptx/wgmma_shapes.inc"], check=True)
    version = (ROOT / "cuda/common/version.h.in").read_text()
    (generated / "common").mkdir(parents=True, exist_ok=True)
    (generated / "common/version.h").write_text(re.sub(r"@\w+@", "traced", version))
    library = folder / TRACED
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [NVCC, "-std=c++20", *nvcc_flags(), "-DLC_TRACE", "-Xcompiler=-fPIC,-ffp-contract=off", "-shared", "-t0"]
    command += ["-cudart=static", "-Xfatbin=-compress-all", "-Xlinker=--exclude-libs,ALL", f"-I{ROOT / 'cuda'}"]
    command += [f"-I{ROOT / 'cuda/include'}", f"-I{generated}", "-o", unfinished, *sources()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc could not compile the traced kernels:\n{done.stdout}{done.stderr}"[-6000:])
    unfinished.replace(library)
    return library


class Traced:
    """The library at `path`; while it records, all ops of CUDA tensors use its kernels. real: it is for a GPU; else it
    is the emulator's, whose kernels CPU tensors always use."""

    def __init__(self, path: Path, real: bool) -> None:
        from longcat_ops.ops import emulated

        self.real, self._path = real, path
        self._c = ctypes.CDLL(str(path)) if real else emulated.load()
        self._c.lc_last_error.restype = self._c.lc_trace_launches.restype = ctypes.c_char_p

    def __call__(self, op: str, *arguments: Any) -> None:
        import torch

        getattr(torch.ops.longcat_kernels, op)(*arguments)

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self._c.lc_last_error().decode())

    @contextmanager
    def recording(self, carveout: int = -1) -> Iterator[Records]:
        """Inside, blocks are recorded, and kernels launched with this preferred carve-out, in per cent."""
        from longcat_ops.ops import emulated

        records = Records("cuda" if self.real else "cpu")
        if self.real:
            emulated.use_kernels(self._path, on_gpu=True)
        self._c.lc_trace_carveout(ctypes.c_int32(carveout))
        self._check(self._c.lc_trace(ctypes.c_void_p(records.memory.data_ptr())))
        try:
            yield records
        finally:
            if self.real:
                emulated.use_kernels(None, on_gpu=True)
            self._c.lc_trace_carveout(ctypes.c_int32(-1))
            self._check(self._c.lc_trace(ctypes.c_void_p(None)))

    def launches(self) -> list[dict[str, Any]]:
        """Since the recording began; `resident`: clusters of the device, or blocks of a multiprocessor."""
        return json.loads(self._c.lc_trace_launches())

    def replayed(self, chain: Callable[[], None]) -> Callable[[], None]:
        """`chain` as one CUDA graph, or as launches of the emulator that may overlap."""
        import torch

        chain()
        if self.real:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                chain()
            return lambda: (graph.replay(), torch.cuda.synchronize())
        from longcat_ops.ops import emulated

        with emulated.capture() as replay:
            chain()
        return replay


class Records:
    """What the blocks of each kernel wrote."""

    def __init__(self, device: str) -> None:
        import torch

        self.memory = torch.zeros(len(KERNELS), len(POINTS), BLOCKS, 2, dtype=torch.int64, device=device)

    def clear(self) -> None:
        self.memory.zero_()

    def times(self) -> dict[str, dict[str, list[int]]]:
        """ns of the device's timer by kernel and point, block by block."""
        found = self.memory.cpu()
        return {
            kernel: {point: [ns for ns in found[k, i, :, 0].tolist() if ns] for i, point in enumerate(POINTS)}
            for k, kernel in enumerate(KERNELS)
        }
