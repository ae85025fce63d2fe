"""What one rank must hold: bytes by component, KV bytes per token, fit on a card. Reads no weight."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..comm.kernels import MAX_RANKS
from ..comm.sizes import communicator_bytes, expert_bytes
from ..errors import LongcatShapeError, message
from ..model.config import LongcatFlashConfig
from ..model.model import LongcatFlashForCausalLM
from ..model.parallel import exchange_bytes
from ..model.precision import Precision
from ..model.shares import ALONE, FORMS, WHOLE, Shares
from ..model.shares import Part as WeightPart
from ..model.source import Expected, Recorder, Source, scale_shape
from ..perf.attention import LATENT, workspace_bytes
from ..types import BLOCK, ROW_GROUP, Fp8Pair
from .checkpoint import expected_tensors
from .stored import Stored, read_stored

CARDS = {"80 GB": 80 * 2**30, "141 GB": 141 * 2**30}  # cards are named by their GiB, as drivers report them
HEADROOM = 0.10  # of the card, for workspace, activations and the allocator

_EXPERT = re.compile(r"\.experts\.(\d+)\.")

# Component -> what its names contain, first match wins; both published tensor names and the model's buffer names.
_COMPONENTS = (
    ("MTP", ("mtp.",)),
    ("norms", ("norm",)),
    ("attention", (".self_attn.",)),
    ("dense FFN", (".mlps.",)),
    ("router", (".mlp.router", ".mlp.bias")),
    ("experts", (".mlp.experts.", ".mlp.gate_up", ".mlp.down")),
    ("embedding", ("embed_tokens",)),
    ("lm_head", ("lm_head",)),
)
COMPONENTS = ("embedding", "attention", "dense FFN", "experts", "router", "norms", "lm_head", "MTP")


@dataclass(frozen=True)
class Part:
    """One component of the largest rank: parameters, bytes with FP8 scales, bytes of those scales."""

    parameters: int
    bytes: int
    scale_bytes: int


@dataclass(frozen=True)
class Fit:
    """Whether weights and memory for communication go on a card, and how many tokens of latent cache fit beside it."""

    card: str
    capacity: int
    usable: int
    fits: bool
    kv_tokens: int


@dataclass(frozen=True)
class Sizing:
    """Answer of `size_rank`, for the largest rank unless a name says otherwise."""

    ep: int
    tp: int
    tp_form: str
    precision: str
    dtype: str
    experts_total: int  # FFN experts of a layer
    experts_here: int  # those the largest rank holds
    parameters_total: int  # of the whole model, without the MTP head
    parameters_mtp: int
    active_parameters: dict[int, int]  # FFN experts of a token -> parameters it multiplies; no embedding, no MTP
    parts: dict[str, Part]
    kv_slots: int
    kv_bytes_per_token: int
    kv_bytes_per_token_without_mtp: int
    symmetric_bytes: int  # of the Communicator of a tp_group of at most 8 ranks, beyond which there is none
    expert_bytes: int  # of an ExpertParallel over the EP ranks, with its defaults
    attention_bytes: int  # of partial sums of `mla_decode` on a GPU, at most; part of the headroom
    fits: list[Fit]
    files: int | None  # weight files the rank reads, and all there are
    files_total: int | None
    notes: list[str]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {**asdict(self), "bytes": self.bytes}


class _Sizes(Recorder):
    """A source of tensors without storage, in the precision in which the model would hold them."""

    def __init__(self, stored: Stored, precision: Precision, tp: Shares = ALONE) -> None:
        # experts are alike: one stands for all
        super().__init__(stored.has, precision=precision, experts=range(1), tp=tp)
        self.dtype = stored.dtype
        self.stored = stored

    experts = Source.experts  # stacked as a model holds them

    def linear(self, name: str, rows: int, cols: int, *, dense: bool = False,
               part: WeightPart = WHOLE) -> Tensor | Fp8Pair:  # fmt: skip
        held = part.of(rows, cols)
        self.record(name, Expected((rows, cols), quantisable=True, dense=dense), *held)
        if dense or not self.precision.is_fp8(name, self.stored.is_fp8(name)):
            return torch.empty([s.stop - s.start for s in held], dtype=self.dtype, device="meta")
        shape = [s.stop - s.start // BLOCK * BLOCK for s in held]
        weight = torch.empty(shape, dtype=torch.float8_e4m3fn, device="meta")
        return weight, torch.empty(scale_shape(*shape), dtype=torch.float32, device="meta")


def size_rank(path: str | Path, *, ep: int = 1, tp: int = 1, tp_form: str = "token",
              precision: str | Path | None = None, mtp: bool = True) -> Sizing:  # fmt: skip
    """Size one rank of a model given as a checkpoint folder (index or headers) or a config.json alone.

    Args:
        ep: ranks over which the FFN experts of a layer are split. tp: ranks over which the width of dense FFNs and the
            vocabulary are split. tp_form: "token", attentions are whole on each rank; "all_reduce", their heads
            are split, too. Latent projections, norms, router and eh_proj are whole on each rank.
        precision: as `from_pretrained`. mtp: False leaves the MTP head out.

    Raises:
        LongcatCheckpointError: the config or a header cannot be read.
        LongcatShapeError: ep, tp or precision has a value that is not legal.
    """
    rules = Precision(precision)
    config, unknown = LongcatFlashConfig.read_files(path)
    stored = read_stored(Path(path), config)
    _check_split(config, ep, tp, tp_form)
    experts, layers = config.n_routed_experts, config.num_layers
    here = -(-experts // ep)

    has_mtp = stored.has_mtp(config)
    config = replace(config, num_nextn_predict_layers=int(has_mtp))
    expected = expected_tensors(config, mtp=has_mtp, experts=None if rules.rules else range(1))
    rules.check({name: want.can_be_fp8 for name, want in expected.items()})
    _Sizes(stored, rules).check_fp8(expected, stored.is_fp8)
    config = replace(config, num_nextn_predict_layers=int(mtp and has_mtp))
    whole, _ = _build(config, stored, rules)
    total = _count_parameters(whole, experts)
    # The first rank is the largest, unless heads cut FP8 blocks, which others then hold from their begin.
    heads = config.num_attention_heads // tp if tp_form == "all_reduce" else BLOCK
    cut = any(heads * width % BLOCK for width in (config.qk_head_dim, config.v_head_dim))
    shares = [Shares(rank, tp, tp_form) for rank in range(tp if cut else 1)]
    parts = max((_parts(*_build(config, stored, rules, one), here) for one in shares), key=_bytes)

    trunk = sum(total.values()) - total["MTP"]
    one_expert = total["experts"] // experts  # of every layer
    shared = trunk - total["embedding"] - total["experts"]
    row = config.latent_width * stored.dtype.itemsize
    slots = 2 * layers + bool(config.num_nextn_predict_layers)
    weights = _bytes(parts)
    symmetric = communicator_bytes(tp, exchange_bytes(config, tp), num_channels=1) if tp <= MAX_RANKS else 0
    travelling = expert_bytes(ep, here * ep, config.moe_topk, config.hidden_size)
    files, names = None, stored.names
    if stored.file_of:
        files = len({f for n, f in stored.file_of.items() if _belongs(n, here, bool(config.num_nextn_predict_layers))})
    return Sizing(
        ep=ep, tp=tp, tp_form=tp_form, precision="stored" if precision is None else str(precision),
        dtype=str(stored.dtype).removeprefix("torch."), experts_total=experts, experts_here=here,
        parameters_total=trunk, parameters_mtp=total["MTP"],
        active_parameters={k: shared + k * one_expert for k in _expert_counts(config)}, parts=parts,
        kv_slots=slots, kv_bytes_per_token=row * slots, kv_bytes_per_token_without_mtp=row * 2 * layers,
        symmetric_bytes=symmetric, expert_bytes=travelling,
        attention_bytes=workspace_bytes(config.max_position_embeddings, min(config.kv_lora_rank, LATENT)),
        fits=[_fit(name, capacity, weights + symmetric + travelling, row * slots) for name, capacity in CARDS.items()],
        files=files, files_total=len(set(stored.file_of.values())) or None,
        notes=[
            stored.note, *stored.declared.notes(whole.expected), *_key_notes(unknown), *_split_notes(config, ep, tp),
            *(_name_notes(names, whole, experts) if names else ()),
        ],
    )  # fmt: skip


def _check_split(config: LongcatFlashConfig, ep: int, tp: int, form: str) -> None:
    heads, blocks = config.num_attention_heads, -(-config.ffn_hidden_size // BLOCK)
    ranks = f"1 .. {blocks}, the blocks of {BLOCK} in the dense FFN width"
    if form == "all_reduce":
        ranks = f"a divisor of the {heads} attention heads, {ranks}"
    whole_heads = form != "all_reduce" or heads % max(tp, 1) == 0
    limits = (
        ("ep", ep, 1 <= ep <= config.n_routed_experts, f"1 .. {config.n_routed_experts}, the FFN experts of a layer"),
        ("tp", tp, 1 <= tp <= blocks and whole_heads, ranks),
        ("tp_form", form, form in FORMS, " or ".join(FORMS)),
    )
    for name, value, ok, expected in limits:
        if not ok:
            raise LongcatShapeError(message("plan", name, value, expected))


def _build(config: LongcatFlashConfig, stored: Stored, rules: Precision,
           tp: Shares = ALONE) -> tuple[_Sizes, LongcatFlashForCausalLM]:  # fmt: skip
    source = _Sizes(stored, rules, tp)
    return source, LongcatFlashForCausalLM(source, config)


def component(name: str) -> str:
    """The component that a published tensor or a buffer of the model belongs to."""
    dotted = f".{name}"
    return next(part for part, marks in _COMPONENTS if any(mark in dotted for mark in marks))


def _count_parameters(source: _Sizes, experts: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, tensor in source.expected.items():
        part = component(name)
        held = round(tensor.share * torch.Size(tensor.shape).numel())
        counts[part] += held * (experts if part == "experts" else 1)
    return counts


def _parts(source: _Sizes, model: LongcatFlashForCausalLM, experts: int) -> dict[str, Part]:
    """What a rank holds, of each component."""
    parameters = _count_parameters(source, experts)
    held: Counter[str] = Counter()
    scales: Counter[str] = Counter()
    for name, buffer in model.named_buffers():
        part = component(name)
        size = buffer.nbytes * (experts if part == "experts" else 1)
        held[part] += size
        if name.endswith("scale"):
            scales[part] += size
    return {name: Part(parameters[name], held[name], scales[name]) for name in COMPONENTS if parameters[name]}


def _bytes(parts: dict[str, Part]) -> int:
    return sum(part.bytes for part in parts.values())


def _fit(card: str, capacity: int, taken: int, kv: int) -> Fit:
    usable = capacity - int(capacity * HEADROOM)
    return Fit(card, capacity, usable, taken <= usable, max(0, usable - taken) // kv if kv else 0)


def _expert_counts(config: LongcatFlashConfig) -> list[int]:
    """Counts of FFN experts of a token: 0, the mean when zero experts are chosen as often as others, and top-k."""
    mean = round(config.moe_topk * config.n_routed_experts / config.num_experts)
    return sorted({0, mean, config.moe_topk})


def _belongs(name: str, experts: int, mtp: bool) -> bool:
    found = _EXPERT.search(name)
    return (found is None or int(found[1]) < experts) and (mtp or not name.startswith("model.mtp."))


def _split_notes(config: LongcatFlashConfig, ep: int, tp: int) -> list[str]:
    notes = []
    if config.n_routed_experts % ep:
        notes.append(f"{config.n_routed_experts} experts over {ep} ranks are uneven: the largest rank is shown")
    for name, size, unit in (("dense FFN width", config.ffn_hidden_size, BLOCK),
                             ("vocabulary", config.vocab_size, ROW_GROUP)):  # fmt: skip
        if size % (tp * unit):
            notes.append(f"{name} {size} over {tp} ranks is uneven: the largest rank is shown")
    return notes


def _key_notes(unknown: list[str]) -> list[str]:
    return [f"config keys that are not known here: {', '.join(unknown[:12])}"] if unknown else []


def _name_notes(names: frozenset[str], whole: _Sizes, experts: int) -> list[str]:
    """Notes on tensors that the config asks for and the checkpoint lacks."""
    wanted = set()
    for name in whole.expected:
        many = experts if _EXPERT.search(name) else 1
        wanted.update(_EXPERT.sub(f".experts.{e}.", name) for e in range(many))
    missing = sorted(wanted - names)
    if not missing:
        return []
    if all(name.startswith("model.mtp.") for name in missing) and not any(n.startswith("model.mtp.") for n in names):
        return ["the MTP head of num_nextn_predict_layers is not stored: the loader needs 0 there to go without it"]
    return [
        f"{len(missing)} of the {len(wanted)} tensors that the config asks for are not stored, such as {missing[0]}"
    ]
