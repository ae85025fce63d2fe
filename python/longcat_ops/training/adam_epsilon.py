"""Whether the epsilon of an Adam optimiser is small enough for the gradients that it meets.

LongCat-Flash technical report (arXiv:2509.01322), section 3.1.3, "On the Practical Configuration of Adam's Epsilon":
larger models have smaller gradients, the loss suffers as soon as epsilon comes near their RMS, and further below it
makes no difference. The report takes 1e-16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .checks import require, require_number

_OP = "adam_epsilon_check"


@dataclass(frozen=True)
class EpsilonCheck:
    """One parameter group. smallest_rms, largest_rms: RMS of the gradients of a parameter, over those of the group that
    have a gradient other than 0, `parameters` of them. fits: epsilon is at most margin * smallest_rms.
    """

    group: int
    epsilon: float
    parameters: int
    smallest_rms: float
    largest_rms: float
    fits: bool


def adam_epsilon_check(optimizer: torch.optim.Optimizer, *, margin: float = 1e-3) -> list[EpsilonCheck]:
    """Compares each group's epsilon with the root mean square of the gradients that its parameters have now.

    Call it after the backward pass and after unscaling, before gradients are clipped or set to None. It reads once on
    the host.

    Args:
        optimizer: an Adam of any kind: its groups have `eps`.
        margin: the largest share of the smallest RMS that epsilon may be, above 0. The report asks for "several orders
            of magnitude"; 1e-3 is our reading of that.

    Returns:
        One EpsilonCheck for each group in which a parameter has a gradient other than 0.

    Raises:
        LongcatShapeError: a group has no `eps`, no parameter of any group has a gradient, or margin is not above 0.
    """
    require_number(_OP, "margin", margin, above=0)
    where, norms = [], []
    for index, group in enumerate(optimizer.param_groups):
        require(
            "eps" in group, _OP, "optimizer", f"{type(optimizer).__name__} without `eps` in group {index}", "an Adam"
        )
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.numel():
                # f64: squares of small gradients vanish in f32.
                norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
                norms.append(norm / parameter.numel() ** 0.5)
                where.append(index)
    require(bool(norms), _OP, "optimizer", "without a gradient", "one whose parameters have gradients",
            "call it between backward() and zero_grad()")  # fmt: skip
    rms: dict[int, list[float]] = {}
    together = torch.stack([norm.to(norms[0].device) for norm in norms])
    for index, value in zip(where, together.tolist(), strict=True):
        if value:
            rms.setdefault(index, []).append(value)
    found = []
    for index, values in rms.items():
        epsilon = float(optimizer.param_groups[index]["eps"])
        fits = epsilon <= margin * min(values)
        found.append(EpsilonCheck(index, epsilon, len(values), min(values), max(values), fits))
    return found
