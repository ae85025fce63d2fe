"""The loss that keeps the groups of experts that share a device evenly used within a batch.

LongCat-Flash technical report (arXiv:2509.01322), equations 3 to 5; the bias controller balances the whole corpus.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import require, require_floats, require_int, require_number, wide

_OP = "device_balance_loss"


def device_balance_loss(
    probs: Tensor,
    ids: Tensor,
    *,
    num_experts: int,
    num_zero_experts: int,
    top_k: int,
    target_real: float,
    groups: int,
) -> Tensor:
    """Device-level balance loss of one router, without its coefficient alpha: sum over j of f_j * P_j.

    The N FFN experts are D groups of N / D by id, and all zero experts are group D + 1 (report, equation 3). P_j is the
    mean over the T tokens of the probabilities of the group's experts, summed (equation 4). f_j is D / (K_e * T) times
    the choices of experts of group j, and of group D + 1 1 / ((K - K_e) * T) times those of zero experts (equation 5).
    The report's indicator says "token t selects group j"; here each chosen expert counts, so that every f_j is 1, and
    the loss is the sum of the probabilities, 1, when all groups have their share. The counts carry no gradient: that of
    probs[t, i] is f_j / T, of i's group j.

    Args:
        probs: [T, N + Z] floating, T >= 1: softmax of the router's logits, without bias; of the tokens of a micro-batch
            without padding.
        ids: integers [T, K] on the device of probs: the experts that the biased scores chose. Zero experts are
            N .. N + Z - 1, or -1 as in `Routing.ids`.
        num_experts: N, a multiple of groups. num_zero_experts: Z, at least 0; with Z = 0 there is no group D + 1.
        top_k: K, 1 .. N + Z.
        target_real: K_e, the wanted mean number of FFN experts per token: above 0 and below K, with Z = 0 K.
        groups: D, the devices that share the FFN experts.

    Returns:
        f32 [], or f64 for probs in f64. Nothing is read on the host where probs are on a GPU.

    Raises:
        LongcatShapeError: an argument is not as above. On a GPU ids out of range are counted as zero experts.
    """
    require_int(_OP, "num_experts", num_experts, 1)
    require_int(_OP, "num_zero_experts", num_zero_experts, 0)
    experts = num_experts + num_zero_experts
    require_int(_OP, "top_k", top_k, 1, experts)
    require_int(_OP, "groups", groups, 1)
    require(num_experts % groups == 0, _OP, "groups", groups, f"a divisor of num_experts = {num_experts}")
    require_number(_OP, "target_real", target_real, above=0)
    if num_zero_experts:
        require(target_real < top_k, _OP, "target_real", target_real, f"below top_k = {top_k}")
    else:
        require(target_real == top_k, _OP, "target_real", target_real, f"top_k = {top_k}, as no expert is a zero one")
    require_floats(_OP, "probs", probs, f"[T, {experts}]", 2)
    require(probs.shape[1] == experts, _OP, "probs", f"of shape {list(probs.shape)}", f"[T, {experts}]")
    _require_ids(ids, probs, top_k)

    tokens, size, p = len(probs), num_experts // groups, wide(probs)
    group = ids.long().div(size, rounding_mode="floor").masked_fill((ids < 0) | (ids >= num_experts), groups)
    counts = (group.reshape(-1, 1) == torch.arange(groups + 1, device=ids.device)).sum(0).to(p)
    share = p.mean(0)  # P_j is the sum over group j
    of_ffn = (counts[:groups] * share[:num_experts].view(groups, size).sum(1)).sum()
    loss = of_ffn * (groups / (target_real * tokens))
    if num_zero_experts:
        loss = loss + counts[groups] * share[num_experts:].sum() / ((top_k - target_real) * tokens)
    return loss


def _require_ids(ids: Tensor, probs: Tensor, top_k: int) -> None:
    tokens, experts = probs.shape
    require(isinstance(ids, Tensor), _OP, "ids", f"of type {type(ids).__name__}", "a tensor")
    kind = str(ids.dtype).removeprefix("torch.")
    integers = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    require(integers and tuple(ids.shape) == (tokens, top_k), _OP, "ids", f"{kind} of shape {list(ids.shape)}",
            f"integers of shape {[tokens, top_k]}")  # fmt: skip
    require(ids.device == probs.device, _OP, "ids", f"on {ids.device}", f"on {probs.device}, where probs are")
    if ids.device.type == "cpu":
        low, high = int(ids.min()), int(ids.max())
        require(low >= -1 and high < experts, _OP, "ids", f"{low} .. {high}", f"-1 .. {experts - 1}")
