"""How tensors of the published layout become parameters: expert after expert is stacked, rows of gate and up in the
order of `fused_moe`; zero experts are left out.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...types import ROW_GROUP

FP8_SUFFIX = "_scale_inv"


def at_least(number: int) -> list[str]:
    """Regular expressions without groups; one of them matches the decimal digits of each integer >= number."""
    digits = str(number)
    found = [digits, rf"\d{{{len(digits) + 1},}}"]
    for i, digit in enumerate(digits):
        if digit != "9":
            found.append(f"{digits[:i]}[{int(digit) + 1}-9]" + r"\d" * (len(digits) - i - 1))
    return found


def routed_only(stock: list[Any], model: Any) -> list[Any]:
    """transformers' conversions, with those of experts replaced by ones that take only FFN experts, 0 .. N - 1.

    transformers itself writes gate and up of ids N .. N + Z - 1, without values; the model passes over them.
    """
    from transformers.core_model_loading import MergeModulelist, WeightConverter

    config = model.config
    count, zero = config.n_routed_experts, config.zero_expert_num or 0
    # A lookahead, which transformers takes out again when it turns a conversion round to save.
    one = "mlp.experts.(?!" + "|".join(rf"{ids}\." for ids in at_least(count)) + ")*"
    suffixes = ("", FP8_SUFFIX) if any(n.endswith(FP8_SUFFIX) for n, _ in model.named_parameters()) else ("",)
    ours = []
    for suffix in suffixes:
        parts = [f"{one}.gate_proj.weight{suffix}", f"{one}.up_proj.weight{suffix}"]
        ours.append(
            WeightConverter(parts, f"mlp.experts.gate_up_proj{suffix}", [MergeModulelist(0), interleave(suffix)])
        )
        down = f"{one}.down_proj.weight{suffix}"
        ours.append(WeightConverter(down, f"mlp.experts.down_proj{suffix}", [MergeModulelist(0)]))
    ids = "|".join(str(e) for e in range(count, count + zero))
    if ids:
        model._keys_to_ignore_on_load_unexpected.add(rf"\.mlp\.experts\.(?:{ids})\.(?:gate|up)_proj\.weight$")
    targets = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    return [*ours, *(c for c in stock if not any(t.startswith(targets) for t in c.target_patterns))]


def interleave(suffix: str) -> Any:
    """The conversion of gate [N,I,H] and up into [N,2I,H]: rows by 8, rows of scales one by one; it can be undone."""
    return _classes()["Turns"](1 if suffix else ROW_GROUP)


def __getattr__(name: str) -> type:
    if name in ("Turns", "Halves"):  # by name: a pickle finds them here, too
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _classes() -> dict[str, type]:
    from transformers.core_model_loading import ConversionOps

    class Turns(ConversionOps):
        """[N,R,C] of each source in turn, `unit` rows at a time: [N,2R,C]."""

        def __init__(self, unit: int) -> None:
            self.unit = unit

        @torch.no_grad
        def convert(self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str],
                    **_: Any) -> dict[str, Tensor]:  # fmt: skip
            parts = [input_dict.pop(pattern) for pattern in source_patterns]
            parts = [part[0] if isinstance(part, list) else part for part in parts]
            return {target_patterns[0]: torch.stack([p.unflatten(1, (-1, self.unit)) for p in parts], 2).flatten(1, 3)}

        @property
        def reverse_op(self) -> ConversionOps:
            return Halves(self.unit)

    class Halves(ConversionOps):
        """The reverse: [N,2R,C] to [N,R,C] for each target."""

        def __init__(self, unit: int) -> None:
            self.unit = unit

        @torch.no_grad
        def convert(self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str],
                    **_: Any) -> dict[str, Tensor]:  # fmt: skip
            (whole,) = input_dict.values()
            whole = whole[0] if isinstance(whole, list) else whole
            parts = whole.unflatten(1, (-1, len(target_patterns), self.unit)).unbind(2)
            return {name: part.flatten(1, 2) for name, part in zip(target_patterns, parts, strict=True)}

        @property
        def reverse_op(self) -> ConversionOps:
            return Turns(self.unit)

    for cls in (Turns, Halves):
        cls.__module__, cls.__qualname__ = __name__, cls.__name__
    return {"Turns": Turns, "Halves": Halves}
