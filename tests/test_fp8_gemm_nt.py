"""fp8_gemm_nt against the dequantised product in fp64."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import LongcatShapeError, fp8_gemm_nt, per_block_quant_fp8, per_token_group_quant_fp8


def operands(m, n, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g)
    return per_token_group_quant_fp8(a), per_block_quant_fp8(b)


def product(lhs, rhs):
    (a, sa), (b, sb) = lhs, rhs
    wide_a = a.double() * sa.double().repeat_interleave(128, 1)[:, : a.shape[1]]
    scale_b = sb.double().repeat_interleave(128, 0).repeat_interleave(128, 1)[: b.shape[0], : b.shape[1]]
    return wide_a @ (b.double() * scale_b).T


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 128, 128), (2, 576, 256), (8, 160, 576), (33, 200, 160), (5, 8, 1000), (0, 64, 64)]
)
def test_against_fp64(m, n, k):
    lhs, rhs = operands(m, n, k)
    want = product(lhs, rhs)
    default = fp8_gemm_nt(lhs, rhs)
    assert default.dtype == torch.bfloat16
    assert default.shape == (m, n)
    for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 5e-4), (torch.bfloat16, 4e-3)):
        out = torch.full((m, n), torch.nan, dtype=dtype)
        assert fp8_gemm_nt(lhs, rhs, out) is out
        assert (out.double() - want).norm() <= limit * want.norm()
    assert torch.equal(default, out)


def test_one_rounding():
    """The bf16 result is the rounded fp32 one."""
    lhs, rhs = operands(16, 128, 512)
    wide = fp8_gemm_nt(lhs, rhs, torch.empty(16, 128))
    assert torch.equal(fp8_gemm_nt(lhs, rhs), wide.bfloat16())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_weight_that_is_written_to_is_seen(mode):
    """Widened weights are kept between calls; they must follow the FP8 weight and its scales."""
    lhs, (b, sb) = operands(4, 128, 128)
    out = torch.empty(4, 128)
    with mode():
        b, sb = b.clone(), sb.clone()
        for _ in range(2):
            assert torch.allclose(fp8_gemm_nt(lhs, (b, sb), out).double(), product(lhs, (b, sb)), rtol=1e-5, atol=1e-3)
            b.view(torch.uint8)[:64] = 0
        assert not fp8_gemm_nt(lhs, (b, sb), out)[:, :64].any()
        sb.mul_(2)
        assert torch.allclose(fp8_gemm_nt(lhs, (b, sb), out).double(), product(lhs, (b, sb)), rtol=1e-5, atol=1e-3)


def test_other_scales_for_one_weight():
    lhs, (b, sb) = operands(4, 128, 128)
    one, two = (fp8_gemm_nt(lhs, (b, s), torch.empty(4, 128)) for s in (sb, sb * 2))
    assert torch.equal(one * 2, two)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(a=(4, 64)), r"`rhs` is \[160, 256\] against lhs \[4, 64\], expected a \[M,K\] and b \[N,K\] with one K"),
        (dict(a=(256,)), r"`rhs` is \[160, 256\] against lhs \[256\], expected a \[M,K\]"),
        (dict(b=(2, 160, 256)), r"`rhs` is \[2, 160, 256\] against lhs \[4, 256\], expected a \[M,K\]"),
        (dict(sa=(4, 1)), r"`lhs scales` is \[4, 1\], expected \[4, 2\]"),
        (dict(sb=(1, 2)), r"`rhs scales` is \[1, 2\], expected \[2, 2\]"),
        (dict(out=(160, 4)), r"`out` is \[160, 4\], expected \[4, 160\]"),
    ],
)
def test_bad_arguments(change, text):
    shapes = dict(a=(4, 256), sa=(4, 2), b=(160, 256), sb=(2, 2), out=(4, 160)) | change
    t = {name: torch.zeros(shape) for name, shape in shapes.items()}
    lhs, rhs = (t["a"].to(torch.float8_e4m3fn), t["sa"]), (t["b"].to(torch.float8_e4m3fn), t["sb"])
    with pytest.raises(LongcatShapeError, match=f"fp8_gemm_nt: argument {text}"):
        fp8_gemm_nt(lhs, rhs, t["out"])


def test_operands_that_are_not_fp8_are_refused():
    (a, sa), rhs = operands(4, 128, 128)
    with pytest.raises(LongcatShapeError, match=r"`lhs` is torch.float32, expected torch.float8_e4m3fn"):
        fp8_gemm_nt((a.float(), sa), rhs)
