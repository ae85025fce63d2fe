"""Looks for silent data corruption in a loaded network: in its weights at rest, and in what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..model import LongcatFlashForCausalLM
from ..training.checksums import Checksums, tensors_of
from ..training.determinism import Verdict, check


@dataclass(frozen=True)
class SdcReport:
    """What was found. tensors, num_bytes: of the weights. changed: the names of those whose bits changed. forward: of
    the last round. rounds: how many were made. seconds: of a checksum of all weights, of a round.
    """

    tensors: int
    num_bytes: int
    changed: list[str]
    forward: Verdict
    rounds: int
    checksum_seconds: float
    round_seconds: float

    @property
    def holds(self) -> bool:
        return not self.changed and self.forward.holds


def sdc_check(model: LongcatFlashForCausalLM, ids: Tensor, *, rounds: int = 2, sums: Checksums | None = None,
              progress: Callable[[int, int], None] | None = None) -> SdcReport:  # fmt: skip
    """Takes checksums of all weights, then in each round runs a forward twice, compares the bits of every op, and
    compares the checksums. The first finding ends it.

    A forward is a prompt of all `ids` but the last one, a step of decoding with the last one, and the same of the MTP
    head, if there is one. The network's ops have no gradient, so there is no backward.

    Args:
        ids: i64[n] tokens, 2 or more. rounds: 1 or more.
        sums: checksums of the weights taken before, when they were loaded; None: they are taken now.
        progress: called with rounds done and all of them.

    Raises:
        LongcatShapeError: an argument is not as above, or the network cannot take the tokens.
    """
    if ids.dim() != 1 or len(ids) < 2:
        raise LongcatShapeError(message("sdc_check", "ids", f"of shape {list(ids.shape)}", "[n], n of 2 or more"))
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise LongcatShapeError(message("sdc_check", "rounds", repr(rounds), "an int of 1 or more"))
    begin = perf_counter()
    taken = Checksums(tensors_of(model))
    of_checksums = perf_counter() - begin
    sums, forward, ids = sums or taken, _forward(model), ids.to(model.device)
    forward(ids)  # makes what the network makes once and keeps, such as the table of angles
    between, done = perf_counter(), 0
    while True:
        verdict, changed = check(forward, ids), sums.changed()
        done += 1
        if progress:
            progress(done, rounds)
        if done == rounds or changed or not verdict.holds:
            break
    of_round = (perf_counter() - between) / done
    return SdcReport(len(sums.tensors), sums.num_bytes, changed, verdict, done, of_checksums, of_round)


def _forward(model: LongcatFlashForCausalLM) -> Callable[[Tensor], list[Tensor]]:
    @torch.inference_mode()
    def run(ids: Tensor) -> list[Tensor]:
        n = len(ids) - 1
        cache = model.new_cache(1, n + 1)
        found = [*model(ids[None, :n], cache, return_hidden=True)]
        if model.mtp is not None:
            found.append(model.draft_prefill(cache, 0, ids[1:], found[1][0]))
        found += model(ids[None, n:], cache, return_hidden=True)
        return found

    return run
