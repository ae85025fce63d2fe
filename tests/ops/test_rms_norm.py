from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import longcat_ops
from longcat_ops.reference.norm import rms_norm as reference
from support.build_oracle import assert_same_bits

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2e-6}  # half a step, or the float32 sum


def oracle(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / ((wide * wide).sum(-1, keepdim=True) / x.shape[1] + eps).sqrt() * weight.double()


def inputs(rows: int, columns: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    x = (torch.randn(rows, columns, generator=generator) * scale).to(dtype)
    return x, torch.rand(columns, generator=generator) + 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (1, 1), (1, 31), (7, 33), (8, 128), (3, 1000), (40, 6144)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 200.0])
def test_against_fp64(rows: int, columns: int, dtype: torch.dtype, scale: float) -> None:
    x, weight = inputs(rows, columns, dtype, scale)
    y = longcat_ops.rms_norm(x, weight, 1e-5)
    expected = oracle(x, weight, 1e-5)
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
    smallest = torch.finfo(dtype).tiny  # below it a format has no relative precision
    assert bool(((y.double() - expected).abs() <= ROUNDING[dtype] * expected.abs().clamp(min=smallest)).all())
    assert bool(
        ((reference(x, weight, 1e-5).double() - expected).abs() <= ROUNDING[dtype] * expected.abs() + 1e-6).all()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_a_sum(dtype: torch.dtype) -> None:
    """With a residual: the sum rounded to x's dtype, and the bits of its norm."""
    x, weight = inputs(7, 97, dtype)
    residual = inputs(7, 194, dtype)[0][:, 1::2].contiguous()
    y, total = longcat_ops.rms_norm(x, weight, 1e-5, residual)
    assert_same_bits(total, x + residual)
    assert_same_bits(y, longcat_ops.rms_norm(x + residual, weight, 1e-5))
    wide = torch.cat([residual, residual], 1)
    assert_same_bits(longcat_ops.rms_norm(x, weight, 1e-5, residual=wide[:, 97:])[0], y)


def test_zeros_eps_and_non_finite_rows() -> None:
    weight = torch.ones(16)
    assert torch.equal(longcat_ops.rms_norm(torch.zeros(2, 16), weight, 1e-5), torch.zeros(2, 16))
    assert bool(longcat_ops.rms_norm(torch.zeros(1, 16), weight, 0.0).isnan().all())  # 0 / 0, as the formula says
    big_eps = longcat_ops.rms_norm(torch.ones(1, 16), weight, 3.0)
    assert torch.equal(big_eps, torch.full((1, 16), 0.5))
    x = torch.ones(3, 16)
    x[1, 3] = torch.nan
    y = longcat_ops.rms_norm(x, weight, 1e-5)
    assert bool(y[1].isnan().all()) and bool(y[[0, 2]].isfinite().all())  # a NaN stays in its row


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = inputs(64, 6144, torch.bfloat16)
    whole = longcat_ops.rms_norm(x, weight, 1e-6)
    for row in (0, 31, 63):
        assert_same_bits(longcat_ops.rms_norm(x[row : row + 1], weight, 1e-6), whole[row : row + 1])


def test_instruction_sets_agree_bit_for_bit() -> None:
    code = (
        "import torch, longcat_ops, hashlib\n"
        "torch.manual_seed(0)\n"
        "for t in (torch.bfloat16, torch.float16, torch.float32):\n"
        "    y = longcat_ops.rms_norm(torch.randn(9, 1003).to(t), torch.rand(1003), 1e-5)\n"
        "    print(hashlib.sha256(y.view(torch.uint8).numpy().tobytes()).hexdigest())"
    )
    outputs = set()
    for isa in longcat_ops._library.load().build_info()["cpu_isas"]:
        environment = os.environ | {"LONGCAT_OPS_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1 and len(outputs.pop().split()) == 3


def test_fp64_is_refused() -> None:
    """The sum runs in float32, so an fp64 model must not use it for its norm."""
    with pytest.raises(longcat_ops.LongcatShapeError, match=r"`x` is torch.float64, expected torch.bfloat16"):
        longcat_ops.rms_norm(torch.zeros(4, 16, dtype=torch.float64), torch.ones(16), 1e-5)
