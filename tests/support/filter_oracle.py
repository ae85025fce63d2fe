"""`filter_drafts` row by row in Python floats, and how far the op may be from that.

The bounds count roundings. With u = 2^-53, n terms of a sum and d = top - x: exp is within 4u, and x - top rounds once,
so a weight is within (4 + d) u of itself. The sum of all, in any order, is within z = (n + 4 + mean d) u, where mean d
is at most ln n; its ln within z + (5 + ln sum) u; a p within (4 + d) u + z + u; and s = -ln p within z + (5 + 2 s) u.
The oracle's own errors are smaller, so each bound is doubled. One rounding to float32 follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from support import sampling_oracle

U = 2.0**-53


class Score(NamedTuple):
    joint: float
    entropy: float
    score: float


NAN = Score(math.nan, math.nan, math.nan)


def judged(row: Sequence[float], hidden: Sequence[Sequence[float]], output: Sequence[float], before: float, depth: int,
           top: int) -> tuple[Score, Score]:  # fmt: skip
    """(values, bounds) of one row that has a draft."""
    if not sampling_oracle.is_finite(row):
        return NAN, NAN
    n, best = len(row), max(row)
    total = math.fsum(math.exp(x - best) for x in row)
    largest = sorted((math.exp(x - best) / total for x in row), reverse=True)[:top]
    largest = [p for p in largest if p > 0]
    joint, entropy = before * largest[0], math.fsum(-p * math.log(p) for p in largest)
    z = (n + 4 + math.log(n)) * U
    joint_error = 2 * joint * (z + 2 * U)
    squares = math.fsum(p * math.log(p) ** 2 for p in largest)  # of s, which is at least d
    entropy_error = 2 * (z + 5 * U + entropy * (8 * U + z + n * U) + squares * U)
    total, error, size = output[-1], 0.0, abs(output[-1])
    for weights, out in zip(hidden, output, strict=False):
        terms = [w * x for w, x in zip(weights, (joint, entropy, depth, 1.0), strict=True)]
        unit, bulk = math.fsum(terms), math.fsum(map(abs, terms))
        total += out * max(unit, 0.0)
        size += abs(out) * bulk
        error += abs(out) * (abs(weights[0]) * joint_error + abs(weights[1]) * entropy_error + 12 * U * bulk)
    error += 2 * (len(hidden) + 2) * U * size
    small = math.exp(-abs(total))
    score = (small if total < 0 else 1.0) / (1.0 + small)
    values = Score(joint, entropy, score)
    errors = joint_error, entropy_error, 2 * score * (error + 8 * U)
    return values, Score(*(e + 2.0**-24 * (v + e) + 2.0**-150 for v, e in zip(values, errors, strict=True)))
