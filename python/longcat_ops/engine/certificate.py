"""Whether a checkpoint's rows have the same bits in any company: alone and together, on one rank and on several.

Serving needs this: a text then does not depend on who else is served, on how many GPUs, or on where experts lie. Each
claim compares bits, row by row, and a certificate says how many it compared.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..comm import ExpertParallel, balance_experts
from ..errors import LongcatShapeError, message
from ..model import LongcatFlashConfig, LongcatFlashForCausalLM
from ..ops.moe import fused_moe, moe_place, moe_route
from ..ops.router import router_gemm
from ..types import Fp8Pair, Routing
from .rank_processes import run_ranks

RANKS = (1, 2, 4, 8)
ROWS, SEQUENCES = 33, 6


@dataclass(frozen=True)
class Claim:
    """One claim: `compared` rows, of which `different` have other bits. what: what was compared."""

    name: str
    what: str
    compared: int
    different: int

    def __str__(self) -> str:
        found = "the same bits" if not self.different else f"{self.different} DIFFER"
        return f"{self.name:<11}{self.what}: {self.compared} rows, {found}"


@dataclass(frozen=True)
class Certificate:
    """All claims about one checkpoint. `str()` of it is the verdict's text."""

    subject: str
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        return all(claim.compared and not claim.different for claim in self.claims)

    def __str__(self) -> str:
        compared = sum(claim.compared for claim in self.claims)
        lines = [self.subject, *(f"  {claim}" for claim in self.claims)]
        if self.holds:
            return "\n".join(
                [*lines, f"verdict: INVARIANT. {compared} rows were compared, and all have the same bits."]
            )
        bad = ", ".join(claim.name for claim in self.claims if claim.different or not claim.compared)
        return "\n".join([*lines, f"verdict: NOT INVARIANT: {bad}."])


class Layer(NamedTuple):
    """What a MoE layer computes with."""

    router: Tensor
    bias: Tensor
    gate_up: Tensor | Fp8Pair
    down: Tensor | Fp8Pair


def certify(path: str | Path, *, ranks: Sequence[int] = RANKS, rows: int = ROWS,
            precision: str | Path | None = None) -> Certificate:  # fmt: skip
    """Compare the rows of a checkpoint in different company, on the CPU backend that LONGCAT_OPS_BACKEND names.

    Args:
        path: a checkpoint folder. ranks: numbers of ranks, processes of this machine over gloo. rows: of the largest
            call, at least 2. precision: as `from_pretrained`.

    Raises:
        LongcatShapeError: ranks or rows is not legal. LongcatCheckpointError: the checkpoint cannot be read.
        LongcatError: a rank failed.
    """
    if not ranks or any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 64 for n in ranks):
        raise LongcatShapeError(message("certify", "ranks", f"{ranks!r}", "numbers in 1 .. 64"))
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 2:
        raise LongcatShapeError(message("certify", "rows", f"{rows!r}", "an int of 2 or more"))
    model = LongcatFlashForCausalLM.from_pretrained(path, dtype=torch.bfloat16, precision=precision)
    c, layers = model.config, layers_of(model)
    fp8 = sum(isinstance(layer.gate_up, tuple) for layer in layers)
    subject = (
        f"{path}: {len(layers)} MoE layers ({fp8} in FP8), {c.n_routed_experts} FFN and {c.zero_expert_num} zero "
        f"experts, top-{c.moe_topk}; backend {os.environ.get('LONGCAT_OPS_BACKEND') or 'cpu'}"
    )
    x = drawn(rows, c)
    claims = [_rows(layers, c, x), _company(layers, c, x), _threads(layers, c, x), _decoding(model)]
    claims.append(_placement(layers, c, x))
    claims += [_ranks(layers, c, x, n) for n in ranks]
    return Certificate(subject, tuple(claims))


def layers_of(model: LongcatFlashForCausalLM) -> list[Layer]:
    """The MoE layers of a model."""

    def pair(moe: Any, name: str) -> Tensor | Fp8Pair:
        data, scale = getattr(moe, name), getattr(moe, f"{name}_scale")
        return data if scale is None else (data, scale)

    moes = [layer.mlp for layer in model.layers]
    return [Layer(moe.router, moe.bias, pair(moe, "gate_up"), pair(moe, "down")) for moe in moes]


def drawn(rows: int, config: LongcatFlashConfig, seed: int = 0) -> Tensor:
    """bf16 rows of mean square 1, as a norm leaves them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, config.hidden_size, generator=g).to(torch.bfloat16)


def routed(layer: Layer, config: LongcatFlashConfig, x: Tensor) -> Routing:
    c = config
    logits = router_gemm(x, layer.router)
    return moe_route(logits, layer.bias, top_k=c.moe_topk, num_experts=c.num_experts,
                     num_zero_experts=c.zero_expert_num, scale=c.routed_scaling_factor)  # fmt: skip


def output(layer: Layer, config: LongcatFlashConfig, x: Tensor) -> Tensor:
    return fused_moe(x, routed(layer, config, x), layer.gate_up, layer.down)


def different(a: Tensor, b: Tensor) -> int:
    """Rows whose bits differ."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return int((a.contiguous().view(kind) != b.contiguous().view(kind)).any(-1).sum())


def _rows(layers: list[Layer], c: LongcatFlashConfig, x: Tensor) -> Claim:
    compared = bad = 0
    for layer in layers:
        whole = output(layer, c, x)
        for rows in range(1, len(x)):
            bad += different(output(layer, c, x[:rows]), whole[:rows])
            compared += rows
    return Claim("rows", f"calls of 1 .. {len(x) - 1} rows, beside one of {len(x)}", compared, bad)


def _company(layers: list[Layer], c: LongcatFlashConfig, x: Tensor) -> Claim:
    compared = bad = 0
    for layer in layers:
        whole = output(layer, c, x)
        for seed in range(1, 5):
            order = torch.randperm(2 * len(x), generator=torch.Generator().manual_seed(seed))
            mixed = torch.cat([x, drawn(len(x), c, seed) * 4])[order]
            places = order.argsort()[: len(x)]
            bad += different(output(layer, c, mixed)[places], whole)
            compared += len(x)
    return Claim("company", "each row among strangers, at other places", compared, bad)


def _threads(layers: list[Layer], c: LongcatFlashConfig, x: Tensor) -> Claim:
    before, compared, bad = torch.get_num_threads(), 0, 0
    counts = sorted({1, 2, os.cpu_count() or 1})
    try:
        for layer in layers:
            torch.set_num_threads(before)
            whole = output(layer, c, x)
            for threads in counts:
                torch.set_num_threads(threads)
                bad += different(output(layer, c, x), whole)
                compared += len(x)
    finally:
        torch.set_num_threads(before)
    return Claim("threads", f"{', '.join(map(str, counts))} of torch", compared, bad)


def _decoding(model: LongcatFlashForCausalLM) -> Claim:
    """Logits of one decode pass over sequences of different lengths, the first 1 .. n of them, and each alone."""
    g = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, model.config.vocab_size, (5 + 7 * i,), generator=g) for i in range(SEQUENCES)]
    cache = model.new_cache(SEQUENCES, max(map(len, prompts)) + 1)
    for i, prompt in enumerate(prompts):
        model.prefill(cache, i, prompt[:-1])
        cache.lengths[i] = len(prompt) - 1
    last = torch.stack([prompt[-1] for prompt in prompts])

    def logits(chosen: list[int]) -> Tensor:
        return model.decode(cache, chosen, [len(prompts[i]) - 1 for i in chosen], last[chosen]).logits

    whole, compared, bad = logits(list(range(SEQUENCES))), 0, 0
    groups = [list(range(n)) for n in range(1, SEQUENCES)] + [[i] for i in range(1, SEQUENCES)]
    for chosen in [*groups, list(reversed(range(SEQUENCES)))]:
        bad += different(logits(chosen), whole[chosen])
        compared += len(chosen)
    return Claim("decoding", f"logits of {SEQUENCES} sequences, alone and together", compared, bad)


def _placement(layers: list[Layer], c: LongcatFlashConfig, x: Tensor) -> Claim:
    """The experts in slots, the busiest ones in several, in one call."""
    bad = 0
    for number, layer in enumerate(layers):
        routing = routed(layer, c, x)
        placed, (gate_up, down) = _placed(layer, routing, 4, number)
        bad += different(fused_moe(x, placed, gate_up, down), output(layer, c, x))
    slots = _slots(c.n_routed_experts, 4)
    return Claim("placement", f"{c.n_routed_experts} experts in {slots} slots", len(layers) * len(x), bad)


def _slots(experts: int, ranks: int) -> int:
    """Slots in equal numbers a rank, more than there are experts where a rank may have a second of one."""
    return (experts // ranks + 1) * ranks if ranks > 1 else experts


def _placed(layer: Layer, routing: Routing, ranks: int, number: int) -> tuple[Routing, list[Any]]:
    """The routing with slots for experts, and the weights of all slots."""
    experts = len(layer.down[0]) if isinstance(layer.down, tuple) else len(layer.down)
    placement = balance_experts(routing.counts[:experts], ranks, _slots(experts, ranks) - experts)
    order = placement.experts.long()
    weights = [tuple(part[order] for part in weight) if isinstance(weight, tuple) else weight[order]
               for weight in (layer.gate_up, layer.down)]  # fmt: skip
    return routing._replace(ids=moe_place(routing.ids, placement, number)), weights


def _ranks(layers: list[Layer], c: LongcatFlashConfig, x: Tensor, ranks: int) -> Claim:
    """The layers over ranks with different numbers of tokens, one of them with none where there are more than two;
    once with the experts in order, where they divide, and once placed."""
    cuts = _cuts(len(x), ranks)
    right = torch.cat([output(layer, c, x).view(torch.int16) for layer in layers])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layers.pt"
        torch.save((layers, x, cuts), file)
        name = f"{__name__}:rank_outputs"
        found = run_ranks(ranks, name, str(file), c)
    compared = bad = 0
    for runs in zip(*found, strict=True):  # the same run of every rank, each with its tokens of every layer
        parts = [torch.tensor(run, dtype=torch.int16).view(len(layers), -1, c.hidden_size) for run in runs]
        bad += different(torch.cat(parts, 1).flatten(0, 1), right)
        compared += len(right)
    tokens = ", ".join(str(b - a) for a, b in pairwise(cuts))
    how = "in order and placed" if len(found[0]) == 2 else "placed"
    return Claim(f"EP {ranks}", f"{how}, ranks with {tokens} tokens, beside one rank", compared, bad)


def _cuts(rows: int, ranks: int) -> list[int]:
    """Where each rank's tokens begin: more and more of them, none on the second of several."""
    shares = [0 if r == 1 and ranks > 2 else r + 1 for r in range(ranks)]
    return [round(rows * sum(shares[:r]) / sum(shares)) for r in range(ranks + 1)]


def rank_outputs(rank: int, ranks: int, file: str, config: LongcatFlashConfig) -> list[list[int]]:
    """One rank's part of the output of every layer, as bits, with experts in order if they divide, and placed."""
    layers, x, cuts = torch.load(file, weights_only=False)
    layers, own, runs = [Layer(*layer) for layer in layers], x[cuts[rank] : cuts[rank + 1]], []
    most = max(b - a for a, b in pairwise(cuts))
    for placed in (False, True) if config.n_routed_experts % ranks == 0 else (True,):
        outputs = []
        for number, layer in enumerate(layers):
            routing, weights = routed(layer, config, own), [layer.gate_up, layer.down]
            if placed:  # by the counts of all ranks' tokens, so that all place alike
                whole = routed(layer, config, x)
                everywhere, weights = _placed(layer, whole, ranks, number)
                routing = routing._replace(ids=everywhere.ids[cuts[rank] : cuts[rank + 1]])
            experts = _slots(config.n_routed_experts, ranks) if placed else config.n_routed_experts
            with _opened(layer, config, ranks, experts) as ep:
                mine = [of_rank(weight, rank, ranks) for weight in weights]
                outputs.append(ep.fused_moe(own, routing, *mine, most_tokens=most))
        runs.append(torch.cat(outputs).contiguous().view(torch.int16).flatten().tolist())
    return runs


def _opened(layer: Layer, c: LongcatFlashConfig, ranks: int, experts: int) -> ExpertParallel:
    payload = "fp8" if isinstance(layer.gate_up, tuple) else "bf16"
    return ExpertParallel(num_ffn_experts=experts, top_k=c.moe_topk, hidden=c.hidden_size, max_tokens=16,
                          payload=payload, backend="auto" if ranks == 1 else "torch")  # fmt: skip


def of_rank(weight: Any, rank: int, ranks: int) -> Any:
    """A rank's experts of a stacked weight."""
    if isinstance(weight, tuple):
        return tuple(of_rank(part, rank, ranks) for part in weight)
    size = len(weight) // ranks
    return weight[rank * size : (rank + 1) * size]
