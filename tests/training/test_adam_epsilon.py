"""adam_epsilon_check against the RMS of gradients in Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import EpsilonCheck, adam_epsilon_check


def parameter(*gradient: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(len(gradient), dtype=dtype))
    made.grad = torch.tensor(gradient, dtype=dtype)
    return made


def rms(*values: float) -> float:
    return math.sqrt(math.fsum(v * v for v in values) / len(values))


def test_each_group_has_the_rms_of_its_gradients() -> None:
    first = [parameter(3e-4, -4e-4), parameter(1e-2, 0.0, 0.0), parameter(0.0, 0.0)]
    second = [parameter(2e-25, 1e-25, dtype=torch.bfloat16), nn.Parameter(torch.ones(2))]
    idle = [nn.Parameter(torch.ones(2)), parameter(0.0)]
    optimizer = torch.optim.AdamW(
        [{"params": first, "eps": 1e-8}, {"params": idle}, {"params": second, "eps": 1e-16}], lr=1e-3
    )
    one, two = adam_epsilon_check(optimizer)
    assert (one.group, one.epsilon, one.parameters, one.fits) == (0, 1e-8, 2, True)
    assert (one.smallest_rms, one.largest_rms) == pytest.approx((rms(3e-4, 4e-4), rms(1e-2, 0, 0)), rel=1e-6)
    small = rms(*second[0].grad.double().tolist())  # whose squares f32 does not hold
    assert two == EpsilonCheck(2, 1e-16, 1, pytest.approx(small, rel=1e-12), pytest.approx(small, rel=1e-12), False)


def test_epsilon_may_be_the_margin_and_no_more() -> None:
    weight = parameter(0.5, -0.5)
    for epsilon, margin, fits in (
        (0.5e-3, 1e-3, True),
        (0.50001e-3, 1e-3, False),
        (0.5e-3, 0.9e-3, False),
        (1, 2, True),
    ):
        (found,) = adam_epsilon_check(torch.optim.Adam([weight], eps=epsilon), margin=margin)
        assert found.fits is fits, (epsilon, margin)


@pytest.mark.parametrize(
    ("optimizer", "margin", "argument"),
    [
        (torch.optim.SGD([parameter(1.0)], lr=0.1), 1e-3, "optimizer"),
        (torch.optim.Adam([nn.Parameter(torch.ones(2))]), 1e-3, "optimizer"),
        (torch.optim.Adam([parameter(1.0)]), 0.0, "margin"),
    ],
)
def test_bad_arguments(optimizer: torch.optim.Optimizer, margin: float, argument: str) -> None:
    with pytest.raises(LongcatShapeError, match=f"adam_epsilon_check: argument `{argument}`"):
        adam_epsilon_check(optimizer, margin=margin)
