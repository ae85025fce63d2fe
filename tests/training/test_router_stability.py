"""R_g against differences of the losses, the weight that keeps it small, and the cosines of a router's rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import BalanceWeight, device_balance_loss, router_gradient_ratio, router_similarity

TOKENS, EXPERTS, ZERO, TOP_K, HIDDEN = 9, 6, 2, 3, 5


class Network:
    """A MoE of random experts in f64 whose choices stay: probabilities -> the two losses."""

    def __init__(self, seed: int = 0, tokens: int = TOKENS, repeat: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.x, self.wanted = (draw(tokens, HIDDEN).repeat(repeat, 1) for _ in range(2))
        self.router, self.outputs = (
            draw(EXPERTS + ZERO, HIDDEN),
            draw(EXPERTS + ZERO, tokens, HIDDEN).repeat(1, repeat, 1),
        )
        self.ids = (self.x @ self.router.T).topk(TOP_K).indices

    def probs(self) -> Tensor:
        return (self.x @ self.router.T).softmax(-1).requires_grad_()

    def lm(self, probs: Tensor) -> Tensor:
        chosen = self.outputs.transpose(0, 1).gather(1, self.ids[..., None].expand(-1, -1, HIDDEN))
        y = (probs.gather(1, self.ids)[..., None] * chosen).sum(1)
        return (y - self.wanted).square().mean()

    def balance(self, probs: Tensor) -> Tensor:
        return device_balance_loss(
            probs, self.ids, num_experts=EXPERTS, num_zero_experts=ZERO, top_k=TOP_K, target_real=2.0, groups=3
        )

    def ratio(self, weight: float = 0.3, scale: float = 1.0) -> Tensor:
        probs = self.probs()
        return router_gradient_ratio(scale * self.lm(probs), scale * self.balance(probs), probs, weight=weight)


def slope(loss: Callable[[Tensor], Tensor], probs: Tensor) -> float:
    """The norm of the gradient by the mean probabilities: central differences of one step for all tokens."""
    step, squares = 1e-5, 0.0
    for i in range(probs.shape[1]):
        up, down = probs.detach().clone(), probs.detach().clone()
        up[:, i] += step
        down[:, i] -= step
        squares += ((loss(up) - loss(down)).item() / (2 * step)) ** 2
    return math.sqrt(squares)


def test_the_ratio_is_that_of_differences() -> None:
    """Both losses are at most quadratic in the probabilities, so central differences err by rounding alone."""
    for seed in range(3):
        network = Network(seed)
        probs = network.probs()
        wanted = 0.3 * slope(network.balance, probs) / slope(network.lm, probs)
        assert network.ratio(0.3).item() == pytest.approx(wanted, rel=1e-8)


def test_the_ratio_does_not_depend_on_the_scale_or_on_a_repeated_batch() -> None:
    ratio = Network().ratio().item()
    assert Network().ratio(scale=2.0**20).item() == ratio and Network().ratio(scale=2.0**-20).item() == ratio
    assert Network(repeat=4).ratio().item() == pytest.approx(ratio, rel=1e-13)


def test_the_ratio_grows_with_the_weight() -> None:
    assert Network().ratio(0.6).item() == pytest.approx(2 * Network().ratio(0.3).item(), rel=1e-15)
    assert Network().ratio(0.0).item() == 0


def test_several_routers_and_what_stays_as_it_was() -> None:
    networks = [Network(seed) for seed in range(3)]
    probs = [network.probs() for network in networks]
    lm = sum(network.lm(one) for network, one in zip(networks, probs, strict=True))
    balance = sum(network.balance(one) for network, one in zip(networks, probs, strict=True))
    ratios = router_gradient_ratio(lm, balance, probs, weight=0.3)
    assert ratios.tolist() == pytest.approx([network.ratio(0.3).item() for network in networks], rel=1e-13)
    assert all(one.grad is None for one in probs)
    (lm + balance).backward()  # both graphs are still there


def test_a_router_without_a_language_gradient_has_the_ratio_inf() -> None:
    network = Network()
    probs = network.probs()
    assert router_gradient_ratio(0 * network.lm(probs), network.balance(probs), probs, weight=1.0).item() == math.inf


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"probs": []}, "probs"),
        ({"probs": torch.ones(3, 8)}, "probs"),
        ({"probs": torch.ones(3, 8, requires_grad=True)}, "balance_loss"),
        ({"lm_loss": torch.ones(())}, "lm_loss"),
        ({"lm_loss": torch.ones(2, requires_grad=True)}, "lm_loss"),
        ({"balance_loss": 1.0}, "balance_loss"),
    ],
)
def test_bad_arguments_of_the_ratio(change: dict, argument: str) -> None:
    network = Network()
    probs = network.probs()
    good = {"lm_loss": network.lm(probs), "balance_loss": network.balance(probs), "probs": probs, "weight": 0.1}
    with pytest.raises(LongcatShapeError, match=f"router_gradient_ratio: argument `{argument}"):
        router_gradient_ratio(**{**good, **change})


def test_the_weight_keeps_the_ratio_below_the_threshold() -> None:
    """R_g = weight * slope, the slope a random walk over three decades that never doubles within one step."""
    draw, weight, slope, seen = random.Random(0), BalanceWeight(0.01), 40.0, []
    weight.update(weight.weight * slope)
    for _ in range(2000):
        slope = min(1e3, max(1.0, slope * draw.uniform(0.6, 1.6)))
        ratio = weight.weight * slope
        seen.append(ratio)
        assert ratio < 0.1 and 0 < weight.update(torch.tensor([ratio, ratio / 2])) <= 0.01
    assert max(seen) > 0.07  # it does not stay away from the threshold by being useless


def test_the_weight_comes_back_by_its_growth() -> None:
    weight = BalanceWeight(0.01, threshold=0.2, aim=0.25, growth=1.5)
    assert weight.update(0.5) == pytest.approx(0.001)
    assert [weight.update(0.001) for _ in range(7)] == pytest.approx(
        [0.0015, 0.00225, 0.003375, 0.0050625, 0.00759375, 0.01, 0.01]
    )
    assert weight.update(float("inf")) == weight.update(float("nan")) == weight.update(0.0) == 0.01
    other = BalanceWeight(0.01)
    weight.update(0.5)
    other.load_state_dict(weight.state_dict())
    assert other.weight == weight.weight < 0.01


@pytest.mark.parametrize(("name", "value"), [("weight", 0.0), ("threshold", -1), ("aim", 0.0), ("aim", 1.0),
                                             ("growth", 1.0), ("growth", float("inf"))])  # fmt: skip
def test_bad_arguments_of_the_weight(name: str, value: float) -> None:
    with pytest.raises(LongcatShapeError, match=f"BalanceWeight: argument `{name}`"):
        BalanceWeight(**{"weight": 0.01, name: value})


def test_a_negative_ratio_and_a_state_of_nothing_are_refused() -> None:
    weight = BalanceWeight(0.01)
    with pytest.raises(LongcatShapeError, match="argument `ratio`"):
        weight.update(-0.1)
    with pytest.raises(LongcatShapeError, match="argument `state`"):
        weight.load_state_dict({"weight": 0.0})
    assert weight.weight == 0.01


def cosines(rows: list[list[float]]) -> float:
    """Pair by pair in Python floats."""
    norms = [math.sqrt(math.fsum(v * v for v in row)) for row in rows]
    found = []
    for i in range(len(rows)):
        for j in range(i):
            dot = math.fsum(a * b for a, b in zip(rows[i], rows[j], strict=True))
            found.append(dot / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0)
    return math.fsum(found) / len(found)


@pytest.mark.parametrize("shape", [(2, 1), (2, 7), (9, 3), (24, 16)])
def test_similarity_is_that_of_the_pairs(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert router_similarity(weight).item() == pytest.approx(cosines(weight.tolist()), rel=1e-12, abs=1e-14)
    weight[0] = 0
    assert router_similarity(weight).item() == pytest.approx(cosines(weight.tolist()), rel=1e-12, abs=1e-14)


def test_similarity_of_equal_and_of_orthogonal_rows() -> None:
    row = torch.tensor([[3.0, 4.0]])
    assert router_similarity(row * torch.tensor([[1.0], [2.0], [0.5]])).item() == pytest.approx(1.0, rel=1e-6)
    assert router_similarity(torch.eye(5)).item() == 0.0
    assert router_similarity(torch.stack((torch.eye(3), torch.ones(3, 3)))).tolist() == pytest.approx([0.0, 1.0])
    assert router_similarity(torch.eye(4, dtype=torch.bfloat16)).dtype == torch.float32


def test_similarity_has_a_gradient() -> None:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(router_similarity, weight)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(1, 3), torch.ones(3, 3, dtype=torch.int32), None])
def test_bad_weights_of_similarity(weight: object) -> None:
    with pytest.raises(LongcatShapeError, match="router_similarity: argument `weight`"):
        router_similarity(weight)
