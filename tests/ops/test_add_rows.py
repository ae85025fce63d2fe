"""add_rows: the bits of torch's sum, rows apart, inf and NaN."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import add_rows
from longcat_ops.testing.op_results import bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (7, 97), (300, 576)])
def test_equals_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(shape[1])
    x, y = (torch.randn(*shape, generator=g).mul(scale).to(dtype) for scale in (1, 1e-3))
    if shape[0] > 1:
        x[0, :3], y[0, :3] = torch.tensor([torch.inf, torch.inf, 1]), torch.tensor([1, -torch.inf, torch.nan])
    out = add_rows(x, y)
    assert out.is_contiguous() and torch.equal(out.nan_to_num(7.0), (x + y).nan_to_num(7.0))
    assert bits(add_rows(x[:, ::1], torch.cat([y, y], 1)[:, shape[1] :])) == bits(out)
