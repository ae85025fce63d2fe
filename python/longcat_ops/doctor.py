"""What this machine and this installation can run. Every probe is guarded: none needs torch, the library or a GPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from . import __version__, _environment, _library, ops
from .ops.registry import OPS

_ISA_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
_PACKAGES = {  # optional ones, and what for
    "safetensors": "reading checkpoints",
    "tokenizers": "text in and out",
    "tqdm": "the loading bar",
    "rich": "colour in generate",
}
_NATIVE = ("_C", "liblongcat_torch", "liblongcat_kernels")  # the last one only in builds with CUDA


@dataclass(frozen=True)
class Device:
    """A backend for the tensors of one device kind: name ("none" if nothing runs), why, and what would help."""

    backend: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class OpRow:
    """One op: where it runs for CPU tensors and for CUDA tensors."""

    name: str
    cpu: Device
    cuda: Device


def op_names() -> list[str]:
    """The ops of `longcat_ops.ops.registry`, and whatever else is registered in torch.ops.longcat_ops."""
    return sorted(OPS.keys() | _registered())


def op_rows() -> list[OpRow]:
    """The backend of each op on this machine, from the dispatcher and the modules that the call itself uses."""
    broken = _library_problem()
    if broken:
        none = Device("none", *broken)
        return [OpRow(name, none, none) for name in op_names()]
    no_gpu = _gpu_problem()
    return [OpRow(name, _row(_cpu_row, name), _row(lambda op: _cuda_row(op, no_gpu), name)) for name in op_names()]


def _row(row: Callable[[str], Device], name: str) -> Device:
    """The row of an op that is a chain: what runs its parts."""
    own = row(name)
    parts = {op: row(op) for op in _chain(name)}
    if not parts or own.backend == "none":
        return own
    plain = [op for op, part in parts.items() if part.backend == "reference"]
    missing = [part for part in parts.values() if part.backend == "none"]
    how = f"{', '.join(plain)} in plain torch" if plain else f"a chain of {len(parts)} kernels"
    if missing:
        how = f"nothing, {missing[0].reason}"
    backend = "reference" if plain or missing else next(iter(parts.values())).backend
    return Device(backend, how)


def _chain(name: str) -> tuple[str, ...]:
    return OPS[name].chain if name in OPS else ()


def _library_problem() -> tuple[str, str] | None:
    """(reason, remedy) if the library cannot be used at all."""
    try:
        _library.load()
    except Exception as error:  # doctor must report any breakage
        reason, _, remedy = str(error).partition("\n  fix: ")
        return " ".join(reason.split()).rstrip("."), remedy
    return None


def _registered() -> set[str]:
    """What torch knows of this library's ops."""
    torch = sys.modules.get("torch")
    names = torch._C._dispatch_get_all_op_names() if torch is not None and hasattr(torch, "_C") else ()
    found = {name.split("::")[1].split(".")[0] for name in names if name.startswith("longcat_ops::")}
    return {name for name in found if not name.startswith("comm_")}  # those of communicators need other processes


def _function_problem(name: str) -> str:
    """Why the public function cannot be loaded, or ""."""
    if name not in OPS:
        return "registered, but not in the list of ops"
    try:
        getattr(ops, name)
    except Exception as error:
        return f"longcat_ops.{name} cannot be imported: {error}"
    return ""


def _cpu_row(name: str) -> Device:
    problem, backend = _function_problem(name), _environment.backend()
    if problem:
        return Device("none", problem)
    if backend == "cuda":
        return Device("none", "LONGCAT_OPS_BACKEND=cuda takes no CPU tensors", "unset LONGCAT_OPS_BACKEND")
    if backend == "emu" and name in _kernels()[2]:
        return Device("emu", "LONGCAT_OPS_BACKEND=emu: the CUDA kernel in the host emulator")
    if backend in ("reference", "emu"):
        return Device("reference", f"LONGCAT_OPS_BACKEND={backend}")
    if name in _kernels()[0]:
        isa = _guard(lambda: _library.load().cpu_isa()) or "unknown"
        return Device("cpu", f"C++ kernel, instruction set {isa}")
    return Device("reference", "plain torch: no C++ CPU kernel in this build")


def _cuda_row(name: str, no_gpu: tuple[str, str] | None) -> Device:
    problem = _function_problem(name)
    if problem:
        return Device("none", problem)
    native, chain = name in _kernels()[1], _chain(name)
    then = "the CUDA kernel" if native else "the reference in plain torch"
    if chain and _kernels()[1].issuperset(chain):
        then = f"a chain of {len(chain)} CUDA kernels"
    if no_gpu:
        reason, remedy = no_gpu
        return Device("none", f"{reason}; with a GPU: {then}", remedy)
    if not native:
        return Device("reference", "plain torch on the GPU: no CUDA kernel in this build")
    supported, text = _library.load().device_supported(0)
    return Device("cuda", "sm_90a kernel") if supported else Device("none", text)


def _kernels() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The ops with a C++ CPU kernel, with a CUDA kernel, and with one that the emulator runs."""
    from .ops import registration

    found = registration.CPU_KERNELS, registration.CUDA_KERNELS, registration.EMULATED_KERNELS
    return tuple(map(frozenset, found))


def _gpu_problem() -> tuple[str, str] | None:
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch"
    return "torch finds no usable CUDA device", "check the driver with nvidia-smi"


def report() -> dict[str, Any]:
    """All facts, as plain data; `ok` says whether every op has a backend for the tensors of some device here."""
    rows = op_rows()  # first: it loads the library, which the other sections then describe
    return {
        "longcat_ops": __version__,
        "ok": all(row.cpu.backend != "none" or row.cuda.backend != "none" for row in rows),
        "platform": _platform(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "torch": _torch(),
        "library": _native(),
        "gpus": _gpus(),
        "environment": _variables(),
        "packages": [_package(name, purpose) for name, purpose in _PACKAGES.items()],
        "integrations": [_transformers()],
        "ops": [asdict(row) for row in rows],
    }


def _guard(probe: Any) -> Any:
    """probe(), or None if it fails in any way."""
    with contextlib.suppress(Exception):
        return probe()
    return None


def _platform() -> dict[str, Any]:
    cpu = _guard(lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8")) or ""
    lines = dict(line.split(":", 1) for line in reversed(cpu.splitlines()) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(facts.get("flags", "").split())
    return {
        "os": platform.platform(),
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
    }


def _torch() -> dict[str, Any]:
    minimum = ".".join(map(str, _library.MIN_TORCH))
    facts: dict[str, Any] = {"version": None, "minimum": minimum, "cuda": None, "problem": "", "remedy": ""}
    try:
        import torch

        facts |= {"version": torch.__version__, "cuda": torch.version.cuda}
        if _library.parse_version(torch.__version__) >= _library.MIN_TORCH:
            return facts
        facts["problem"] = f"older than {minimum}"
    except Exception as error:
        facts["problem"] = f"cannot be imported: {error}"
    return facts | {"remedy": f'{sys.executable} -m pip install "torch>={minimum}"'}


def _native() -> dict[str, Any]:
    found = {name: sorted(p.name for p in _library.PACKAGE.glob(f"{name}*.so")) for name in _NATIVE}
    present = [name for name in _NATIVE[:2] if found[name]]
    state = {0: "not built", 1: "half built", 2: "built"}[len(present)]
    facts: dict[str, Any] = {
        "folder": str(_library.PACKAGE),
        "state": state,
        "files": [file for files in found.values() for file in files],
        "missing": [name for name in _NATIVE[:2] if not found[name]],
        "build": None,
        "problem": "",
        "remedy": "",
    }
    problem = _library_problem()
    if problem:
        remedy = "" if state == "built" else _library.build_command()
        return facts | {"problem": problem[0], "remedy": remedy or problem[1]}
    return facts | {"build": _guard(lambda: dict(_library.load().build_info()))}


def _gpus() -> dict[str, Any]:
    """From nvidia-smi, which needs no torch; else from torch."""
    tool = shutil.which("nvidia-smi")
    if tool:
        command = [tool, "--query-gpu=driver_version,name,memory.total,compute_cap", "--format=csv,noheader"]
        answer = _guard(lambda: subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)
        rows = [line.split(", ") for line in (answer or "").splitlines() if line.count(", ") == 3]
        if rows:
            devices = [{"name": name, "memory": memory, "capability": cc} for _, name, memory, cc in rows]
            return {"driver": rows[0][0], "devices": devices, "source": "nvidia-smi"}
    devices = _guard(_torch_devices) or []
    return {"driver": None, "devices": devices, "source": "torch" if devices else "none"}


def _torch_devices() -> list[dict[str, str]]:
    torch: ModuleType = importlib.import_module("torch")
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {"name": p.name, "memory": f"{p.total_memory >> 20} MiB", "capability": f"{p.major}.{p.minor}"} for p in found
    ]


def _variables() -> list[dict[str, str]]:
    return [
        {"name": name, "value": value, "nearest": _environment.nearest(name)}
        for name, value in sorted(os.environ.items())
        if name.startswith(_environment.PREFIX)
    ]


def _package(name: str, purpose: str) -> dict[str, str | None]:
    version = None
    if _guard(lambda: importlib.util.find_spec(name)) is not None:
        version = _guard(lambda: metadata.version(name)) or "unknown version"
    remedy = "" if version else f"{sys.executable} -m pip install {name}"
    return {"name": name, "version": version, "purpose": purpose, "remedy": remedy}


def _transformers() -> dict[str, Any]:
    """Whether the adapter fits the installed transformers; reads only its version."""
    from .integrations.transformers import fit

    found = fit()
    facts = {"version": found.version, "fits": found.fits, "reason": found.reason, "remedy": found.fix}
    return {"name": "transformers", **facts}
