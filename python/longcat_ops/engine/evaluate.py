"""How good a checkpoint is on a text, alone and beside another form of it: layer by layer, so that no model is whole in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LongcatShapeError, message
from ..loading.checkpoint import CheckpointSource
from ..loading.layerwise import Layerwise, check_windows
from ..model.config import LongcatFlashConfig
from ..model.products import linear
from ..model.source import released
from ..reference.sums import acc_dtype

ROWS = 128  # of logits at once: f32 [128, 131072] are 67 MB


@dataclass(frozen=True)
class Quality:
    """Of one checkpoint. acceptance: how often the MTP head's most likely token, given the true text, is the target's,
    over `drafts` positions; None without such a head.
    """

    path: str
    bits_per_byte: float
    nats_per_token: float
    acceptance: float | None
    drafts: int


@dataclass(frozen=True)
class Difference:
    """Between a checkpoint and another one. agreement: how often both name the same most likely token. kl: of the other
    one's distributions from the checkpoint's, nats a token. layers: |x - y| / |y| of the rows x behind each layer of
    the checkpoint and y of the other one.
    """

    agreement: float
    kl: float
    layers: list[float]


@dataclass(frozen=True)
class Evaluation:
    """tokens: those that were predicted. other, difference: None where nothing is beside the checkpoint."""

    tokens: int
    bytes: int
    windows: int
    checkpoint: Quality
    other: Quality | None
    difference: Difference | None


@torch.inference_mode()
def evaluate(path: str | Path, windows: Sequence[Tensor], num_bytes: int, *, against: str | Path | None = None,
             dtype: torch.dtype | None = None, precision: str | Path | None = None,
             progress: Callable[[int, int], None] | None = None) -> Evaluation:  # fmt: skip
    """Reads texts that begin anew, windows i64[n] each, with a checkpoint folder, and with `against` beside it.

    Args:
        num_bytes: of the text that is predicted: of every token but the first of each window.
        against: a folder with the same shapes, such as the form that was quantised; held as it is stored.
        dtype: of both, None: as stored. precision: of the checkpoint, as for `from_pretrained`.
        progress: called with the layers that have run, and all of them.

    Raises:
        LongcatShapeError: windows are not legal, or `against` has other shapes. LongcatCheckpointError: a folder cannot
            be read.
    """
    paths = [path] if against is None else [path, against]
    configs = [LongcatFlashConfig.read_files(each)[0] for each in paths]
    check_windows("evaluate", configs[0], windows)
    if against is not None:
        _require_comparable(*configs)
    with ExitStack() as stack:
        sources = [
            stack.enter_context(released(CheckpointSource(each, config, dtype, precision=kind, progress=False)))
            for each, config, kind in zip(paths, configs, (precision, None), strict=False)
        ]
        texts = [Layerwise(source, config, windows) for source, config in zip(sources, configs, strict=True)]
        errors, layers = [], configs[0].num_layers
        for index in range(layers):
            for text in texts:
                text.run(text.layer(index))
            if len(texts) == 2:
                errors.append(_error(texts[0].hidden, texts[1].hidden))
            if progress:
                progress(index + 1, layers)
        heads = [_Head(text) for text in texts]
        tokens, nats, kl, agreed = _judge(heads, windows)
        found = [
            Quality(str(each), n / math.log(2) / num_bytes, n / tokens, *head.acceptance())
            for each, head, n in zip(paths, heads, nats, strict=True)
        ]
    difference = Difference(agreed / tokens, kl / tokens, errors) if against is not None else None
    return Evaluation(tokens, num_bytes, len(windows), found[0], found[1] if against is not None else None, difference)


def _require_comparable(a: LongcatFlashConfig, b: LongcatFlashConfig) -> None:
    for name in ("vocab_size", "hidden_size", "num_layers"):
        if getattr(a, name) != getattr(b, name):
            got = f"a network with {name} {getattr(b, name)}"
            raise LongcatShapeError(message("evaluate", "against", got, f"{getattr(a, name)}, as the checkpoint has"))


def _error(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm())


class _Head:
    """The rows of a text behind all layers, and what the head and the MTP head make of them."""

    def __init__(self, text: Layerwise) -> None:
        c, source = text.config, text.source
        self.windows, self.normed = text.windows, text.norm()
        self.drafts = text.draft(text.mtp(), self.normed) if source.mtp else None
        self.weight = source.dense("lm_head.weight", (c.vocab_size, c.hidden_size))
        self.best = torch.cat([self.logits(self.normed[a:b]).argmax(-1) for a, b in _slices(0, len(self.normed))])

    def logits(self, rows: Tensor) -> Tensor:
        """[n,H] -> [n,V], f32, or f64 of an fp64 network."""
        out = torch.empty((len(rows), len(self.weight)), dtype=acc_dtype(rows.dtype))
        return linear(rows, self.weight, out)

    def acceptance(self) -> tuple[float | None, int]:
        """(share, positions): the head at row p and the target at row p + 1 name the same token p + 2."""
        if self.drafts is None:
            return None, 0
        agreed, first = 0, 0
        for i, window in enumerate(self.windows):
            for a, b in _slices(0, len(window) - 1):
                drafted = self.logits(self.drafts[first - i + a : first - i + b]).argmax(-1)
                agreed += int((drafted == self.best[first + a + 1 : first + b + 1]).sum())
            first += len(window)
        return agreed / len(self.drafts), len(self.drafts)


def _judge(heads: Sequence[_Head], windows: Sequence[Tensor]) -> tuple[int, list[float], float, int]:
    """(tokens, nats of each head, KL of the second's distributions from the first's, same most likely tokens)."""
    tokens, nats, kl, agreed, first = 0, [0.0] * len(heads), 0.0, 0, 0
    for window in windows:
        for a, b in _slices(0, len(window) - 1):
            part, wanted = slice(first + a, first + b), window[a + 1 : b + 1]
            logs = [head.logits(head.normed[part]).double().log_softmax(-1) for head in heads]
            for i, log in enumerate(logs):
                nats[i] += float(F.nll_loss(log, wanted, reduction="sum"))
            if len(logs) == 2:
                kl += float((logs[1].exp() * (logs[1] - logs[0])).sum())
                agreed += int((heads[0].best[part] == heads[1].best[part]).sum())
            tokens += b - a
        first += len(window)
    return tokens, nats, kl, agreed


def _slices(begin: int, end: int) -> list[tuple[int, int]]:
    return [(a, min(a + ROWS, end)) for a in range(begin, end, ROWS)]
