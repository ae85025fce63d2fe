"""fp8_gemm_nt against the dequantised product in fp64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from longcat_ops import _environment, _library, fp8_gemm_nt, per_block_quant_fp8, per_token_group_quant_fp8
from support.grouped import OUT_DTYPES, Fp8Pair, assert_close, gemm, wide


def operands(m: int, n: int, k: int, seed: int = 0) -> tuple[Fp8Pair, Fp8Pair]:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g)
    return per_token_group_quant_fp8(a), per_block_quant_fp8(b)


def expected(lhs: Fp8Pair, rhs: Fp8Pair) -> tuple[Tensor, Tensor]:
    """The product in fp64 and the bound of a float32 sum."""
    return gemm(lhs, wide(*rhs, block_rows=128))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 128, 128), (2, 576, 256), (8, 160, 576), (33, 200, 160), (5, 8, 1000), (0, 64, 64)]
)
def test_against_fp64(m: int, n: int, k: int) -> None:
    lhs, rhs = operands(m, n, k)
    default = fp8_gemm_nt(lhs, rhs)
    assert default.dtype == torch.bfloat16
    for dtype in OUT_DTYPES:
        out = torch.full((m, n), torch.nan, dtype=dtype)
        assert fp8_gemm_nt(lhs, rhs, out) is out
        assert_close(out, *expected(lhs, rhs))
    assert torch.equal(default, out)  # the last one is bfloat16


@pytest.mark.parametrize("split_k", [2, 4])
@pytest.mark.parametrize(("m", "n", "k"), [(9, 72, 136), (33, 200, 640)])
def test_split_k(m: int, n: int, k: int, split_k: int) -> None:
    """The result is within the same bound, whether the backend splits K or not."""
    lhs, rhs = operands(m, n, k)
    for dtype in OUT_DTYPES:
        out = torch.full((m, n), torch.nan, dtype=dtype)
        assert_close(fp8_gemm_nt(lhs, rhs, out, split_k=split_k), *expected(lhs, rhs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers(dtype: torch.dtype) -> None:
    """Rows and a weight hold 1e6 beside values around 1; each sum stays within the bound of its own terms."""
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(9, 384, generator=g), torch.randn(136, 384, generator=g)
    x[0, 5], x[3, 130], w[7, 200] = 1e6, -1e6, 1e6
    lhs, rhs = per_token_group_quant_fp8(x), per_block_quant_fp8(w)
    out = fp8_gemm_nt(lhs, rhs, torch.empty(9, 136, dtype=dtype))
    assert_close(out, *expected(lhs, rhs))


def test_one_rounding() -> None:
    """The bf16 result is the rounded fp32 one."""
    lhs, rhs = operands(16, 128, 512)
    exact = fp8_gemm_nt(lhs, rhs, torch.empty(16, 128))
    assert torch.equal(fp8_gemm_nt(lhs, rhs), exact.bfloat16())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_weight_that_is_written_to_is_seen(mode: type) -> None:
    """Widened weights are kept between calls; they must follow the FP8 weight and its scales."""
    lhs, (b, sb) = operands(4, 128, 128)
    out = torch.empty(4, 128)
    with mode():
        b, sb = b.clone(), sb.clone()
        for _ in range(2):
            assert_close(fp8_gemm_nt(lhs, (b, sb), out), *expected(lhs, (b, sb)))
            b.view(torch.uint8)[:64] = 0
        assert not fp8_gemm_nt(lhs, (b, sb), out)[:, :64].any()
        sb.mul_(2)
        assert_close(fp8_gemm_nt(lhs, (b, sb), out), *expected(lhs, (b, sb)))


def test_other_scales_for_one_weight() -> None:
    lhs, (b, sb) = operands(4, 128, 128)
    one, two = (fp8_gemm_nt(lhs, (b, s), torch.empty(4, 128)) for s in (sb, sb * 2))
    assert torch.equal(one * 2, two)


# Every code as a weight, one at a time, and products of random codes, NaN among them, for rows that share a weight in
# each way.
OF_CODES = """
import hashlib, torch, longcat_ops
f8, one = torch.float8_e4m3fn, torch.ones
codes = torch.arange(256, dtype=torch.uint8)
finite = codes.view(f8).float().isfinite()
places = torch.eye(256).to(f8)
w = codes.where(finite, 0).expand(128, -1).contiguous()
y = longcat_ops.fp8_gemm_nt((places, one(256, 2)), (w.view(f8), one(1, 2)), torch.empty(256, 128))
assert torch.equal(y[finite], codes.view(f8).float()[finite, None].expand(-1, 128))
torch.manual_seed(0)
for m in range(1, 11):
    for n, k in ((24, 200), (136, 384)):
        a, b = (torch.randint(0, 256, shape, dtype=torch.uint8) for shape in ((m, k), (n, k)))
        a[a & 127 == 127], b[: n // 2][b[: n // 2] & 127 == 127] = 3, 5
        sa, sb = torch.rand(m, -(-k // 128)) + 0.1, torch.rand(-(-n // 128), -(-k // 128)) + 0.1
        y = longcat_ops.fp8_gemm_nt((a.view(f8), sa), (b.view(f8), sb), torch.empty(m, n))
        has_nan = (b & 127 == 127).any(1)
        assert torch.equal(y.isnan(), has_nan.expand(m, -1)) and has_nan.any() and not has_nan.all()
        print(hashlib.sha256(y.view(torch.int32).numpy().tobytes()).hexdigest())
x, offsets = longcat_ops.per_token_group_quant_fp8(torch.randn(11, 200)), torch.tensor([0, 2, 11], dtype=torch.int32)
halves = [torch.randn(2, 136, 200) for _ in range(2)]
pairs = [[longcat_ops.per_block_quant_fp8(w) for w in half] for half in halves]
q, s = (torch.cat([torch.stack([p[i] for p in half]) for half in pairs], 1) for i in range(2))
h = longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset(x, longcat_ops.interleave_gate_up(q, s), offsets, quantise=False)
print(hashlib.sha256(h.view(torch.int16).numpy().tobytes()).hexdigest())
"""


@pytest.mark.skipif(_environment.backend() != "cpu", reason="the instruction sets of the C++ CPU kernels")
def test_every_instruction_set_decodes_every_code() -> None:
    found = set()
    for isa in _library.load().build_info()["cpu_isas"]:
        environment = os.environ | {"LONGCAT_OPS_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", OF_CODES], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1 and len(set(found.pop().split())) == 21
