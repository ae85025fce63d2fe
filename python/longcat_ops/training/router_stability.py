"""Whether the balance loss overwhelms the language-model loss in a router, and a weight that keeps it from that.

LongCat-Flash technical report (arXiv:2509.01322), section 3.1.3, "Router Stability".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import require, require_floats, require_number, wide

_RATIO = "router_gradient_ratio"
THRESHOLD = 0.1  # of R_g (report, section 3.1.3)


def router_gradient_ratio(
    lm_loss: Tensor, balance_loss: Tensor, probs: Tensor | Sequence[Tensor], *, weight: float
) -> Tensor:
    """R_g, how strongly the balance loss moves a router beside the language-model loss (report, equation 9).

    R_g = ||weight * grad_P L_LB|| / ||grad_P L_LM||, P the vector of expert probabilities, averaged over the batch. A
    change of P is the same change of every token's probabilities, so grad_P is the sum of the gradients of all tokens.
    The report keeps R_g below a small threshold, such as 0.1. Both losses may be scaled by one factor.

    This runs the backward pass of both losses down to `probs` and keeps their graphs: ask it every few hundred steps.
    It leaves `.grad` alone.

    Args:
        lm_loss, balance_loss: floating scalars of one batch that depend on probs; balance_loss without its weight.
        probs: [T, E] or [..., E] floating, the softmax of the router that both losses were computed from; or those of
            several routers.
        weight: alpha, the weight of the balance loss, at least 0.

    Returns:
        f32 [], or [L] for L routers; f64 if probs are. inf where the gradient of lm_loss is 0.

    Raises:
        LongcatShapeError: an argument is not as above, or a loss does not depend on the probs of a router.
    """
    several = isinstance(probs, Sequence)
    routers = list(probs) if several else [probs]
    require(len(routers) > 0, _RATIO, "probs", "empty", "at least one router's")
    require_number(_RATIO, "weight", weight, least=0)
    for i, one in enumerate(routers):
        name = f"probs[{i}]" if several else "probs"
        require_floats(_RATIO, name, one, "[..., E]")
        require(one.requires_grad, _RATIO, name, "without a gradient", "a tensor that requires a gradient")

    def norms(name: str, loss: Tensor) -> Tensor:
        require_floats(_RATIO, name, loss, "[]", 0)
        found = (
            torch.autograd.grad(loss, routers, retain_graph=True, allow_unused=True) if loss.requires_grad else [None]
        )
        unused = [i for i, gradient in enumerate(found) if gradient is None]
        require(
            not unused, _RATIO, name, f"independent of the probs of router {unused[:1]}", "computed from all of them"
        )
        sums = [wide(gradient).reshape(-1, gradient.shape[-1]).sum(0) for gradient in found]
        return torch.stack([torch.linalg.vector_norm(one) for one in sums])

    ratio = weight * norms("balance_loss", balance_loss) / norms("lm_loss", lm_loss)
    return ratio if several else ratio[0]


class BalanceWeight:
    """Holds alpha, the weight of the balance loss, and keeps R_g below a threshold with it.

    R_g is proportional to alpha. So a measured R_g says at which alpha it would have been aim * threshold; alpha goes
    down to that at once, and up to it, or to where it began, by at most `growth` a measurement. R_g then stays below
    the threshold as long as its other factor grows by less than 1 / aim between two measurements. The threshold is the
    report's; aim and growth are our choice.

    Args:
        weight: alpha at the begin, and the largest it gets, above 0.
        threshold: of R_g, above 0. aim: 0 .. 1, without both. growth: above 1.

    Raises:
        LongcatShapeError: an argument is not as above.
    """

    def __init__(self, weight: float, *, threshold: float = THRESHOLD, aim: float = 0.5, growth: float = 1.05) -> None:
        name = type(self).__name__
        require_number(name, "weight", weight, above=0)
        require_number(name, "threshold", threshold, above=0)
        require_number(name, "aim", aim, above=0)
        require(aim < 1, name, "aim", aim, "below 1")
        require_number(name, "growth", growth, above=1)
        self.largest, self.weight = float(weight), float(weight)
        self.threshold, self.aim, self.growth = threshold, aim, growth

    def update(self, ratio: Tensor | float) -> float:
        """The weight to go on with.

        Args:
            ratio: R_g at the present weight, at least 0: a number, or a tensor of one or several routers, of which the
                largest counts; read on the host. One that is not finite leaves the weight as it is.

        Returns:
            The weight, which `weight` holds, too.

        Raises:
            LongcatShapeError: ratio is negative.
        """
        found = float(ratio.max()) if isinstance(ratio, Tensor) else float(ratio)
        if not math.isfinite(found):
            return self.weight
        require(found >= 0, type(self).__name__, "ratio", found, "at least 0")
        room = self.aim * self.threshold / found if found else math.inf
        self.weight = min(self.largest, self.weight * min(room, self.growth))
        return self.weight

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on here."""
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the weight of a state. Raises LongcatShapeError if that is not above 0."""
        require_number(type(self).__name__, "state", state["weight"], above=0)
        self.weight = float(state["weight"])


def router_similarity(weight: Tensor) -> Tensor:
    """The mean cosine of two different experts' rows of a router's weight (report, section 3.1.3).

    It rises towards 1 when a balance loss makes all experts alike; independent rows have 0. Computed from the sum of
    the normed rows, in O(E * H): the sum of all E * E cosines is the square of its length.

    Args:
        weight: [..., E, H] floating, E >= 2. A row of zeros has cosine 0 with every other.

    Returns:
        f32 [...], or f64 for a weight in f64.

    Raises:
        LongcatShapeError: weight is not as above.
    """
    op = "router_similarity"
    require_floats(op, "weight", weight, "[..., E, H]")
    shape = f"of shape {list(weight.shape)}"
    require(weight.ndim >= 2 and weight.shape[-2] >= 2, op, "weight", shape, "[..., E, H] with E >= 2")
    experts = weight.shape[-2]
    rows = F.normalize(wide(weight), dim=-1)
    others = rows.sum(-2).square().sum(-1) - rows.square().sum((-2, -1))
    return others / (experts * (experts - 1))
