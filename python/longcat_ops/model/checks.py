"""What a call of the network must satisfy, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from .cache import LatentCache
from .config import LongcatFlashConfig

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # accepted for token ids


def require(ok: bool, op: str, name: str, got: object, expected: str, fix: str | None = None) -> None:
    """Raises LongcatShapeError in the common form unless `ok`."""
    if not ok:
        raise LongcatShapeError(message(op, name, got, expected, fix=fix))


def is_integer(value: object) -> bool:
    """Whether `value` is an int (numpy's too); a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def described(value: object) -> str:
    """A tensor by dtype, shape and place, anything else by its type and, if short, its value."""
    if isinstance(value, Tensor):
        place = f" on {value.device}" if value.device.type != "cpu" else ""
        layout = f", {value.layout}" if value.layout != torch.strided else ""
        return f"{value.dtype} {list(value.shape)}{place}{layout}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def check_ids(op: str, name: str, ids: Tensor, config: LongcatFlashConfig, device: torch.device) -> None:
    """Token ids of any shape: integers of the vocabulary, in memory that the model can read."""
    place = "the CPU" if device.type == "cpu" else f"the CPU or {device}"
    there = ids.layout == torch.strided and (ids.device.type == "cpu" or ids.device == device)
    require(there and not ids.is_meta, op, name, described(ids), f"a dense tensor on {place}, where the model is")
    if ids.numel():
        low, high = int(ids.min()), int(ids.max())
        legal = low >= 0 and high < config.vocab_size
        require(legal, op, name, f"ids {low} .. {high}", f"0 .. {config.vocab_size - 1}")


def check_call(c: LongcatFlashConfig, embedding: Tensor, ids: object, cache: object,
               lengths: object) -> tuple[list[int], list[int]]:  # fmt: skip
    """Of a call `model(ids, cache, lengths=...)`: how many tokens each row has, and how many the cache held before;
    `embedding` has the model's dtype and device.

    Raises: LongcatShapeError naming the argument that does not fit.
    """
    op = "LongcatFlashForCausalLM"
    legal = isinstance(ids, Tensor) and ids.dim() == 2 and ids.dtype in INTEGERS
    require(legal, op, "input_ids", described(ids), "int64 [B,S]")
    check_ids(op, "input_ids", ids, c, embedding.device)
    batch, width = ids.shape
    held = _check_cache(op, c, embedding, cache, batch)
    valid = [width] * batch if lengths is None else _integers(op, lengths)
    fits = len(valid) == batch and all(0 <= n <= width for n in valid)
    require(fits, op, "lengths", valid, f"{batch} numbers in 0 .. {width}")
    longest = max((n + held[b] for b, n in enumerate(valid)), default=0)
    limit = f"at most max_position_embeddings = {c.max_position_embeddings}"
    require(longest <= c.max_position_embeddings, op, "input_ids", f"{longest} tokens with the cache", limit)
    return valid, held


def _check_cache(op: str, c: LongcatFlashConfig, embedding: Tensor, cache: object, batch: int) -> list[int]:
    """The rows that each sequence has in the cache."""
    if cache is None:
        return [0] * batch
    fix = "model.new_cache makes one that fits"
    require(isinstance(cache, LatentCache), op, "cache", described(cache), "a LatentCache or None", fix)
    require(cache.batch_size == batch, op, "input_ids", f"{batch} rows", f"{cache.batch_size}, as the cache")
    rows, slots, width = cache.rows, 2 * c.num_layers, c.latent_width
    got = f"{len(rows)} slots of {rows.dtype} [{rows.shape[-1]}] on {rows.device}"
    expected = f"{slots} or more of {embedding.dtype} [{width}] on {embedding.device}"
    fits = len(rows) >= slots and (rows.dtype, rows.device) == (embedding.dtype, embedding.device)
    require(fits and rows.shape[-1] == width, op, "cache", got, expected, fix)
    return cache.lengths.tolist()


def _integers(op: str, lengths: object) -> list[int]:
    if isinstance(lengths, Tensor) and lengths.dtype in INTEGERS and lengths.dim() == 1 and not lengths.is_meta:
        return lengths.tolist()
    several = isinstance(lengths, Sequence) and not isinstance(lengths, str | bytes)
    legal = several and all(is_integer(n) for n in lengths)
    require(legal, op, "lengths", described(lengths), "a sequence of integers, one for each row, or None")
    return [int(n) for n in lengths]
