"""Grows the depth of a checkpoint by stacking its layers: how training goes on with a larger network.

LongCat-Flash was grown so (technical report, arXiv:2509.01322, section on model growth): a network of half the depth is
trained first, then its layers stand r = 2 times above each other, l_1 .. l_n, l_1 .. l_n, and training goes on with the
same count of samples and the same schedule of the learning rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import LongcatShapeError, message
from ..model import files
from ..model.config import LongcatFlashConfig
from ..model.config_keys import KEYS
from ..model.precision import Precision
from . import conversion, rewriting
from .checkpoint import CheckpointSource
from .conversion import Item
from .destination import Destination, writing
from .rewriting import SHARD_BYTES, Progress

_LAYER = re.compile(r"model\.layers\.(\d+)(\..+)")
_OF_EACH_LAYER = ("layer_types", "attention_types")  # lists of config.json with an entry a layer, or an attention
_OF_THE_SMALL_ONE = ("c2t.json",)  # a classifier of the drafts of SOURCE, which are not those of DEST


@dataclass(frozen=True)
class Grown:
    """What a growth made. layers: of the network now. tensors: how many were copied r times, and how many once.
    bytes_read, bytes_written: of weights, over all runs; read counts a copied tensor r times. already: whether all was
    there before this run.
    """

    dest: str
    layers: int
    stacked: int
    kept: int
    shards: int
    bytes_read: int
    bytes_written: int
    already: bool


def grow_depth(source: str | Path, dest: str | Path, r: int = 2, *, shard_bytes: int = SHARD_BYTES,
               progress: Progress | None = None) -> Grown:  # fmt: skip
    """Writes the checkpoint `source` with its n layers stacked r times to the folder `dest`, which is new or empty.

    Layer k * n + i of the new network is layer i of the old one, bit for bit: attentions, norms, dense FFNs, experts,
    router and its bias. Embedding, final norm, head and MTP head are the old ones. Tensors keep their dtype, FP8 ones
    their scales. An interrupted run goes on when it is called again with the same arguments, and its output has the
    same bytes; the memory that it takes is a piece of 4 MiB.

    Args:
        r: how often the layers are stacked, 2 or more.
        shard_bytes: of a file of weights, at most, unless one tensor is larger. progress: called after each piece.

    Raises:
        LongcatShapeError: an argument is not legal; or `dest` is, holds or lies in `source`, holds something else, or
            belongs to a run with another source or other arguments. Nothing is written then.
        LongcatCheckpointError: `source` cannot be read, does not match its config.json, or changes meanwhile.
        LongcatError: `dest` cannot be written, or its disk is full; what is whole there stays, and counts.
    """
    rewriting.check_shard_bytes("grow", shard_bytes)
    source, dest = Path(source), Path(dest)
    config, _ = LongcatFlashConfig.read_files(source)
    _check(config.num_layers, r)
    stored = CheckpointSource(source, config, torch.bfloat16, progress=False)
    facts, options = rewriting.facts(source, stored), {"factor": r, "shard_bytes": shard_bytes}
    items = _stacked(conversion.choose(stored.header, stored.expected, Precision()), config.num_layers, r)
    shards = conversion.shards(items, shard_bytes)
    changed = _deeper(files.read_object(source / rewriting.CONFIG), config.num_layers, r)
    with Destination("grow", source, dest) as out, writing(dest):
        out.require_same(facts, options)
        already = rewriting.write(
            out, stored, shards, facts, options, config=changed, leave=_OF_THE_SMALL_ONE, progress=progress
        )
    kept = sum(_LAYER.fullmatch(item.name) is None for item in items)
    return Grown(
        dest=str(dest), layers=r * config.num_layers, stacked=(len(items) - kept) // r, kept=kept, shards=len(shards),
        bytes_read=sum(i.stored_bytes for i in items), bytes_written=sum(i.num_bytes for i in items), already=already,
    )  # fmt: skip


def _check(layers: int, r: int) -> None:
    most = KEYS["num_layers"].high
    if isinstance(r, bool) or not isinstance(r, int) or r < 2:
        raise LongcatShapeError(message("grow", "factor", repr(r), "an int of 2 or more"))
    if not layers:
        raise LongcatShapeError(message("grow", "SOURCE", "a network without layers", "one with layers to stack"))
    if r * layers > most:
        raise LongcatShapeError(message("grow", "factor", f"{r}, for {layers} layers", f"{most // layers} at most"))


def _stacked(items: Sequence[Item], layers: int, r: int) -> list[Item]:
    """The items in their order, then the layers again, r - 1 times."""
    copies = []
    for k in range(1, r):
        for item in items:
            if found := _LAYER.fullmatch(item.name):
                name = f"model.layers.{int(found[1]) + k * layers}{found[2]}"
                made = {name + key.removeprefix(item.name): layout for key, layout in item.made.items()}
                copies.append(replace(item, name=name, made=made, copy_of=item.name))
    return [*items, *copies]


def _deeper(raw: dict[str, Any], layers: int, r: int) -> dict[str, Any]:
    """The keys of config.json that change. transformers counts attentions in num_hidden_layers, two to a layer."""
    found = {key: raw[key] * r for key in ("num_layers", "num_hidden_layers") if raw.get(key) is not None}
    for key in _OF_EACH_LAYER:
        if isinstance(raw.get(key), list) and len(raw[key]) in (layers, 2 * layers):
            found[key] = raw[key] * r
    return found
