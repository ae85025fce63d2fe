"""silu_and_mul against fp64; its edges are torch's, its bits those of a row alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from longcat_ops import silu_and_mul
from longcat_ops.testing.op_results import bits
from support.grouped import ROUNDING

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (7, 97), (3, 12288), (65, 40)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_against_fp64(rows: int, width: int, scale: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(width)
    x = (torch.randn(rows, 2 * width, generator=g) * scale).to(dtype)
    gate, up = x.double().chunk(2, 1)
    truth = F.silu(gate) * up
    out = silu_and_mul(x)
    assert out.shape == (rows, width) and out.dtype == dtype and out.is_contiguous()
    # Below -88.7 silu is 0, for exp leaves float32; and a format has no relative precision below its normal range.
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps + 2.0**-121 * up.abs()
    assert ((out.double() - truth).abs() <= (ROUNDING[dtype] + 2**-21) * truth.abs() + tiny).all()


def test_edges_are_those_of_torch() -> None:
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 89.0, -89.0, -104.5, 3e38, -3e38, 1.0])
    out = silu_and_mul(torch.cat([values, torch.ones(len(values))])[None])[0]
    torch.testing.assert_close(out, F.silu(values), equal_nan=True, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    x = torch.randn(33, 2 * 4099, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = silu_and_mul(x)
    for row in (0, 16, 32):
        assert bits(silu_and_mul(x[row : row + 1])[0]) == bits(whole[row])
    assert bits(silu_and_mul(torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]])[5]) == bits(
        silu_and_mul(torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]].contiguous())[5]
    )
