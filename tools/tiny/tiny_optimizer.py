"""Muon for the projection matrices, AdamW for embeddings, head, norms and router.

Both move f32 masters; the network computes with working copies of them in the dtype that the CPU multiplies fastest.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

WEIGHT_DECAY = 0.1
MOMENTUM = 0.95


def is_projection(name: str) -> bool:
    """The weights that Muon trains, and that the checkpoint stores in FP8."""
    return name.endswith(("_proj.weight", "_proj", "kv_a_proj_with_mqa.weight"))


def _orthogonalise(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Five Newton-Schulz steps towards the nearest (semi-)orthogonal matrix, batched over leading dimensions."""
    x = matrix.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(dtype) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class TinyOptimizer:
    """Steps the masters from the gradients of the working copies, then refreshes the copies."""

    def __init__(self, masters: dict[str, torch.Tensor], learning_rate: float, dtype: torch.dtype):
        self.masters, self.learning_rate, self.dtype = masters, learning_rate, dtype
        trained = {n: m for n, m in masters.items() if not n.endswith("e_score_correction_bias")}
        self.working = {}
        for name, master in masters.items():
            copy = master.to(torch.float32 if ".router." in name else dtype, copy=True)
            self.working[name] = copy.requires_grad_(name in trained)
        self.momentum = {n: torch.zeros_like(m) for n, m in trained.items() if is_projection(n)}
        plain = [n for n in trained if n not in self.momentum]
        decayed = [n for n in plain if masters[n].ndim >= 2 and "embed_tokens" not in n]
        groups = [
            {"params": [masters[n] for n in decayed], "weight_decay": WEIGHT_DECAY},
            {"params": [masters[n] for n in plain if n not in decayed], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)

    @torch.no_grad()
    def step(self, gradients: dict[str, torch.Tensor], factor: float, max_norm: float = 1.0) -> float:
        """One update at `factor` times the learning rate; returns the norm of the gradients before clipping."""
        rate = self.learning_rate * factor
        grads = {n: g.float() for n, g in gradients.items()}
        norm = float(torch.nn.utils.get_total_norm(list(grads.values())))
        for name, grad in grads.items():
            grad.mul_(min(1.0, max_norm / (norm + 1e-6)))
            if name not in self.momentum:
                self.masters[name].grad = grad
                continue
            momentum = self.momentum[name].mul_(MOMENTUM).add_(grad)
            update = _orthogonalise(grad + MOMENTUM * momentum, self.dtype)
            # 0.2 * sqrt(max side) gives the update the root mean square of an AdamW step.
            scale = 0.2 * max(update.shape[-2:]) ** 0.5
            self.masters[name].mul_(1 - rate * WEIGHT_DECAY).add_(update, alpha=-rate * scale)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.refresh()
        return norm

    @torch.no_grad()
    def refresh(self) -> None:
        for name, master in self.masters.items():
            self.working[name].copy_(master)

    def tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(what it is, of which weight, tensor) of all that rests between two updates; AdamW's moments have no names
        before the first one, and are left out."""
        for kind, held in (("master", self.masters), ("working", self.working), ("momentum", self.momentum)):
            yield from ((kind, name, t) for name, t in held.items())

    def state_dict(self) -> dict:
        return {"masters": self.masters, "momentum": self.momentum, "adam": self.adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        for name, momentum in self.momentum.items():
            momentum.copy_(state["momentum"][name])
        self.adam.load_state_dict(state["adam"])
        self.refresh()
