"""What a decoding request must satisfy: checked by `generate`, and by callers before they load a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..model import LongcatFlashConfig
from ..model.model import INTEGERS


def _require(ok: bool, name: str, got: object, expected: str, fix: str | None = None) -> None:
    if not ok:
        raise LongcatShapeError(message("generate", name, got, expected, fix=fix))


def check_prompts(c: LongcatFlashConfig, input_ids: Tensor | Sequence[Tensor], max_new_tokens: int) -> list[Tensor]:
    """The prompts as 1-D tensors. Raises LongcatShapeError for an empty one, ids out of range, or no room to go on."""
    legal = isinstance(max_new_tokens, int) and max_new_tokens >= 0
    _require(legal, "max_new_tokens", max_new_tokens, "an integer >= 0")
    if isinstance(input_ids, Tensor) and input_ids.dim() != 2:
        _require(False, "input_ids", list(input_ids.shape), "[B,S] or a list of 1-D prompts", "input_ids[None]")
    prompts = [torch.as_tensor(p) for p in input_ids]
    _require(len(prompts) > 0, "input_ids", "no prompt", "at least one")
    for b, p in enumerate(prompts):
        name = f"input_ids[{b}]"
        _require(p.dim() == 1 and p.dtype in INTEGERS, name, f"{p.dtype} {list(p.shape)}", "1-D int64")
        _require(len(p) > 0, name, "an empty prompt", "at least one token", "start with the BOS token")
        low, high = int(p.min()), int(p.max())
        _require(low >= 0 and high < c.vocab_size, name, f"ids {low} .. {high}", f"0 .. {c.vocab_size - 1}")
        room = c.max_position_embeddings - len(p)
        got = f"{len(p)} tokens + max_new_tokens {max_new_tokens}"
        limit = f"at most max_position_embeddings = {c.max_position_embeddings}"
        fix = f"max_new_tokens <= {room}" if room >= 0 else "shorten the prompt"
        _require(max_new_tokens <= room, name, got, limit, fix)
    return prompts


def check_stop_ids(c: LongcatFlashConfig, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    """The ids that end a sequence. Raises LongcatShapeError for what is no id of the vocabulary, nor -1 nor None."""
    if eos_token_id is None:
        return c.stop_ids
    if type(eos_token_id) is int and eos_token_id == -1:
        return frozenset()
    several = isinstance(eos_token_id, Sequence) and not isinstance(eos_token_id, str | bytes)
    ids = list(eos_token_id) if several else [eos_token_id]
    legal = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < c.vocab_size for i in ids)
    expected = f"an id in 0 .. {c.vocab_size - 1}, a sequence of such ids, -1 (never stop) or None (the config's)"
    _require(len(ids) > 0 and legal, "eos_token_id", repr(eos_token_id), expected)
    return frozenset(ids)


def check_sampling(temperature: float, top_k: int, top_p: float, draft: str, seed: int | None) -> None:
    """Raises LongcatShapeError for a sampling argument out of its range."""
    for name, value, legal, expected in (
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 (greedy) or a positive number"),
        ("top_k", top_k, isinstance(top_k, int) and top_k >= 0, "0 (off) or a positive integer"),
        ("top_p", top_p, 0 < top_p <= 1, "in (0, 1]"),
        ("draft", draft, draft in ("argmax", "sampled"), "'argmax' or 'sampled'"),
        ("seed", seed, seed is None or (isinstance(seed, int) and 0 <= seed < 2**62), "None or 0 .. 2^62 - 1"),
    ):
        _require(legal, name, repr(value), expected)
