"""Initial values of a LongCat-Flash network, with the report's variance alignment.

LongCat-Flash technical report (arXiv:2509.01322), section 2.3. The network multiplies the query latent by alpha_q, the
key/value latent by alpha_kv (equations 6 and 7) and the sum of the experts by gamma (equation 8), so that variances do
not depend on ranks and on how finely experts are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .checks import require, require_int, require_number
from .transfer import KINDS

_OP = "init_longcat_"
Model = TypeVar("Model", bound="nn.Module | Mapping[str, Tensor]")

_BIAS = "e_score_correction_bias"
_KIND_OF = {"embed_tokens": "embedding", "lm_head": "output", _BIAS: "bias"} | dict.fromkeys(
    ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj",
     "down_proj", "classifier", "eh_proj"), "hidden")  # fmt: skip


class VarianceAlignment(NamedTuple):
    """The factors of equations 7 and 8."""

    query: float
    key_value: float
    experts: float


def variance_alignment(hidden_size: int, q_lora_rank: int, kv_lora_rank: int, segments: int = 1) -> VarianceAlignment:
    """alpha_q = sqrt(d / d_q), alpha_kv = sqrt(d / d_kv), gamma = m (report, equations 7 and 8).

    A query and the latent part of a key have variances in proportion to the ranks d_q and d_kv, the rotary part of a
    key to the hidden size d; with the factors all three have that of d. Cutting each expert into m makes gates m times
    as small and sums of an expert m times as short: the variance of their sum falls by m^2. For LongCat-Flash 2, 3.46
    and a `routed_scaling_factor` of 6.

    Args:
        hidden_size: d. q_lora_rank: d_q. kv_lora_rank: d_kv. segments: m, experts that one was cut into. All ints of at
            least 1.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    sizes = {"hidden_size": hidden_size, "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank, "segments": segments}
    for name, value in sizes.items():
        require_int("variance_alignment", name, value, 1)
    return VarianceAlignment((hidden_size / q_lora_rank) ** 0.5, (hidden_size / kv_lora_rank) ** 0.5, float(segments))


@torch.no_grad()
def init_longcat_(
    model: Model,
    groups: Iterable[Mapping[str, Any]],
    *,
    alignment: str = "forward",
    segments: int = 1,
    generator: torch.Generator | None = None,
) -> Model:
    """Fills the weights of a LongCat-Flash network in place: normal by kind, norms 1, the router's bias 0.

    Args:
        model: a module or a mapping whose weights have the published names, as
            `model.layers.0.mlp.experts.3.up_proj.weight`; experts also stacked as in transformers,
            `experts.gate_up_proj` [E, 2I, H] and `experts.down_proj` [E, H, I]. Of a module: its parameters, and of its
            buffers the router's biases.
        groups: mappings with `kind` and `init_var`, as `transfer_hyperparameters` gives them, which together have
            "embedding" (embed_tokens), "hidden" (all projections and the router) and "output" (lm_head). Groups of one
            kind agree in `init_var`.
        alignment: where alpha_q, alpha_kv and gamma are. "forward": the network multiplies by them, as LongCat-Flash
            does (`mla_scale_q_lora`, `mla_scale_kv_lora`, `routed_scaling_factor`). "weights": it does not, so
            q_b_proj, kv_b_proj and the down_proj of the experts are drawn as many times as large. That is the same
            function at the begin of a training, but for zero experts, which have no weight to hold gamma.
        segments: m, for gamma with "weights".
        generator: of the random numbers, drawn in f32, in the order of the names; None: torch's own.

    Returns:
        The model.

    Raises:
        LongcatShapeError: an argument is not as above, or a name is none of LongCat-Flash's; nothing was written.
    """
    require(alignment in ("forward", "weights"), _OP, "alignment", repr(alignment), "'forward' or 'weights'")
    require_int(_OP, "segments", segments, 1)
    variances = _variances(groups)
    tensors = _tensors(model)
    unknown = [name for name in tensors if _kind(name) is None]
    require(not unknown, _OP, "model", f"with {len(unknown)} tensors of other names, such as {unknown[:1]}",
            "a network with LongCat-Flash's names")  # fmt: skip
    gains = {n: _gain(n, tensors, segments) if alignment == "weights" else 1.0 for n in tensors}
    for name, tensor in tensors.items():
        kind = _kind(name)
        if kind in ("norm", "bias"):
            tensor.fill_(kind == "norm")
            continue
        std = gains[name] * variances[kind] ** 0.5
        for part in tensor if tensor.ndim == 3 else (tensor,):  # expert by expert: a stack in f32 may be large
            device = part.device if generator is None else generator.device
            drawn = torch.empty(part.shape, dtype=torch.float32, device=device)
            part.copy_(drawn.normal_(0, std, generator=generator))
    return model


def _kind(name: str) -> str | None:
    """What table 1 calls the tensor, "norm", "bias", or None for a name of no LongCat-Flash network."""
    parts = name.removesuffix(".weight").split(".")
    while len(parts) > 1 and (parts[-1].isdigit() or parts[-1] == "m"):  # input_layernorm.0, enorm.m
        parts.pop()
    return "norm" if parts[-1].endswith("norm") else _KIND_OF.get(parts[-1])


def _tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        biases = {name: buffer for name, buffer in model.named_buffers() if name.endswith(_BIAS)}
        return {**dict(model.named_parameters()), **biases}
    holds = isinstance(model, Mapping) and all(isinstance(tensor, Tensor) for tensor in model.values())
    require(holds, _OP, "model", f"of type {type(model).__name__}", "a torch.nn.Module or a mapping of tensors")
    return dict(model)


def _variances(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for i, group in enumerate(groups):
        kind, value = group.get("kind"), group.get("init_var")
        require(kind in KINDS, _OP, f"groups[{i}]['kind']", repr(kind), f"one of {', '.join(KINDS)}")
        require_number(_OP, f"groups[{i}]['init_var']", value, above=0)
        require(found.setdefault(kind, value) == value, _OP, f"groups[{i}]['init_var']", value,
                f"{found[kind]}, as of the group of that kind before")  # fmt: skip
    missing = [kind for kind in KINDS if kind not in found]
    require(not missing, _OP, "groups", f"without {', '.join(missing)}", f"groups of {', '.join(KINDS)}")
    return found


def _gain(name: str, tensors: Mapping[str, Tensor], segments: int) -> float:
    """The factor of equations 7 and 8 that belongs to a weight."""
    if ".experts." in name and "down_proj" in name:
        return float(segments)
    for after, before in (("q_b_proj", "q_a_proj"), ("kv_b_proj", "kv_a_proj_with_mqa")):
        if f".{after}." in name:
            first = tensors.get(name.replace(after, before))
            require(first is not None, _OP, "model", f"with {name} alone", f"one with {before}, too")
            return (first.shape[-1] / tensors[name].shape[-1]) ** 0.5
    return 1.0
