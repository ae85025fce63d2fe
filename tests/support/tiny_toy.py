"""A network of a few thousand weights and a toy text, for the tests of tools/tiny."""

from __future__ import annotations

from pathlib import Path

import torch

import train_tiny
from tiny_model import TINY_CONFIG

SMALL = TINY_CONFIG | {
    "vocab_size": 300,
    "hidden_size": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 8,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 8,
    "zero_expert_num": 4,
    "moe_topk": 3,
    "max_position_embeddings": 1024,
}
CHAPTERS = [
    f"Toy {n}\n" + "".join(f"{v} And it came to pass that {n} begat {n + v}.\n" for v in range(1, 9))
    for n in range(1, 40)
]


def trainer(tmp_path: Path, stream: torch.Tensor, steps: int, *more: str) -> train_tiny.Trainer:
    args = train_tiny.parse(
        [
            "--out",
            str(tmp_path / "out"),
            "--state",
            str(tmp_path / "state"),
            "--steps",
            str(steps),
            "--batch-tokens",
            "1024",
            "--learning-rate",
            "1e-2",
            *more,
        ]
    )
    return train_tiny.Trainer(args, dict(SMALL), stream)


def same(a, b):
    """Bitwise equality of nested states."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if not str(key).endswith("seconds"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
