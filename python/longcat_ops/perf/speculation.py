"""What drafts gain: the length that a step accepts, and the speed-up that its costs leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import LongcatShapeError, message


def accepted_length(acceptance: float, drafts: int) -> float:
    """Omega: tokens of a step that verifies `drafts` drafts in a chain, each accepted with probability `acceptance`
    while all before it were, and the token behind them: 1 + a + .. + a^g (LongCat-Flash technical report,
    arXiv:2509.01322, section 6.1.2, after MagicDec, arXiv:2408.11049).

    Raises: LongcatShapeError for a probability outside of 0 .. 1, or a negative number of drafts.
    """
    _require("acceptance", acceptance, 0 <= acceptance <= 1, "a probability, 0 .. 1")
    _require("drafts", drafts, isinstance(drafts, int) and drafts >= 0, "an integer of 0 or more")
    return sum(acceptance**i for i in range(drafts + 1))


def speed_up(length: float, drafts: int, draft_cost: float, verify_cost: float) -> float:
    """How many times as fast decoding with drafts is as without: T_T / T_SD of T_SD / T_T = (g T_D / T_T + T_V / T_T) /
    Omega.

    Args:
        length: Omega, tokens of a step on average, predicted by `accepted_length` or measured.
        drafts: g, drafts of a step.
        draft_cost: T_D / T_T, the time of one draft over that of a target pass of one row a sequence.
        verify_cost: T_V / T_T, likewise of a target pass of g + 1 rows a sequence.

    Raises: LongcatShapeError for a length outside of 1 .. g + 1, or costs that are no times.
    """
    _require("drafts", drafts, isinstance(drafts, int) and drafts >= 0, "an integer of 0 or more")
    _require("length", length, 1 <= length <= drafts + 1, f"1 .. {drafts + 1} tokens a step")
    _require("draft_cost", draft_cost, draft_cost >= 0, "0 or more")
    _require("verify_cost", verify_cost, verify_cost > 0, "more than 0")
    return length / (drafts * draft_cost + verify_cost)


def least_acceptance(drafts: int, draft_cost: float, verify_cost: float) -> float | None:
    """The acceptance at which drafts neither gain nor lose; None: they lose at any."""
    if speed_up(drafts + 1, drafts, draft_cost, verify_cost) < 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        gains = speed_up(accepted_length(middle, drafts), drafts, draft_cost, verify_cost) >= 1
        low, high = (low, middle) if gains else (middle, high)
    return high


def best_threshold(scores: Sequence[float], draft_cost: float, verify_cost: float) -> tuple[float, float]:
    """(beta, speed-up) of a step with one draft that is verified where its score reaches beta, at the beta that gains
    most; beta is infinite where no draft is worth its row.

    A score is the probability of acceptance, so of the share r of drafts that are verified a step gets 1 + sum of
    their scores / number of drafts tokens, and its target pass costs 1 + r (T_V / T_T - 1).

    Args:
        scores: of drafts as they come, at least one.
        draft_cost, verify_cost: as for `speed_up`.

    Raises: LongcatShapeError for no scores, scores that are no probabilities, or costs that are no times.
    """
    _require("scores", f"{len(scores)} numbers", len(scores) > 0, "at least one")
    _require("scores", "numbers outside of it", all(0 <= one <= 1 for one in scores), "probabilities, 0 .. 1")
    best, tokens = (math.inf, speed_up(1.0, 1, draft_cost, 1.0)), 1.0
    for kept, score in enumerate(sorted(scores, reverse=True), 1):
        tokens += score / len(scores)
        gain = speed_up(tokens, 1, draft_cost, 1 + kept / len(scores) * (verify_cost - 1))
        if gain >= best[1]:
            best = score, gain
    return best


def _require(name: str, value: object, legal: bool, expected: str) -> None:
    if not legal:
        raise LongcatShapeError(message("speculation", name, value, expected))
