"""What the built libraries depend on, the rules for devices and registers, and ops on CUDA against CPU tensors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from longcat_ops import _library
from longcat_ops.ops import checking
from longcat_ops.testing.op_cases import CASES, EVERY, public
from longcat_ops.testing.op_results import settled, tensors, to_device

NATIVE = _library.load()
KERNELS = _library.PACKAGE / "liblongcat_kernels.so"
TORCH_OPS = _library.PACKAGE / "liblongcat_torch.so"
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
needs_kernels = pytest.mark.skipif(not KERNELS.exists(), reason="CPU-only build: nvcc was not found")


def needed_libraries(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    return [line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line]


def undefined_symbols(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-sW", "--dyn-syms", library], capture_output=True, text=True, check=True).stdout
    return [line.split()[7] for line in text.splitlines() if " UND " in line and len(line.split()) > 7]


def test_build_info() -> None:
    import longcat_ops

    info = NATIVE.build_info()
    assert info["version"] == longcat_ops.__version__
    assert info["cuda"] == KERNELS.exists()
    assert _library.parse_version(info["torch_built_with"]) >= _library.MIN_TORCH
    assert info["arch"] == ("sm_90a" if info["cuda"] else None)
    assert NATIVE.cpu_isa() in info["cpu_isas"]


@needs_readelf
def test_torch_library_uses_the_stable_abi_only() -> None:
    needed = needed_libraries(TORCH_OPS)
    assert any(name.startswith("libtorch.so") for name in needed)
    assert not [name for name in needed if "python" in name or "cuda" in name]
    symbols = undefined_symbols(TORCH_OPS)
    assert not [s for s in symbols if s.startswith(("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch", "Py"))]


@needs_readelf
@needs_kernels
def test_kernel_library_needs_no_driver_and_no_torch() -> None:
    needed = needed_libraries(KERNELS)
    assert not [name for name in needed if "cuda" in name or "torch" in name or "python" in name], needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_supported_without_a_gpu() -> None:
    supported, text = NATIVE.device_supported(0)
    assert not supported
    assert text.startswith(("no NVIDIA driver is installed", "this build of longcat_ops has no CUDA", "the NVIDIA"))


FACTS = {
    "driver_version": 13000,
    "runtime_version": 13000,
    "num_devices": 2,
    "index": 1,
    "name": "NVIDIA H100",
    "major": 9,
}


@pytest.mark.parametrize(
    ("change", "supported", "text"),
    [
        ({}, True, "device 1 is NVIDIA H100 (sm_90)"),
        ({"driver_version": 0, "num_devices": 0}, False, "no NVIDIA driver is installed on this machine"),
        ({"driver_version": 12080}, False, "driver supports CUDA 12.8, and the kernels were built with CUDA 13.0"),
        ({"driver_version": 13020}, True, "sm_90"),
        ({"num_devices": 0}, False, "installed but shows no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        ({"index": 2}, False, "device 2 does not exist; this process sees 2 GPU(s)"),
        ({"index": -1}, False, "device -1 does not exist"),
        (
            {"name": "NVIDIA A100", "major": 8},
            False,
            "is NVIDIA A100 (sm_80); the kernels are compiled for sm_90a",
        ),
        ({"name": "NVIDIA B200", "major": 10}, False, "device 1 is NVIDIA B200 (sm_100)"),
    ],
)
def test_device_rule(change: dict, supported: bool, text: str) -> None:
    result = NATIVE.judge_device(**FACTS | {"major": 9, "minor": 0} | change)
    assert result[0] is supported
    assert text in result[1]


def test_a_kernel_with_too_few_registers_is_not_launched() -> None:
    assert NATIVE.judge_registers("fp8_gemm_nt", 168, 168) == ""
    text = NATIVE.judge_registers("fp8_gemm_nt", 160, 168)
    assert text.startswith("fp8_gemm_nt: its kernel was compiled with 160 registers a thread, expected at least 168")
    assert "\n  fix: build with another nvcc" in text


def test_check_refuses_what_no_caller_may_send() -> None:
    with pytest.raises(ValueError, match="there is no op nothing"):
        NATIVE.check("nothing")
    with pytest.raises(ValueError, match="per_token_group_quant_fp8: group_size must be an integer"):
        NATIVE.check("per_token_group_quant_fp8", checking.describe(torch.zeros(1, 8)))


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "name"), EVERY)
def test_cuda_tensors_give_what_cpu_tensors_give(op: str, name: str) -> None:
    """The CUDA kernel, or the reference on the GPU, gives the CPU's result but for the order of sums and exp. Tensor
    cores keep about 14 bits of sums of e4m3 products: 2^-13 of the terms, which are a few times the largest result."""
    made = CASES[op][name]()
    expected = public(op)(*made.args, **made.kwargs)
    made = CASES[op][name]()
    on_gpu = to_device(made.args, "cuda"), {key: to_device(value, "cuda") for key, value in made.kwargs.items()}
    actual = to_device(public(op)(*on_gpu[0], **on_gpu[1]), "cpu")
    for ours, theirs in zip(tensors(settled(op, made, actual)), tensors(settled(op, made, expected)), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        step = {torch.float8_e4m3fn: 2**-3, torch.bfloat16: 2**-7}.get(ours.dtype, 2**-19)
        # fused_moe rounds each expert's result to bf16 before the sum: one step there is 2^-7 of it.
        share = 2**-6 if op == "fused_moe" else 2**-10 if "fp8_gemm" in op else 0.0
        cut = share * float(theirs.float().abs().max()) if theirs.numel() else 0.0
        assert torch.allclose(ours.float(), theirs.float(), rtol=step, atol=1e-5 + cut)
