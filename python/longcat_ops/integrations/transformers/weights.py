"""How tensors of the published layout become parameters: expert after expert is stacked, zero experts are left out."""

from __future__ import annotations

from typing import Any

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
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    config = model.config
    count, zero = config.n_routed_experts, config.zero_expert_num or 0
    # A lookahead, which transformers takes out again when it turns a conversion round to save.
    one = "mlp.experts.(?!" + "|".join(rf"{ids}\." for ids in at_least(count)) + ")*"
    suffixes = ("", FP8_SUFFIX) if any(n.endswith(FP8_SUFFIX) for n, _ in model.named_parameters()) else ("",)
    ours = []
    for suffix in suffixes:
        parts = [f"{one}.gate_proj.weight{suffix}", f"{one}.up_proj.weight{suffix}"]
        ours.append(WeightConverter(parts, f"mlp.experts.gate_up_proj{suffix}", [MergeModulelist(0), Concatenate(1)]))
        down = f"{one}.down_proj.weight{suffix}"
        ours.append(WeightConverter(down, f"mlp.experts.down_proj{suffix}", [MergeModulelist(0)]))
    ids = "|".join(str(e) for e in range(count, count + zero))
    if ids:
        model._keys_to_ignore_on_load_unexpected.add(rf"\.mlp\.experts\.(?:{ids})\.(?:gate|up)_proj\.weight$")
    targets = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    return [*ours, *(c for c in stock if not any(t.startswith(targets) for t in c.target_patterns))]
