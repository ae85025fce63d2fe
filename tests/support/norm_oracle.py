"""RMSNorm in fp64, and the error bound of a kernel."""

from __future__ import annotations

import torch

HALF_STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}  # relative


def assert_normed(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """y is rms_norm of x in float32, rounded once.

    With u = 2^-24: a sum of H squares in 16 or more lanes rounds H / 16 + 5 times, the mean and adding eps twice more;
    the square root halves that. Root, inverse and two products add 4u. So the error is below (H / 32 + 8) * u.
    """
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    relative = (x.shape[1] / 32 + 8) * 2.0**-24
    relative += HALF_STEP[y.dtype] * (1 + relative)
    smallest = torch.finfo(y.dtype).tiny  # below it a format has no relative precision
    assert bool(((y.double() - expected).abs() <= relative * expected.abs().clamp(min=smallest)).all())
