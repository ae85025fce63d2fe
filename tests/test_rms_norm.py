from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import longcat_ops
from build_oracle import assert_only_marked_arguments_change, assert_same_bits
from longcat_ops.reference.norm import rms_norm as reference

OP = torch.ops.longcat_ops.rms_norm.default
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


def test_zeros_eps_and_non_finite_rows() -> None:
    weight = torch.ones(16)
    assert torch.equal(longcat_ops.rms_norm(torch.zeros(2, 16), weight, 1e-5), torch.zeros(2, 16))
    assert bool(longcat_ops.rms_norm(torch.zeros(1, 16), weight, 0.0).isnan().all())  # 0 / 0, as the formula says
    big_eps = longcat_ops.rms_norm(torch.ones(1, 16), weight, 3.0)
    assert torch.equal(big_eps, torch.full((1, 16), 0.5))
    x = torch.ones(3, 16)
    x[1, 3] = torch.nan
    y = longcat_ops.rms_norm(x, weight, 1e-5)
    assert bool(y[1].isnan().all()) and bool(y[[0, 2]].isfinite().all())  # a row speaks for itself


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = inputs(64, 6144, torch.bfloat16)
    whole = longcat_ops.rms_norm(x, weight, 1e-6)
    for row in (0, 31, 63):
        assert_same_bits(longcat_ops.rms_norm(x[row : row + 1], weight, 1e-6), whole[row : row + 1])


def test_rows_apart() -> None:
    x, weight = inputs(5, 48, torch.float32)
    wide = torch.full((5, 64), torch.nan)
    wide[:, :48] = x
    assert_same_bits(longcat_ops.rms_norm(wide[:, :48], weight, 1e-6), longcat_ops.rms_norm(x, weight, 1e-6))


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


BAD_ARGUMENTS = [
    (lambda x, w: (x[0], w, 1e-5), "argument `x` is 1-D [16], expected 2-D [T, H]"),
    (lambda x, w: (x.double(), w, 1e-5), "argument `x` is torch.float64, expected torch.bfloat16, torch.float16 or"),
    (lambda x, w: (x.t(), w, 1e-5), "argument `x` is of strides (1, 16), expected a last stride of 1"),
    (lambda x, w: (x[:, :0], w[:0], 1e-5), "argument `x` is of width 0, expected at least one column"),
    (lambda x, w: (x, w.bfloat16(), 1e-5), "argument `weight` is torch.bfloat16, expected torch.float32"),
    (lambda x, w: (x, w[:8], 1e-5), "argument `weight` is of shape [8], expected [16]"),
    (lambda x, w: (x, w.repeat(2)[::2], 1e-5), "argument `weight` is of strides (2), expected contiguous"),
    (lambda x, w: (x, w, -1.0), "argument `eps` is -1, expected 0 or a small positive number"),
    (lambda x, w: (x, w, float("nan")), "argument `eps` is nan"),
    (lambda x, w: (x, w.to("meta"), 1e-5), "argument `weight` is on meta, expected on cpu"),
]


@pytest.mark.parametrize(("make", "text"), BAD_ARGUMENTS)
def test_bad_arguments(make, text: str) -> None:
    arguments = make(torch.zeros(4, 16), torch.ones(16))
    supported, reason, _ = longcat_ops.supports("rms_norm", *arguments)
    assert not supported and text in reason
    if arguments[1].device.type == "cpu":  # torch itself refuses to mix devices in a call
        with pytest.raises(longcat_ops.LongcatShapeError) as caught:
            longcat_ops.rms_norm(*arguments)
        assert text in str(caught.value)


def test_op_contract() -> None:
    x, weight = inputs(3, 40, torch.float32)
    torch.library.opcheck(OP, (x, weight, 1e-5, torch.zeros(3, 40)))
    assert_only_marked_arguments_change(OP, (x, weight, 1e-5, torch.zeros(3, 40)))


def test_meta_and_compile() -> None:
    x, weight = inputs(4, 40, torch.bfloat16)
    assert longcat_ops.rms_norm(x.to("meta"), weight.to("meta"), 1e-5).shape == (4, 40)
    compiled = torch.compile(longcat_ops.rms_norm, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x, weight, 1e-5), longcat_ops.rms_norm(x, weight, 1e-5))
