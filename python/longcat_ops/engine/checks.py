"""What a decoding request must satisfy: checked by `generate`, and by callers before they load a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..model import LongcatFlashConfig
from ..model.checks import INTEGERS, check_ids, described, is_integer, require


def _require(ok: bool, name: str, got: object, expected: str, fix: str | None = None) -> None:
    require(ok, "generate", name, got, expected, fix)


def check_prompts(
    c: LongcatFlashConfig, input_ids: Tensor | Sequence[Tensor], max_new_tokens: int,
    device: torch.device | str = "cpu", none: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The prompts as 1-D tensors; none: there may be none.

    Raises: LongcatShapeError for an empty one, ids out of range or on a device that is neither the CPU nor the model's,
        what is no list of ids, or no room to go on.
    """
    legal = is_integer(max_new_tokens) and max_new_tokens >= 0
    _require(legal, "max_new_tokens", described(max_new_tokens), "an integer >= 0")
    prompts = _prompts(input_ids)
    _require(none or len(prompts) > 0, "input_ids", "no prompt", "at least one")
    for b, p in enumerate(prompts):
        name = f"input_ids[{b}]"
        _require(p.dim() == 1 and p.dtype in INTEGERS, name, described(p), "1-D int64")
        _require(len(p) > 0, name, "an empty prompt", "at least one token", "start with the BOS token")
        check_ids("generate", name, p, c, torch.device(device))
        room = c.max_position_embeddings - len(p)
        got = f"{len(p)} tokens + max_new_tokens {max_new_tokens}"
        limit = f"at most max_position_embeddings = {c.max_position_embeddings}"
        fix = f"max_new_tokens <= {room}" if room >= 0 else "shorten the prompt"
        _require(max_new_tokens <= room, name, got, limit, fix)
    return prompts


def _prompts(input_ids: object) -> list[Tensor]:
    expected, fix = "[B,S] or a list of 1-D prompts", None
    if isinstance(input_ids, Tensor) or hasattr(input_ids, "__array__"):
        whole = _tensor("input_ids", input_ids)
        fix = "input_ids[None]" if whole.dim() == 1 else None
        _require(whole.dim() == 2 and whole.layout == torch.strided, "input_ids", _shape(whole), expected, fix)
        return list(whole)
    several = isinstance(input_ids, Sequence) and not isinstance(input_ids, str | bytes)
    if isinstance(input_ids, str):
        fix = "encode the text with the tokenizer of the checkpoint"
    elif several and input_ids and is_integer(input_ids[0]):
        several, fix = False, "[input_ids]: a list of one prompt"
    _require(several, "input_ids", described(input_ids), expected, fix)
    return [_tensor(f"input_ids[{b}]", p) for b, p in enumerate(input_ids)]


def _shape(t: Tensor) -> object:
    return list(t.shape) if t.layout == torch.strided else described(t)


def _tensor(name: str, ids: object) -> Tensor:
    """A prompt given as a tensor, an array or a list of integers."""
    if isinstance(ids, Tensor):
        return ids
    several = isinstance(ids, Sequence) and not isinstance(ids, str | bytes)
    _require(several or hasattr(ids, "__array__"), name, described(ids), "1-D int64")
    if several and not ids:
        return torch.zeros(0, dtype=torch.int64)
    try:
        return torch.as_tensor(ids, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        _require(False, name, described(ids), "1-D int64")
        raise


def check_stop_ids(c: LongcatFlashConfig, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    """The ids that end a sequence. Raises LongcatShapeError for a value that is no id of the vocabulary, -1 or None."""
    if eos_token_id is None:
        return c.stop_ids
    if is_integer(eos_token_id) and eos_token_id == -1:
        return frozenset()
    several = isinstance(eos_token_id, Sequence) and not isinstance(eos_token_id, str | bytes)
    ids = list(eos_token_id) if several else [eos_token_id]
    legal = all(is_integer(i) and 0 <= i < c.vocab_size for i in ids)
    expected = f"an id in 0 .. {c.vocab_size - 1}, a sequence of such ids, -1 (never stop) or None (the config's)"
    _require(len(ids) > 0 and legal, "eos_token_id", repr(eos_token_id), expected)
    return frozenset(map(int, ids))


def check_sampling(temperature: float, top_k: int, top_p: float, draft: str, seed: int | None) -> None:
    """Raises LongcatShapeError for a sampling argument of another type or out of its range."""
    for name, value, legal, expected in (
        ("temperature", temperature, _is_number(temperature) and temperature >= 0, "0 (greedy) or a positive number"),
        ("top_k", top_k, is_integer(top_k) and top_k >= 0, "0 (off) or a positive integer"),
        ("top_p", top_p, _is_number(top_p) and 0 < top_p <= 1, "in (0, 1]"),
        ("draft", draft, isinstance(draft, str) and draft in ("argmax", "sampled"), "'argmax' or 'sampled'"),
        ("seed", seed, seed is None or (is_integer(seed) and 0 <= seed < 2**62), "None or 0 .. 2^62 - 1"),
    ):
        _require(legal, name, described(value), expected)


def check_switches(speculative: bool, on_token: object, observer: object, graph: object) -> None:
    """Raises LongcatShapeError if `speculative` is no bool, `on_token` not callable, `observer` without `around`, or
    `graph` neither a bool nor None.
    """
    _require(isinstance(speculative, bool), "speculative", described(speculative), "True or False")
    expected = "None or something to call with (sequence, token, from_draft)"
    _require(on_token is None or callable(on_token), "on_token", described(on_token), expected)
    legal = observer is None or (callable(getattr(observer, "around", None)) and not isinstance(observer, type))
    _require(legal, "observer", described(observer), "None or an object with a method around(work, rows)")
    legal = graph is None or isinstance(graph, bool)
    _require(legal, "graph", described(graph), "True, False or None (where it pays)")


def _is_number(value: object) -> bool:
    """A real number of finite size, numpy's too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN
