"""Accepted lengths and speed-ups equal the series and figures by hand."""

from __future__ import annotations

import math
import random
import re

import pytest

from longcat_ops import LongcatShapeError
from longcat_ops.perf.speculation import accepted_length, best_threshold, least_acceptance, speed_up


@pytest.mark.parametrize(
    ("acceptance", "drafts", "length"),
    [(0.8, 1, 1.8), (0.9, 1, 1.9), (0.921, 1, 1.921), (0.8, 2, 2.44), (0.9, 2, 2.71), (0.8, 3, 2.952),
     (0.9, 3, 3.439), (0, 5, 1), (1, 5, 6), (0.5, 0, 1)],
)  # fmt: skip
def test_lengths_by_hand(acceptance: float, drafts: int, length: float) -> None:
    assert accepted_length(acceptance, drafts) == pytest.approx(length)


def test_lengths_of_drawn_chains() -> None:
    draw = random.Random(0)
    simulated = 1 + sum(all(draw.random() < 0.7 for _ in range(i)) for _ in range(20_000) for i in (1, 2, 3)) / 20_000
    assert simulated == pytest.approx(accepted_length(0.7, 3), abs=0.03)


def test_speed_ups_by_hand() -> None:
    assert speed_up(1.8, 1, 0.0, 1.0) == 1.8
    assert speed_up(1.8, 1, 0.1, 1.1) == pytest.approx(1.5)
    assert speed_up(2.5, 2, 0.25, 2.0) == 1.0
    assert speed_up(1, 0, 9.0, 1.0) == 1.0


def test_where_drafts_pay() -> None:
    assert least_acceptance(1, 0.1, 1.1) == pytest.approx(0.2)  # 1 + a = 1.2
    assert least_acceptance(2, 0.0, 1.75) == pytest.approx(0.5)  # 1 + a + a^2
    assert least_acceptance(1, 0.5, 1.6) is None
    assert least_acceptance(1, 0.0, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_best_thresholds_against_every_choice() -> None:
    """Of all thresholds, by the speed-up of a step that verifies what reaches it."""
    draw = random.Random(1)
    for _ in range(50):
        scores = [draw.choice([0.0, 0.2, 0.5, draw.random(), 1.0]) for _ in range(draw.randrange(1, 12))]
        draft_cost, verify_cost = draw.random() / 2, 1 + draw.random()
        gains = {}
        for beta in [*scores, math.inf]:
            kept = [one for one in scores if one >= beta]
            share, tokens = len(kept) / len(scores), 1 + sum(kept) / len(scores)
            gains[beta] = speed_up(tokens, 1, draft_cost, 1 + share * (verify_cost - 1))
        beta, gain = best_threshold(scores, draft_cost, verify_cost)
        assert gain == pytest.approx(max(gains.values())) == pytest.approx(gains[beta])


def test_thresholds_by_hand() -> None:
    assert best_threshold([0.9, 0.1], 0.1, 1.2) == (0.9, pytest.approx(1.45 / 1.2))
    assert best_threshold([0.9, 0.1], 0.0, 1.0) == (0.1, pytest.approx(1.5))  # a row costs nothing
    assert best_threshold([0.3, 0.1], 0.0, 2.0) == (math.inf, 1.0)
    for scores, text in (([], "`scores` is 0 numbers"), ([0.5, 1.5], "expected probabilities")):
        with pytest.raises(LongcatShapeError, match=text):
            best_threshold(scores, 0.1, 1.2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((3.0, 1, 0.1, 1.0), "`length` is 3.0, expected 1 .. 2 tokens a step"), ((1.5, -1, 0.1, 1.0), "`drafts` is -1"),
     ((1.5, 1, -0.1, 1.0), "`draft_cost` is -0.1"), ((1.5, 1, 0.1, 0.0), "`verify_cost` is 0.0, expected more than 0")],
)  # fmt: skip
def test_refusals(arguments: tuple, text: str) -> None:
    with pytest.raises(LongcatShapeError, match=re.escape(text)):
        speed_up(*arguments)
    with pytest.raises(LongcatShapeError, match=r"`acceptance` is 1\.5"):
        accepted_length(1.5, 1)
