"""fp8_gemm_nt against the dequantised product in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_ops import fp8_gemm_nt, per_block_quant_fp8, per_token_group_quant_fp8
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
