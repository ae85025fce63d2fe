"""What the adapter is called, and which models ask for it."""

from __future__ import annotations

from typing import Any

NAME = "longcat_ops"  # of the experts_implementation


def is_ours(config: Any) -> bool:
    """Whether a model of this transformers config was, or is to be, built with the MoE of this library."""
    return getattr(config, "_experts_implementation", None) == NAME
