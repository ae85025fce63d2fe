"""A checkpoint's network over a text, layer by layer: of its weights, those of one layer are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..model.cache import LatentCache
from ..model.config import LongcatFlashConfig
from ..model.layers import RMSNorm
from ..model.mtp import MTP
from ..model.passes import chunks
from ..model.rotary import RotaryTable
from ..model.rows import PromptRows
from ..model.scmoe import ScMoELayer
from .checkpoint import CheckpointSource


class Layerwise:
    """The rows of a text on their way through the network, by the blocks and the chunks of a prompt's pass.

    windows: i64[n] each, texts that begin anew. hidden: [T,H], the rows of all windows behind the layers that have run.
    """

    def __init__(self, source: CheckpointSource, config: LongcatFlashConfig, windows: Sequence[Tensor]) -> None:
        self.source, self.config, self.windows = source, config, list(windows)
        longest = max(map(len, self.windows))
        self.cache = LatentCache(config, 1, longest, num_slots=2, dtype=source.dtype)
        self.cache.reserve(0, longest)
        self.rope = RotaryTable(config).upto(longest, torch.device("cpu"))
        table = source.fetch("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        self.hidden = table[torch.cat(self.windows)].to(source.dtype)

    def pieces(self, shorter: int = 0) -> Iterator[tuple[slice, PromptRows]]:
        """(which rows of all, the pass over them), window by window; shorter: so many rows less of each window."""
        first = 0
        for window in self.windows:
            for a, b in chunks(0, len(window) - shorter):
                yield slice(first + a, first + b), PromptRows(self.cache, 0, a, b, self.rope)
            first += len(window)

    def layer(self, index: int) -> ScMoELayer:
        """Its weights are read now. It writes the latent rows of its attentions where every layer does."""
        return ScMoELayer(self.source, f"model.layers.{index}", self.config, 0)

    def run(self, layer: ScMoELayer) -> None:
        """All rows through a layer."""
        self.hidden = torch.cat([layer(self.hidden[part], rows) for part, rows in self.pieces()])

    def norm(self) -> Tensor:
        """[T,H] behind the final norm, which the head and the MTP head read."""
        return RMSNorm(self.source, "model.norm", self.config.hidden_size, self.config.rms_norm_eps)(self.hidden)

    def mtp(self) -> MTP:
        """The MTP head; its weights are read now."""
        return MTP(self.source, replace(self.config, num_layers=0))  # its latent rows come first then

    def draft(self, head: MTP, normed: Tensor) -> Tensor:
        """The MTP head over all rows of each window but its last, which has no token behind it: [T - windows,H]."""
        table = self.source.fetch("model.embed_tokens.weight", (self.config.vocab_size, self.config.hidden_size))
        ids, table = torch.cat(self.windows), table.to(self.source.dtype)
        out = [head(ids[part.start + 1 : part.stop + 1], normed[part], rows, table) for part, rows in self.pieces(1)]
        return torch.cat(out)


def check_windows(op: str, config: LongcatFlashConfig, windows: Sequence[Tensor]) -> None:
    """Raises LongcatShapeError unless there are windows, i64[n] of 2 ids or more, for this network."""
    if not windows:
        raise LongcatShapeError(message(op, "text", "empty", "some tokens"))
    for window in windows:
        longest = config.max_position_embeddings
        if window.dtype != torch.int64 or window.dim() != 1 or not 2 <= len(window) <= longest:
            got = f"a window of {window.dtype} {list(window.shape)}"
            raise LongcatShapeError(message(op, "text", got, f"i64 [n] of 2 .. {longest} ids"))
        low, high = (int(bound) for bound in torch.aminmax(window))
        if low < 0 or high >= config.vocab_size:
            got = f"a window with ids in {low} .. {high}"
            raise LongcatShapeError(message(op, "text", got, f"0 .. {config.vocab_size - 1}"))
