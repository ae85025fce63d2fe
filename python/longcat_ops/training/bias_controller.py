"""The controller that steers the share of zero experts and the load of the others through the router's bias.

LongCat-Flash technical report, equation 2. After every batch, for each FFN expert i

    b_i += mu * ((K_e / K) / N - T_i / (K * T_all))

and for zero experts nothing: their bias stays 0. K experts are chosen per token, K_e of them should be FFN experts,
N is the number of FFN experts, T_i the tokens that chose expert i and T_all all tokens. The bias takes part in the
choice only, never in the weights, so the controller adds no gradient. The sum is the integral term of a PID
controller; mu decays.
"""

from __future__ import annotations

import math

import torch

from ..errors import LongcatShapeError, message

_OP = "BiasController"


def _require(holds: bool, argument: str, got: object, expected: object) -> None:
    if not holds:
        raise LongcatShapeError(message(_OP, argument, got, expected))


class BiasController:
    """Holds the selection bias [N + Z] (f32) of one router and moves it after every batch.

    num_experts: FFN experts N, ids 0 .. N - 1; num_zero_experts: Z, ids N .. N + Z - 1; top_k: K;
    target_real: K_e, the wanted mean number of FFN experts per token, may be fractional;
    mu: the first rate; it falls geometrically to mu_final over decay_steps updates and stays there.
    """

    def __init__(
        self,
        num_experts: int,
        num_zero_experts: int,
        top_k: int,
        target_real: float,
        *,
        mu: float = 0.03,
        mu_final: float | None = None,
        decay_steps: int = 0,
    ) -> None:
        mu_final = mu if mu_final is None else mu_final
        _require(num_experts >= 1, "num_experts", num_experts, "at least 1")
        _require(num_zero_experts >= 0, "num_zero_experts", num_zero_experts, "at least 0")
        _require(
            1 <= top_k <= num_experts + num_zero_experts,
            "top_k",
            top_k,
            f"1 .. {num_experts + num_zero_experts} (all experts)",
        )
        _require(0 < target_real <= top_k, "target_real", target_real, f"above 0 and at most top_k = {top_k}")
        _require(mu > 0 and math.isfinite(mu), "mu", mu, "a positive number")
        _require(0 < mu_final <= mu, "mu_final", mu_final, f"above 0 and at most mu = {mu}")
        _require(decay_steps >= 0, "decay_steps", decay_steps, "at least 0")
        self.num_experts, self.num_zero_experts, self.top_k = num_experts, num_zero_experts, top_k
        self.target_real, self.mu_start, self.mu_final = target_real, mu, mu_final
        self.decay_steps, self.step = decay_steps, 0
        self.bias = torch.zeros(num_experts + num_zero_experts, dtype=torch.float32)

    @property
    def mu(self) -> float:
        """The rate of the next update."""
        if self.decay_steps == 0:
            return self.mu_start
        done = min(self.step / self.decay_steps, 1.0)
        return self.mu_start * (self.mu_final / self.mu_start) ** done

    def update(self, counts: torch.Tensor) -> torch.Tensor:
        """Moves the bias by equation 2 and returns it.

        counts: tokens per expert of the whole batch, zero experts included, summed over all ranks (`moe_route` gives
        them per rank).
        """
        _require(
            tuple(counts.shape) == tuple(self.bias.shape),
            "counts",
            f"of shape {list(counts.shape)}",
            f"[{self.bias.numel()}] (FFN and zero experts)",
        )
        choices = int(counts.sum())
        _require(
            choices > 0 and choices % self.top_k == 0 and int(counts.min()) >= 0,
            "counts",
            f"summing to {choices}",
            f"counts >= 0 whose sum is a positive multiple of top_k = {self.top_k}",
        )
        wanted = self.target_real / self.top_k / self.num_experts
        share = counts[: self.num_experts].to(self.bias) / choices
        self.bias[: self.num_experts] += self.mu * (wanted - share)
        self.step += 1
        return self.bias

    def real_per_token(self, counts: torch.Tensor) -> float:
        """Mean number of FFN experts per token that `counts` speaks of; to be compared with target_real."""
        return self.top_k * float(counts[: self.num_experts].sum()) / float(counts.sum())

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to go on exactly here."""
        return {"bias": self.bias.clone(), "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        found, wanted = list(state["bias"].shape), list(self.bias.shape)
        _require(found == wanted, "state", f"a bias of shape {found}", wanted)
        self.bias.copy_(state["bias"])
        self.step = state["step"]
