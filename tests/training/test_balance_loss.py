"""device_balance_loss against loops over tokens, choices and experts in Python floats, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import device_balance_loss

# T, N, Z, K, D, K_e
SHAPES = [(1, 4, 2, 3, 2, 1.5), (7, 6, 3, 4, 3, 2.5), (33, 8, 0, 2, 4, 2), (5, 4, 1, 2, 1, 1.25), (16, 5, 4, 6, 5, 3.0)]


def case(shape: tuple, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, dict]:
    """(probs, ids, the other arguments): each token's choices are K experts of its own."""
    tokens, experts, zero, top_k, groups, real = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts + zero, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(experts + zero, generator=generator)[:top_k] for _ in range(tokens)])
    named = {"num_experts": experts, "num_zero_experts": zero, "top_k": top_k, "target_real": real, "groups": groups}
    return logits.softmax(-1).to(dtype), ids, named


def frequencies(ids: Tensor, tokens: int, experts: int, zero: int, top_k: int, groups: int, real: float) -> list[float]:
    """f_j of equation 5, choice by choice."""
    counts = [0] * (groups + 1)
    for row in ids.tolist():
        for expert in row:
            counts[expert // (experts // groups) if 0 <= expert < experts else groups] += 1
    last = [counts[groups] / ((top_k - real) * tokens)] if zero else []
    return [groups / (real * tokens) * count for count in counts[:groups]] + last


def by_loops(probs: Tensor, ids: Tensor, shape: tuple) -> float:
    tokens, experts, zero, _, groups, _ = shape
    total = 0.0
    for j, f in enumerate(frequencies(ids, *shape)):
        mine = (
            range(j * experts // groups, (j + 1) * experts // groups) if j < groups else range(experts, experts + zero)
        )
        total += f * sum(probs[t, i].item() for t in range(tokens) for i in mine) / tokens
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_that_of_the_loops(shape: tuple, dtype: torch.dtype) -> None:
    probs, ids, named = case(shape, dtype)
    loss = device_balance_loss(probs, ids.int(), **named)
    assert loss.shape == () and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # At most T + N + 8 roundings on the way of a term, all terms positive.
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    assert loss.item() == pytest.approx(by_loops(probs, ids, shape), rel=(sum(shape[:3]) + 8) * unit)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_differences_and_of_the_frequencies(shape: tuple) -> None:
    probs, ids, named = case(shape)
    tokens, experts, zero, _, groups, _ = shape
    logits = probs.log().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: device_balance_loss(x.softmax(-1), ids, **named), logits)
    device_balance_loss(probs.requires_grad_(), ids, **named).backward()
    f = frequencies(ids, *shape)
    wanted = [f[i // (experts // groups) if i < experts else groups] / tokens for i in range(experts + zero)]
    torch.testing.assert_close(probs.grad, torch.tensor([wanted] * tokens, dtype=torch.float64), rtol=1e-14, atol=0)


def test_balance_has_the_loss_1() -> None:
    """6 experts in 3 groups and 2 zero experts, K = 4, K_e = 3: of a token's choices each group gets one, and zero
    experts get one. Then every f_j is 1, whatever the probabilities.
    """
    probs, _, _ = case((8, 6, 2, 4, 3, 3.0))
    ids = torch.tensor([[0, 2, 5, 6], [1, 3, 4, 7]] * 4)
    named = {"num_experts": 6, "num_zero_experts": 2, "top_k": 4, "target_real": 3.0, "groups": 3}
    assert device_balance_loss(probs, ids, **named).item() == pytest.approx(1.0, rel=1e-14)
    busy = torch.tensor([[0, 1, 5, 6]] * 8)
    probs.requires_grad_()
    device_balance_loss(probs, busy, **named).backward()
    assert probs.grad[0].tolist() == pytest.approx([2 / 8, 2 / 8, 0, 0, 1 / 8, 1 / 8, 1 / 8, 1 / 8], rel=1e-14)


def test_zero_experts_may_be_absent_ids() -> None:
    probs, ids, named = case(SHAPES[1])
    absent = torch.where(ids >= 6, -1, ids)
    assert torch.equal(device_balance_loss(probs, ids, **named), device_balance_loss(probs, absent, **named))


def test_nothing_is_read_on_the_host_of_a_device() -> None:
    _, _, named = case(SHAPES[1])
    probs = torch.empty(7, 9, device="meta", requires_grad=True)
    device_balance_loss(probs, torch.empty(7, 4, dtype=torch.int32, device="meta"), **named).backward()
    assert probs.grad.shape == (7, 9)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 5}, "groups"),
        ({"groups": 0}, "groups"),
        ({"groups": 4}, "groups"),
        ({"num_zero_experts": -1}, "num_zero_experts"),
        ({"num_zero_experts": 2}, "probs"),
        ({"top_k": 10}, "top_k"),
        ({"top_k": 3}, "ids"),
        ({"target_real": 0.0}, "target_real"),
        ({"target_real": 4}, "target_real"),
        ({"probs": torch.ones(7, 9, dtype=torch.int32)}, "probs"),
        ({"probs": torch.ones(63)}, "probs"),
        ({"probs": torch.ones(0, 9)}, "probs"),
        ({"probs": None}, "probs"),
        ({"ids": torch.zeros(7, 4)}, "ids"),
        ({"ids": torch.zeros(6, 4, dtype=torch.int32)}, "ids"),
        ({"ids": torch.full((7, 4), 9)}, "ids"),
        ({"ids": torch.full((7, 4), -2)}, "ids"),
        ({"ids": torch.zeros(7, 4, dtype=torch.int32, device="meta")}, "ids"),
        ({"ids": [[0] * 4] * 7}, "ids"),
    ],
)
def test_bad_arguments(change: dict, argument: str) -> None:
    probs, ids, named = case(SHAPES[1])
    with pytest.raises(LongcatShapeError, match=f"device_balance_loss: argument `{argument}`"):
        device_balance_loss(**{"probs": probs, "ids": ids, **named, **change})


def test_without_zero_experts_all_choices_are_wanted() -> None:
    probs, ids, named = case(SHAPES[2])
    with pytest.raises(LongcatShapeError, match=r"argument `target_real` is 1\.5, expected top_k = 2"):
        device_balance_loss(probs, ids, **{**named, "target_real": 1.5})
