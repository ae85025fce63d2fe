"""A training step through the ops with a gradient has the losses and weights of plain autograd of the same maths, and
its bits again. bench/chains/training_step.py times both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from chains import training_step
from chains.training_step import Size, losses, same_bits

# Two sizes: experts without rows in a step, and a width that is no multiple of 16.
SIZES = [Size(tokens=65, hidden=64, width=48, experts=8, zero=4, top_k=4),
         Size(tokens=3, hidden=32, width=24, experts=16, zero=8, top_k=2)]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fp32_losses_are_those_of_plain_autograd(size):
    """Within rounding: a loss is a mean of squares of sums of some 100 float32 terms, after up to 6 steps."""
    (ours, weights), (plain, others) = (losses(size, torch.float32, way, steps=6) for way in training_step.WAYS)
    assert ours[0] > ours[-1]  # it learns
    assert all(abs(a - b) <= 1e-6 * b for a, b in zip(ours, plain, strict=True)), (ours, plain)
    others[0] = training_step.reference.interleave_gate_up(others[0])
    for got, want in zip(weights, others, strict=True):
        assert (got - want).norm() <= 1e-6 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_runs_have_the_same_bits(size, dtype):
    assert same_bits(size, dtype, "ours")


def test_the_code_of_the_page_runs():
    page = (Path(__file__).resolve().parents[2] / "docs/training_gradients.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, names)
    assert names["router"].grad.abs().max() > 0 and names["down"].grad.isfinite().all()
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE))))
    assert set(names["functional"].__all__) - {"Sent", "quantise_experts"} <= named
