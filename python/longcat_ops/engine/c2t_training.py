"""Trains C2T's classifier for the MTP head of one model: traces of its drafts, Adam, calibration, judgement.

A text that the target wrote greedily is passed through target and head once more, whole. That gives a draft behind each
of its tokens, what the classifier may know of it, and whether the target takes it: as many samples as there are tokens,
those too that a decode would not draft because it had just accepted two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from ..model import LongcatFlashForCausalLM
from ..model.products import ops_for
from .c2t import TOP, DraftFilter

UNITS, RATE, BATCH, STEPS = 48, 1e-3, 1024, 3000  # the paper's, but for the steps: it trains 10 epochs of 9 M nodes
_BINS = 10


@dataclass(frozen=True)
class Traces:
    """Drafts. features f64 [N,3]: joint probability, entropy, depth; accepted bool [N]: whether the target takes it."""

    features: Tensor
    accepted: Tensor

    @staticmethod
    def join(parts: Sequence[Traces]) -> Traces:
        return Traces(torch.cat([p.features for p in parts]), torch.cat([p.accepted for p in parts]))


@dataclass(frozen=True)
class Judgement:
    """How well scores foretell acceptance, over `samples` drafts of which the share `acceptance` is taken.

    log_loss: mean of -ln of what the score gave to what happened; base_log_loss: of a score that is always
    `acceptance`. calibration_error: mean over ten bins of equal size of |mean score - share taken|. auc: how often a
    draft that is taken has a higher score than one that is not; None: all are alike.
    """

    samples: int
    acceptance: float
    log_loss: float
    base_log_loss: float
    calibration_error: float
    auc: float | None


@torch.inference_mode()
def trace(model: LongcatFlashForCausalLM, prompt: Sequence[int], new: Sequence[int], top: int = TOP) -> Traces:
    """The drafts of the MTP head behind each new token of a text; `new` leaves out a stop id that ended it.

    Raises: LongcatUnsupportedError for a model without MTP head, or of several ranks.
    """
    if model.mtp is None or model.parallel is not None:
        got = "a model of several ranks" if model.parallel is not None else "a model without MTP head"
        raise LongcatUnsupportedError(message("c2t", "model", got, "one with an MTP head, on one rank"))
    ids, first = torch.tensor([*prompt, *new]), len(prompt) - 1
    if not new:
        return Traces(torch.zeros((0, 3), dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    model.follow_weights()
    cache = model.new_cache(1, len(ids))
    target = model.prefill(cache, 0, ids)
    hidden = model.draft_prefill(cache, 0, ids[1:], target.hidden[:-1])
    logits = model.head(hidden[first:])  # row p: the draft of token p + 2, beside the target's row p + 1
    accepted = logits.argmax(-1) == target.logits[first + 1 :].argmax(-1)
    probability, entropy = known_of(logits, top)
    return Traces(torch.stack([probability, entropy, torch.ones_like(entropy)], 1), accepted.cpu())


def known_of(logits: Tensor, top: int = TOP) -> tuple[Tensor, Tensor]:
    """(f64 [N], f64 [N]) of rows of a head: the largest probability, and the entropy of the `top` largest, in nats."""
    hidden, output = torch.zeros((1, 4), device=logits.device), torch.zeros(2, device=logits.device)
    drafts = torch.ones(len(logits), dtype=torch.int32, device=logits.device)
    found = ops_for(logits.dtype).filter_drafts(logits, drafts, hidden, output, beta=0.0, top=top)
    return found.joint.double().cpu(), found.entropy.double().cpu()


def train(traces: Traces, calibration: Traces, *, units: int = UNITS, steps: int = STEPS, rate: float = RATE,
          batch: int = BATCH, top: int = TOP, seed: int = 0) -> DraftFilter:  # fmt: skip
    """A classifier that scores drafts by how likely they are accepted: binary cross-entropy and Adam over batches drawn
    from `traces`, then Platt's scaling on drafts of other texts, so that a score is a probability.

    Raises: LongcatShapeError where all drafts, or none, are accepted: nothing can be told apart.
    """
    for name, given in (("traces", traces), ("calibration", calibration)):
        taken = int(given.accepted.sum())
        if not 0 < taken < len(given.accepted):
            got = f"{len(given.accepted)} drafts, {taken} of them accepted"
            raise LongcatShapeError(message("c2t", name, got, "drafts of both kinds", fix="give it more prompts"))
    draw = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([1.0, 1.0, 1.0, 0.0])  # of a unit's first numbers; none starts as a constant of the entropy
    hidden = ((2 * torch.rand((units, 4), generator=draw) - 1) * bounds).requires_grad_()
    output = (0.1 * (2 * torch.rand(units + 1, generator=draw) - 1)).requires_grad_()
    features, labels = traces.features.float(), traces.accepted.float()
    optimizer = torch.optim.Adam([hidden, output], lr=rate)
    for _ in range(steps):
        rows = torch.randint(len(labels), (min(batch, len(labels)),), generator=draw)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(_sum(features[rows], hidden, output), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden, output = hidden.detach().double(), output.detach().double()
    a, b = platt(_sum(calibration.features, hidden, output), calibration.accepted)
    output *= a
    output[-1] += b
    return DraftFilter(hidden.float().tolist(), output.float().tolist(), top=top)


def platt(sums: Tensor, accepted: Tensor) -> tuple[float, float]:
    """(a, b) for which sigmoid(a s + b) is the likeliest score, by Newton's method, with Platt's targets: a sample more
    of either kind (Probabilistic Outputs for Support Vector Machines, 1999)."""
    taken = int(accepted.sum())
    high, low = (taken + 1) / (taken + 2), 1 / (len(accepted) - taken + 2)
    targets = torch.where(accepted, high, low).double()
    inputs = torch.stack([sums.double(), torch.ones(len(sums), dtype=torch.float64)], 1)
    found = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def loss_of(at: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(inputs @ at, targets)

    for _ in range(50):
        p = (inputs @ found).sigmoid()
        slope = inputs.T @ (p - targets) / len(p)
        curve = (inputs * (p * (1 - p))[:, None]).T @ inputs / len(p) + 1e-12 * torch.eye(2, dtype=torch.float64)
        move, before = torch.linalg.solve(curve, slope), loss_of(found)
        while (after := loss_of(found - move)) > before and move.abs().max() > 1e-12:
            move = move / 2
        found = found - move
        if before - after < 1e-12:
            break
    return float(found[0]), float(found[1])


def judge(classifier: DraftFilter, traces: Traces) -> Judgement:
    """How well the classifier does on drafts that it has not seen."""
    scores, accepted = classifier.scores(traces.features), traces.accepted.double()
    share = float(accepted.mean())
    base = torch.full_like(scores, share)
    order = scores.argsort()
    bins = [part for part in order.tensor_split(_BINS) if len(part)]
    error = sum(float((scores[part].mean() - accepted[part].mean()).abs()) * len(part) for part in bins) / len(scores)
    return Judgement(len(scores), share, _log_loss(scores, accepted), _log_loss(base, accepted), error,
                     _auc(scores, traces.accepted))  # fmt: skip


def _sum(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """What the sigmoid is taken of."""
    return (features @ hidden[:, :3].T + hidden[:, 3]).relu() @ output[:-1] + output[-1]


def _log_loss(scores: Tensor, accepted: Tensor) -> float:
    return float(torch.nn.functional.binary_cross_entropy(scores, accepted))


def _auc(scores: Tensor, accepted: Tensor) -> float | None:
    """By ranks, ties in the middle (Mann and Whitney)."""
    taken = int(accepted.sum())
    if not 0 < taken < len(accepted):
        return None
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return float((ranks[place][accepted].sum() - taken * (taken + 1) / 2) / (taken * (len(accepted) - taken)))
