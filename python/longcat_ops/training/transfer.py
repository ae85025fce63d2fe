"""Hyper-parameters found on a narrow network, carried over to a wide one.

LongCat-Flash technical report (arXiv:2509.01322), section 3.1.1 and table 1: "Adam LR Full Align" for the standard
parametrisation (Everett et al., arXiv:2407.05872). The report searched at width 768 and trained at 6144, a ratio of 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .checks import require, require_number

_OP = "transfer_hyperparameters"
# Table 1: the power of the width ratio that both the variance and the learning rate are divided by.
KINDS = {"embedding": 0, "hidden": 1, "output": 1}


def transfer_hyperparameters(groups: Iterable[Mapping[str, Any]], width_ratio: float) -> list[dict[str, Any]]:
    """Initial variances and learning rates of a network `width_ratio` times as wide, by table 1 of the report.

    Embedding: variance and learning rate stay. Hidden layers and output (unembedding): both are divided by the ratio.
    Depth, sparsity and batch size must be the same in both networks. The table says nothing of norms and biases.

    Args:
        groups: for each group of parameters, as optimisers take them, a mapping with `kind` ("embedding", "hidden" or
            "output") and with `init_var` (initial variance), `lr` (Adam's learning rate) or both, above 0. Other keys
            stay as they are.
        width_ratio: s, the hidden size of the target over that of the proxy, above 0.

    Returns:
        A new dict for each group, in order.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    require_number(_OP, "width_ratio", width_ratio, above=0)
    found = []
    for i, group in enumerate(groups):
        name = f"groups[{i}]"
        require(isinstance(group, Mapping), _OP, name, f"of type {type(group).__name__}", "a mapping")
        kind = group.get("kind")
        require(kind in KINDS, _OP, f"{name}['kind']", repr(kind), f"one of {', '.join(KINDS)}")
        values = [key for key in ("init_var", "lr") if key in group]
        require(bool(values), _OP, name, "without `init_var` and `lr`", "one of them or both")
        for key in values:
            require_number(_OP, f"{name}['{key}']", group[key], above=0)
        found.append({**group, **{key: group[key] / width_ratio ** KINDS[kind] for key in values}})
    return found
