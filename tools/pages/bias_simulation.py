"""A router with fixed preferences and fresh tokens at every step, under a rule that moves its selection bias.

The logits of a token are its expert's preference plus normal noise of variance 1; those of FFN experts are `shift`
higher, so that more of them are chosen than wanted. All of it in float64 of numpy, whose random numbers are the same
everywhere: a difference in the last bit of an exponential changes a choice once in many billions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from longcat_ops.training import BiasController

EXPERTS, ZERO, TOP_K, TARGET, TOKENS = 64, 32, 6, 4.0, 4096
# Each token chooses an expert with probability TARGET / EXPERTS at balance. So its load is binomial, and this the
# coefficient of variation (CV) of loads that sampling leaves under any rule.
FLOOR = ((EXPERTS / TARGET - 1) / TOKENS) ** 0.5


@dataclass(frozen=True)
class Router:
    """skew: standard deviation of the preferences; shift: of FFN experts; seed: of preferences and tokens; closed: the
    first so many steps no zero expert can be chosen.
    """

    skew: float = 0.5
    shift: float = 1.0
    seed: int = 0
    closed: int = 0

    def steps(self) -> Iterator[np.ndarray]:
        """The scores f64 [TOKENS, EXPERTS + ZERO] of each step: probabilities."""
        random = np.random.default_rng(self.seed)
        preference = self.skew * random.standard_normal(EXPERTS + ZERO)
        preference[:EXPERTS] += self.shift
        step = 0
        while True:
            scores = np.exp(preference + random.standard_normal((TOKENS, EXPERTS + ZERO)))
            scores /= scores.sum(1, keepdims=True)
            if step < self.closed:
                scores[:, EXPERTS:] = -np.inf
            yield scores
            step += 1


def chosen(scores: np.ndarray, bias: torch.Tensor) -> torch.Tensor:
    """Tokens i64 [EXPERTS + ZERO] per expert, of the TOP_K largest scores + bias of each token."""
    biased = scores + bias.numpy()
    least = np.partition(biased, -TOP_K, axis=1)[:, -TOP_K, None]
    return torch.from_numpy((biased >= least).sum(0))


class SignRule:
    """The peer, the rule of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2; Wang et al., arXiv:2408.15664): experts with
    more tokens than the mean of all lose `u`, those with fewer gain it. It takes zero experts for experts like others.
    """

    def __init__(self, u: float) -> None:
        self.u, self.bias = u, torch.zeros(EXPERTS + ZERO)

    def update(self, counts: torch.Tensor) -> None:
        loads = counts.float()
        self.bias += self.u * torch.sign(loads.mean() - loads)


@dataclass(frozen=True)
class Rule:
    """A rule under the name that the page calls it by: options of BiasController, or u of the sign rule."""

    name: str
    options: dict[str, float] = field(default_factory=dict)
    u: float | None = None

    def make(self) -> BiasController | SignRule:
        return SignRule(self.u) if self.u else BiasController(EXPERTS, ZERO, TOP_K, TARGET, **self.options)


@dataclass(frozen=True)
class Curve:
    """After each step: the FFN experts that a token chose in the mean, and the CV of the loads of FFN experts."""

    real: list[float]
    load_cv: list[float]


def simulate(router: Router, rules: Sequence[Rule], steps: int) -> dict[str, Curve]:
    """The curve of each rule, by its name. All see the same tokens."""
    controls = {rule.name: rule.make() for rule in rules}
    curves = {name: Curve([], []) for name in controls}
    for scores, _ in zip(router.steps(), range(steps), strict=False):
        for name, control in controls.items():
            counts = chosen(scores, control.bias)
            loads = counts[:EXPERTS].double()
            curves[name].real.append(loads.sum().item() / TOKENS)
            curves[name].load_cv.append((loads.std(correction=0) / loads.mean()).item())
            control.update(counts)
    return curves
