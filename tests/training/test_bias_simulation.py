"""The bias controller on the simulated router of docs/bias_control.md reaches target and balance, and stays there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import bias_control_page as page
from bias_simulation import EXPERTS, FLOOR, TARGET, TOKENS, TOP_K, ZERO, Router, Rule, SignRule, chosen, simulate

RECORD = json.loads((Path(__file__).resolve().parents[2] / page.RECORD).read_text(encoding="utf-8"))


def test_mu_03_holds_the_target_from_step_63_on() -> None:
    curve = simulate(Router(skew=0.5, shift=1.0), [Rule("mu 0.3", {"mu": 0.3})], 150)["mu 0.3"]
    assert curve.real[0] == pytest.approx(5.5, abs=0.05)
    means = [sum(curve.real[end - 20 : end]) / 20 for end in range(20, 151)]  # means[i] ends with step i + 20
    near = [abs(mean / TARGET - 1) <= 0.01 for mean in means]
    assert all(near[63 - 20 :]) and not near[62 - 20]
    assert sum(curve.load_cv[-50:]) / 50 <= 1.3 * FLOOR
    assert page.settled(RECORD["skew 0.5"]["mu 0.3"]["real"]) == 63


@pytest.mark.parametrize("rule", ["mu 0.03", "mu 0.1", "mu 0.3", "mu 1"])
def test_no_oscillation_grows_at_skew_2(rule: str) -> None:
    """Over the 250 steps of the record the mean never again strays as far as in the first 50, and from there on the
    loads of no 50 steps are less even than those of the 50 before, but for a tenth.
    """
    curve = RECORD["skew 2"][rule]
    real, loads = (np.array(curve[key]).reshape(5, 50) for key in ("real", "load_cv"))
    assert (np.abs(real[1:] - TARGET).max(1) < np.abs(real[0] - TARGET).max()).all()
    assert (loads.mean(1)[2:] <= 1.1 * loads.mean(1)[1:-1]).all()


def test_the_sign_rule_moves_every_expert_by_u() -> None:
    rule = SignRule(0.5)
    counts = torch.full((EXPERTS + ZERO,), 256)
    counts[0], counts[1], counts[-1] = 300, 250, 218
    rule.update(counts)
    assert counts.double().mean() == 256
    assert rule.bias[[0, 1, -1]].tolist() == [-0.5, 0.5, 0.5] and int(rule.bias.count_nonzero()) == 3


def test_the_choice_is_that_of_a_sort() -> None:
    scores = next(Router().steps())[:50]
    bias = torch.linspace(-0.05, 0.05, EXPERTS + ZERO)
    counts = [0] * (EXPERTS + ZERO)
    for row in scores:
        for expert in sorted(range(EXPERTS + ZERO), key=lambda e: -(row[e] + bias[e].item()))[:TOP_K]:
            counts[expert] += 1
    assert chosen(scores, bias).tolist() == counts


def test_the_floor_is_that_of_balanced_choices() -> None:
    """Loads of 400 steps in which each token chooses each expert with probability K_e / N."""
    loads = np.random.default_rng(0).binomial(TOKENS, TARGET / EXPERTS, (400, EXPERTS))
    assert (loads.std(1) / loads.mean(1)).mean() == pytest.approx(FLOOR, rel=0.02)
