"""LongCat-Flash assembled: embedding, ScMoE layers, head, MTP; prefill in fixed chunks, decode of any rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .block import Block, in_own_dtypes
from .cache import LatentCache
from .checks import check_call
from .config import LongcatFlashConfig
from .derived import DerivingBlock
from .layers import MLA, Linear, RMSNorm, acc_dtype, embed
from .mtp import MTP
from .mtp import PREFIX as MTP_PREFIX
from .parallel import Groups, Parallel
from .passes import Kind, Step, chunks, join
from .products import attends, linear, on_kernels, whole_columns
from .rotary import RotaryTable
from .rows import DECODE_TOKENS, AnyRows, PromptRows, Rows
from .scmoe import ScMoELayer
from .source import RandomSource, Recorder, Source, StateDictSource
from .stages import serial
from .tensor_parallel import TensorGroup


class LongcatFlashForCausalLM(Block):
    """The network. Built from a Source; most callers want `from_pretrained`.

    Decode promise: a row's logits have the same bits whether it is decoded alone, verified beside its drafts or beside
    other sequences, because products, norms and experts of a decode pass treat each row by itself, and so does
    attention.
    """

    def __init__(self, source: Source, config: LongcatFlashConfig) -> None:
        super().__init__()
        c, vocab, self.tp = config, (config.vocab_size, config.hidden_size), source.tp
        self.config, self.dtype = c, source.dtype
        part = self.tp.of_vocabulary(c.vocab_size)
        self.register_buffer("embed_tokens", source.dense("model.embed_tokens.weight", vocab, part=part))
        self.layers = nn.ModuleList(ScMoELayer(source, f"model.layers.{i}", c, i) for i in range(c.num_layers))
        self.norm = RMSNorm(source, "model.norm", c.hidden_size, c.rms_norm_eps)
        self.register_buffer("lm_head", source.dense("lm_head.weight", vocab, part=part))
        wanted = (
            source.has(f"{MTP_PREFIX}.norm.weight")
            if c.num_nextn_predict_layers is None
            else c.num_nextn_predict_layers
        )
        self.mtp = MTP(source, c) if wanted else None
        self.rotary, self.execute = RotaryTable(c), serial
        self.parallel: Parallel | None = None
        multiplying = [m for m in self.modules() if isinstance(m, Linear | MLA)]
        self._product_sizes = {tuple(self.lm_head.shape), *(size for m in multiplying for size in m.product_sizes())}
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
                        precision: str | Path | None = None, ep_group: object = None, tp_group: object = None,
                        tp_form: str = "token", progress: bool | None = None) -> LongcatFlashForCausalLM:  # fmt: skip
        """Load a folder with config.json and *.safetensors under the published tensor names.

        Args:
            dtype: of activations and unquantised weights; None keeps the stored one. precision: None keeps what is
                stored, "bf16" holds every projection in `dtype`, "fp8" quantises all of them, a path names a policy
                (model/precision.py).
            device: cpu, or a CUDA device that this machine has.
            ep_group: a process group of all ranks of the model. They share the FFN experts; each reads its own alone.
            tp_group: a group of some of them, of one size on every rank, that share dense FFNs, embedding and head.
            tp_form: what else (docs/parallel.md). "token": nothing, each rank has tokens of its own; "all_reduce": the
                attention heads, too, and the ranks of a tp_group have the same tokens.
            progress: bytes bar on stderr; None: on a terminal.

        Raises: LongcatCheckpointError naming the file, or all missing, unexpected and mis-shaped tensors; no weight
            is read then. LongcatUnsupportedError for a device that is not here, likewise.
        """
        from ..loading.load import load

        groups = Groups(ep_group, tp_group, tp_form)
        return load(cls, path, groups, dtype, device=device, precision=precision, progress=progress)

    @classmethod
    def from_state_dict(cls, config: LongcatFlashConfig, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32,
                        **options: object) -> LongcatFlashForCausalLM:  # fmt: skip
        """From tensors under their published names; options: device, precision, experts (see model/source.py)."""
        return cls(_fitting(StateDictSource(tensors, dtype, **options), config), config)

    @classmethod
    def random(cls, config: LongcatFlashConfig, dtype: torch.dtype = torch.float32, seed: int = 0,
               **options: object) -> LongcatFlashForCausalLM:  # fmt: skip
        """Reproducible random weights, for benches and shape tests."""
        return cls(_fitting(RandomSource(dtype, seed=seed, **options), config), config)

    def new_cache(self, batch_size: int, max_length: int, *, num_pages: int | None = None) -> LatentCache:
        """An empty cache with a slot for each attention and, if there is one, the MTP head."""
        slots = 2 * self.config.num_layers + (self.mtp is not None)
        return LatentCache(self.config, batch_size, max_length, num_slots=slots, num_pages=num_pages, dtype=self.dtype,
                           device=self.device)  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.device

    def follow_weights(self) -> None:
        """Renew tensors derived from weights that have since been written to in any way. `forward` and `generate` begin
        with it; call it yourself only if you call `decode` directly after writes through `.data`.
        """
        for module in self.modules():
            if isinstance(module, DerivingBlock):
                module.follow_weights()

    @torch.inference_mode()
    @in_own_dtypes
    def forward(self, input_ids: Tensor, cache: LatentCache | None = None, *, lengths: Sequence[int] | None = None,
                return_hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Append tokens to each sequence and return their logits.

        Args:
            input_ids: i64[B,S]. cache: of B sequences; grows by each row's length. None: a fresh one.
            lengths: valid tokens of each row (right padding beyond); None: S for all.

        All ranks of a model call it together, each with tokens of its own or with those of its tp_group (`tp_form`).

        Returns: logits f32[B,S,V] (f64 for an fp64 model), zero at padding; return_hidden: also [B,S,H], normed.
        Raises: LongcatShapeError for ids out of range, too many tokens for max_position_embeddings or the cache.
        """
        lengths, held = check_call(self.config, self.embed_tokens, input_ids, cache, lengths)
        self.follow_weights()
        input_ids = input_ids.long()  # a uint8 index would be taken for a mask
        if self.parallel is not None:
            self.parallel.require_same_tokens("input_ids", [input_ids.tolist(), lengths, held])
        batch, width = input_ids.shape
        cache = cache or self.new_cache(batch, max(1, width))
        logits = torch.zeros((batch, width, self.config.vocab_size), dtype=acc_dtype(self.dtype), device=self.device)
        hidden = torch.zeros((batch, width, self.config.hidden_size), dtype=self.dtype, device=self.device)
        at = [(b, i) for b, n in enumerate(lengths) for i in range(n)]
        if width <= DECODE_TOKENS and all(held):
            steps = [(at, self.decode(cache, [b for b, _ in at], [held[b] + i for b, i in at],
                                      torch.stack([input_ids[b, i] for b, i in at])))] if at else []  # fmt: skip
        else:
            steps = [
                ([(b, i) for i in range(n)], self.prefill(cache, b, input_ids[b, :n]))
                for b, n in enumerate(lengths)
                if n
            ]
        for where, step in steps:
            b, i = map(list, zip(*where, strict=True))
            logits[b, i], hidden[b, i] = step.logits, step.hidden
        for b, n in enumerate(lengths):
            cache.truncate(b, held[b] + n)
        if self.parallel is not None:
            self.parallel.rest()
        return (logits, hidden) if return_hidden else logits

    @property
    def row_by_row(self) -> bool:
        """Whether each row of a decode pass runs alone: on this backend and device, some product of this dtype and size
        has no kernel that keeps the bits of its rows apart. True for fp64.
        """
        return bool(self.without_kernels)

    @property
    def without_kernels(self) -> list[list[int]]:
        """[N,K] of the products that keep rows from running together."""
        return [list(s) for s in self._product_sizes if not on_kernels(self.dtype, self.device.type, *s)]

    @property
    def decodes_on_kernels(self) -> bool:
        """Whether kernels alone make a pass: attention has one for its widths, no product has columns off 8."""
        whole = all(whole_columns(self.device.type, columns) for columns, _ in self._product_sizes)
        return whole and attends(self.dtype, self.device.type, self.config.latent_width, self.config.kv_lora_rank)

    @in_own_dtypes
    def prefill(self, cache: LatentCache, sequence: int, ids: Tensor, *, last_only: bool = False,
                start: int | None = None) -> Step:  # fmt: skip
        """Write the rows of `ids` i64[n] behind sequence's valid ones (whose number stays), chunk by chunk. start: how
        many these are; None: the cache is asked, on the host.
        """
        start = int(cache.lengths[sequence]) if start is None else start
        end = start + len(ids)
        cache.reserve(sequence, end)
        steps = []
        for a, b in chunks(start, end):
            keep = slice(None) if not last_only else slice(b - a - (b == end), None)
            steps.append(self._target(ids[a - start : b - start], self._prompt_rows(cache, sequence, a, b), keep))
        return join(steps)

    @in_own_dtypes
    def decode(self, cache: LatentCache, sequences: list[int], positions: list[int], ids: Tensor) -> Step:
        """One pass over a few new rows: row i is token ids[i] at positions[i] of sequences[i], earlier positions
        first.
        """
        for sequence, position in zip(sequences, positions, strict=True):
            cache.reserve(sequence, position + 1)
        return self.decode_rows(ids, self.rows(cache, sequences, positions))

    @in_own_dtypes
    def decode_rows(self, ids: Tensor, rows: Rows) -> Step:
        """One pass over rows whose pages are reserved: row i is token ids[i], i64 on the device, earlier positions
        first. Nothing is read on the host.
        """
        return join([self._target(ids[part], some) for part, some in self._passes(rows)])

    @in_own_dtypes
    def draft_prefill(self, cache: LatentCache, sequence: int, next_ids: Tensor, hidden: Tensor,
                      start: int = 0) -> Tensor:  # fmt: skip
        """MTP over tokens start .. of a prompt: hidden [n,H] the target's rows, next_ids i64[n] what follows each.
        Returns [n,H]."""
        parts = []
        for a, b in chunks(start, start + len(next_ids)):
            rows = self._met(Kind.MTP, self._prompt_rows(cache, sequence, a, b))
            part = slice(a - start, b - start)
            parts.append(self.mtp(next_ids[part], hidden[part], rows, self.embed_tokens))
        return torch.cat(parts)

    @in_own_dtypes
    def draft_decode(self, cache: LatentCache, sequences: list[int], positions: list[int], next_ids: Tensor,
                     hidden: Tensor) -> Tensor:  # fmt: skip
        """MTP over rows that the target has just accepted: next_ids[i] is token positions[i] + 1. Returns [n,H]."""
        return self.draft_rows(next_ids, hidden, self.rows(cache, sequences, positions))

    @in_own_dtypes
    def draft_rows(self, next_ids: Tensor, hidden: Tensor, rows: Rows) -> Tensor:
        """MTP over the rows of a target pass: next_ids i64[T], on the device, is the token behind each. Returns [T,H].
        A row with a wrong token does no harm if the cache rolls back to it: its latent row is written again.
        """
        passes = self._passes(self._met(Kind.MTP, rows))
        parts = [self.mtp(next_ids[a], hidden[a], some, self.embed_tokens) for a, some in passes]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @in_own_dtypes
    def head(self, hidden: Tensor, count: Tensor | None = None, tokens: list[int] | None = None) -> Tensor:
        """Logits [n,V] of hidden rows [n,H], fp32 (fp64) from the sums on: rounded to bf16, the best two would often be
        equal. A row's bits do not depend on the others. count i32[1]: rows that are no padding; None: all. tokens: rows
        of each rank that shares the head, where they are agreed."""
        if not isinstance(self.tp, TensorGroup):
            return self._logits(hidden, count)
        if tokens is None and not len(hidden):  # nothing to meet others for
            return torch.empty((0, self.config.vocab_size), dtype=acc_dtype(self.dtype), device=hidden.device)
        tokens = self.parallel.turn(Kind.HEAD, len(hidden)) if tokens is None else tokens
        here = count if self.tp.same_tokens else None  # else rows of all ranks are computed
        return self.tp.logits(lambda x: self._logits(x, here), hidden, tokens, self.config.vocab_size)

    def _logits(self, hidden: Tensor, count: Tensor | None) -> Tensor:
        """Of the ids whose rows of the head are here."""
        out = torch.empty((len(hidden), len(self.lm_head)), dtype=acc_dtype(self.dtype), device=hidden.device)
        if not self.row_by_row:
            return linear(hidden, self.lm_head, out, count)
        for i in range(len(hidden)):
            linear(hidden[i : i + 1], self.lm_head, out[i : i + 1])
        return out

    def rows(self, cache: LatentCache, sequences: list[int], positions: list[int]) -> Rows:
        """The rows of a decode pass, from lists on the host; none is padding."""
        return Rows.at(cache, sequences, positions, self.rope(cache), self.config.num_attention_heads)

    def rope(self, cache: LatentCache) -> Tensor:
        """f32 [positions, qk_rope_head_dim]: the rotations of all positions of `cache`, see RotaryTable."""
        return self.rotary.upto(cache.max_length, self.device)

    def _target(self, ids: Tensor, rows: Rows | PromptRows, keep: slice = slice(None)) -> Step:
        hidden = self.hidden_rows(ids, rows)
        return Step(self.head(hidden[keep], rows.count, rows.tokens), hidden, rows.num_real)

    def hidden_rows(self, ids: Tensor, rows: AnyRows) -> Tensor:
        """The target without its head: row i is token ids[i]. Returns [T,H] after the final norm."""
        self._met(Kind.TARGET, rows)
        x = embed(self.tp, self.embed_tokens, ids, self.config.vocab_size, rows)
        for layer in self.layers:
            x = layer(x, rows, self.execute)
        return self.norm(x)

    def _met(self, kind: Kind, rows: AnyRows) -> AnyRows:
        """`rows`, whose pass the other ranks of the model make, too."""
        if self.parallel is not None:
            self.parallel.meet(kind, rows)
        return rows

    def _prompt_rows(self, cache: LatentCache, sequence: int, start: int, end: int) -> PromptRows:
        return PromptRows(cache, sequence, start, end, self.rope(cache))

    def _passes(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """The rows of a decode pass, together or one by one: a row needs only what earlier positions wrote."""
        if not self.row_by_row:
            yield slice(None), rows
            return
        for i in range(len(rows.position)):
            part, count = slice(i, i + 1), (rows.num_rows > i).int()
            yield (
                part,
                replace(rows, sequence=rows.sequence[part], position=rows.position[part], num_rows=count, num_real=[]),
            )


def _fitting(source: Source, config: LongcatFlashConfig) -> Source:
    """`source`, after a check that each rule of its precision policy fits a projection of this network."""
    if source.precision.rules:
        recorder = Recorder(lambda name: name == f"{MTP_PREFIX}.norm.weight")
        LongcatFlashForCausalLM(recorder, config)
        source.precision.check({name: want.can_be_fp8 for name, want in recorder.expected.items()})
    return source
