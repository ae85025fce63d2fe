"""The controller that steers the share of zero experts and the load of the others through the router's bias.

LongCat-Flash technical report (arXiv:2509.01322), equation 2. After every batch, each FFN expert i has the error

    e_i = (K_e / K) / N - T_i / (K * T_all)

and zero experts have none: their bias stays as it is. K experts are chosen per token, K_e of them should be FFN
experts, N is the number of FFN experts, T_i the tokens that chose expert i and T_all all tokens. The report moves the
bias by mu * e_i and calls that a PID controller; it is the integral term of one. The whole controller in its
incremental form (Astrom and Murray, Feedback Systems, 2008, chapter 10) is

    b_i += mu * e_i(t) + kp * (e_i(t) - e_i(t-1)) + kd * (e_i(t) - 2 * e_i(t-1) + e_i(t-2))

with errors of 0 before the first batch. The bias is all the memory that the integral has, so a bound on the bias is the
anti-windup. The bias takes part in the choice only, never in the weights, so the controller adds no gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .checks import require, require_int, require_number

_OP = "BiasController"


@lru_cache(maxsize=8)  # the routers of a network share one table
def _rates(mu: float, mu_final: float, decay_steps: int) -> tuple[float, ...]:
    """mu of update 0 .. decay_steps; the last one holds from there on."""
    return tuple(mu * (mu_final / mu) ** (step / decay_steps) if step else mu for step in range(decay_steps + 1))


class BiasController:
    """Holds the selection bias [N + Z] (f32) of one router and moves it after every batch.

    `update` reads nothing on the host where the bias is on a GPU, and writes to tensors that stay where they are, so a
    CUDA graph can hold it. Counts that cannot be are then left out, counted in `refused`, and reported by `check`.

    Args:
        num_experts: FFN experts N, ids 0 .. N - 1. num_zero_experts: Z, ids N .. N + Z - 1. top_k: K, 1 .. N + Z.
        target_real: K_e, the wanted mean number of FFN experts per token, above 0 and at most K; may be fractional.
        mu: the first rate of the integral term, above 0. It falls geometrically to mu_final over decay_steps updates
            and stays there (the report: "a decay schedule for mu" makes the control stable).
        kp, kd: gains of the proportional and of the derivative term, at least 0; they fall with mu, in proportion.
        limit: the bias of an FFN expert stays within -limit .. limit (anti-windup); None: no bound. Scores are
            probabilities, so a bound of 1 leaves every choice possible.
        group: a process group of torch.distributed over whose ranks `update` sums the counts; None: they are summed
            already.
        device: of the bias, and of the counts.

    Raises:
        LongcatShapeError: an argument is not as above.
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
        kp: float = 0.0,
        kd: float = 0.0,
        limit: float | None = None,
        group: Any = None,
        device: torch.device | str = "cpu",
    ) -> None:
        mu_final = mu if mu_final is None else mu_final
        require_int(_OP, "num_experts", num_experts, 1)
        require_int(_OP, "num_zero_experts", num_zero_experts, 0)
        require_int(_OP, "top_k", top_k, 1, num_experts + num_zero_experts)
        require_number(_OP, "target_real", target_real, above=0)
        require(target_real <= top_k, _OP, "target_real", target_real, f"at most top_k = {top_k}")
        require_number(_OP, "mu", mu, above=0)
        require_number(_OP, "mu_final", mu_final, above=0)
        require(mu_final <= mu, _OP, "mu_final", mu_final, f"at most mu = {mu}")
        require_int(_OP, "decay_steps", decay_steps, 0)
        require_number(_OP, "kp", kp, least=0)
        require_number(_OP, "kd", kd, least=0)
        if limit is not None:
            require_number(_OP, "limit", limit, above=0)
        self.num_experts, self.num_zero_experts, self.top_k = num_experts, num_zero_experts, top_k
        self.target_real, self.kp, self.kd, self.limit, self.group = target_real, kp, kd, limit, group
        self._rates = _rates(mu, mu_final, decay_steps)
        # On the device, where a captured update finds its own rate and counts itself.
        self._rates_here = torch.tensor(self._rates, dtype=torch.float32, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._errors = torch.zeros((2, num_experts), dtype=torch.float32, device=device)  # the last, the one before
        self.bias = torch.zeros(num_experts + num_zero_experts, dtype=torch.float32, device=device)
        self.refused = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def step(self) -> int:
        """Updates so far; read on the host."""
        return int(self._step)

    @property
    def mu(self) -> float:
        """The rate of the next update; read on the host."""
        return self._rates[min(self.step, len(self._rates) - 1)]

    @torch.no_grad()
    def update(self, counts: Tensor) -> Tensor:
        """Moves the bias by one step and returns it.

        Args:
            counts: [N + Z], integers or floats, on the device of the bias: tokens per expert of a batch, zero experts
                included, as `moe_route` gives them; of all ranks, or with `group` of this one. For a small batch, sum
                those of several steps and update less often, as the report advises.

        Returns:
            The bias f32 [N + Z], the tensor that it is held in.

        Raises:
            LongcatShapeError: counts have another shape or device, or are no counts of any tokens: negative, all 0, or
                with a sum that top_k does not divide. On a GPU the latter leave the bias as it is, and `check` raises.
        """
        self._require_form(counts)
        if self.group is not None:
            counts = counts.to(torch.int64, copy=True)
            torch.distributed.all_reduce(counts, group=self.group)
        choices = counts.sum()
        fits = (choices > 0) & (choices % self.top_k == 0) & (counts.min() >= 0)
        if counts.device.type == "cpu":
            self._require_counts(bool(fits), f"summing to {choices.item()}")
        wanted = self.target_real / self.top_k / self.num_experts
        error = wanted - counts[: self.num_experts].to(self.bias) / choices
        mine = self.bias[: self.num_experts]
        mine += self._change(error).masked_fill(~fits, 0)
        if self.limit is not None:
            mine.clamp_(-self.limit, self.limit)
        if self.kp or self.kd:
            self._errors.copy_(torch.where(fits, torch.stack((error, self._errors[0])), self._errors))
        self._step += fits
        self.refused += ~fits
        return self.bias

    def check(self) -> None:
        """Reads on the host whether all counts fitted. Raises LongcatShapeError if `update` has left some out."""
        refused = int(self.refused)
        self._require_counts(refused == 0, f"unusable in {refused} updates, which were left out")

    def real_per_token(self, counts: Tensor) -> float:
        """Mean number of FFN experts per token that `counts` speaks of, to be compared with target_real; read on the
        host.
        """
        return self.top_k * float(counts[: self.num_experts].sum()) / float(counts.sum())

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly here; read on the host."""
        return {"bias": self.bias.clone(), "step": self.step, "errors": self._errors.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken; a state without `errors`, of an integral controller, begins them at 0.

        Raises:
            LongcatShapeError: the state is of a router of another size; nothing was written.
        """
        errors = state.get("errors", torch.zeros_like(self._errors))
        for name, found, own in (("bias", state["bias"], self.bias), ("errors", errors, self._errors)):
            require(found.shape == own.shape, _OP, "state", f"{name} of shape {list(found.shape)}", list(own.shape))
        self.bias.copy_(state["bias"])
        self._errors.copy_(errors)
        self._step.fill_(state["step"])

    def _change(self, error: Tensor) -> Tensor:
        """What the bias of each FFN expert moves by, f32 [N]."""
        rate = self._rates_here.index_select(0, self._step.clamp(max=len(self._rates) - 1))
        change = rate * error
        if self.kp or self.kd:
            last, before = self._errors
            more = self.kp * (error - last) + self.kd * (error - 2 * last + before)
            change = change + rate / self._rates[0] * more
        return change

    def _require_form(self, counts: Tensor) -> None:
        require(
            tuple(counts.shape) == tuple(self.bias.shape),
            _OP,
            "counts",
            f"of shape {list(counts.shape)}",
            f"[{self.bias.numel()}] (FFN and zero experts)",
        )
        require(counts.device == self.bias.device, _OP, "counts", f"on {counts.device}", f"on {self.bias.device}")

    def _require_counts(self, holds: bool, got: str) -> None:
        require(holds, _OP, "counts", got, f"counts >= 0 whose sum is a positive multiple of top_k = {self.top_k}")
