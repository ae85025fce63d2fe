"""The bias controller (report, equation 2) on a simulated router."""

import pytest
import torch

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import BiasController

EXPERTS, ZERO, TOP_K, TARGET = 32, 16, 6, 4.0
TOKENS = 1024


def route(controller, scores):
    """Tokens per expert when `scores` [T, N + Z] are routed with the controller's bias."""
    chosen = torch.topk(scores + controller.bias, controller.top_k, -1)[1]
    return torch.bincount(chosen.flatten(), minlength=scores.shape[1])


def simulate(steps, mu, *, seed=0, **options):
    """A router with fixed, uneven preferences that favour FFN experts, fresh tokens; returns controller and counts."""
    generator = torch.Generator().manual_seed(seed)
    preference = 0.5 * torch.randn(EXPERTS + ZERO, generator=generator)
    preference[:EXPERTS] += 0.5
    controller = BiasController(EXPERTS, ZERO, TOP_K, TARGET, mu=mu, **options)
    history = []
    for _ in range(steps):
        logits = preference + torch.randn(TOKENS, EXPERTS + ZERO, generator=generator)
        history.append(route(controller, logits.softmax(-1)))
        controller.update(history[-1])
    return controller, torch.stack(history).float()


@pytest.mark.parametrize("mu", [0.1, 0.3, 1.0])
def test_reaches_the_target_and_balances(mu):
    controller, history = simulate(400, mu)
    late = history[-50:].sum(0)
    assert controller.real_per_token(history[0]) != pytest.approx(TARGET, rel=0.01)
    assert controller.real_per_token(late) == pytest.approx(TARGET, rel=0.01)
    load = late[:EXPERTS] / late[:EXPERTS].mean()
    assert load.max() < 1.2 and load.min() > 0.8


def test_too_large_mu_oscillates():
    _, calm = simulate(200, 0.3)
    _, wild = simulate(200, 20.0)
    spread = [(h[-50:, :EXPERTS].amax(1) / h[-50:, :EXPERTS].mean(1)).mean() for h in (calm, wild)]
    assert spread[0] < 1.6 and spread[1] > 3 * spread[0]


def test_zero_expert_bias_stays_zero():
    controller, _ = simulate(20, 0.3)
    assert torch.equal(controller.bias[EXPERTS:], torch.zeros(ZERO))
    assert controller.bias[:EXPERTS].abs().max() > 0


def test_one_update_is_equation_2():
    controller = BiasController(2, 1, 2, 1.5, mu=0.5)
    bias = controller.update(torch.tensor([6, 1, 3]))  # 5 tokens, 2 choices each
    assert bias.tolist() == pytest.approx([0.5 * (1.5 / 2 / 2 - 0.6), 0.5 * (1.5 / 2 / 2 - 0.1), 0.0])


def test_fixed_point():
    controller = BiasController(4, 2, 3, 2.0, mu=0.7)
    assert controller.update(torch.tensor([50, 50, 50, 50, 40, 60])).abs().max() < 1e-7


def test_mu_decays_geometrically_then_holds():
    controller = BiasController(2, 0, 1, 1.0, mu=0.4, mu_final=0.1, decay_steps=4)
    seen = []
    for _ in range(6):
        seen.append(controller.mu)
        controller.update(torch.tensor([1, 1]))
    assert seen == pytest.approx([0.4, 0.4 * 0.5**0.5, 0.2, 0.2 * 0.5**0.5, 0.1, 0.1])
    assert BiasController(2, 0, 1, 1.0, mu=0.4).mu == 0.4


def test_state_goes_on_exactly():
    options = {"mu_final": 0.05, "decay_steps": 30}
    whole, history = simulate(20, 0.3, **options)
    first = BiasController(EXPERTS, ZERO, TOP_K, TARGET, mu=0.3, **options)
    for counts in history[:9]:
        first.update(counts)
    second = BiasController(EXPERTS, ZERO, TOP_K, TARGET, mu=0.3, **options)
    second.load_state_dict(first.state_dict())
    for counts in history[9:]:
        second.update(counts)
    assert torch.equal(second.bias, whole.bias) and second.mu == whole.mu


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_zero_experts": -1}, "num_zero_experts"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 49}, "top_k"),
        ({"target_real": 0.0}, "target_real"),
        ({"target_real": 6.5}, "target_real"),
        ({"mu": 0.0}, "mu"),
        ({"mu": float("nan")}, "mu"),
        ({"mu_final": 1.0}, "mu_final"),
        ({"decay_steps": -1}, "decay_steps"),
    ],
)
def test_bad_arguments(change, argument):
    good = {"num_experts": EXPERTS, "num_zero_experts": ZERO, "top_k": TOP_K, "target_real": TARGET, "mu": 0.1}
    with pytest.raises(LongcatShapeError, match=f"argument `{argument}`"):
        BiasController(**{**good, **change})


@pytest.mark.parametrize("counts", [[1, 1], [0, 0, 0], [1, 1, 1], [3, -1, 2]])
def test_bad_counts(counts):
    controller = BiasController(2, 1, 2, 1.0)
    with pytest.raises(LongcatShapeError, match="argument `counts`"):
        controller.update(torch.tensor(counts))
    assert controller.step == 0 and controller.bias.abs().max() == 0
