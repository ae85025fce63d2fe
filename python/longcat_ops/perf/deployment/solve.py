"""The cheapest deployment that meets a target.

A step never gets shorter with a larger batch, and a token never dearer: every part is c + d x batch, or grows slower
than the batch (the experts that have rows). So of one GPU kind, size and overlap no batch is cheaper than the largest
that fits and still meets the limits on speed; of those as cheap, the smallest is taken. Both are found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...errors import LongcatShapeError, LongcatUnsupportedError, message
from .deployment import Deployment, divisors
from .hardware import GIB, GPUS, Gpu
from .step import Result, evaluate
from .studies import changed

MOST_BATCH = 4096  # sequences of a GPU


class Metric(NamedTuple):
    """sense: 1 where a target is a least value, -1 where a most one. limits: whether it bounds the batch from above."""

    of: Callable[[Result], float]
    sense: int
    limits: bool


METRICS = {
    "tokens/s/user": Metric(lambda r: r.tokens_s_user, 1, True),
    "tpot": Metric(lambda r: r.tpot_ms, -1, True),
    "tokens/s/gpu": Metric(lambda r: r.tokens_s_gpu, 1, False),
    "dollars": Metric(lambda r: float("inf") if r.dollars is None else r.dollars, -1, False),
}


@dataclass(frozen=True)
class Target:
    name: str
    value: float

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]

    def met(self, result: Result) -> bool:
        return self.metric.sense * (self.metric.of(result) - self.value) >= 0

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.metric.sense > 0 else '<='} {self.value:g}"


def targets(text: str) -> list[Target]:
    """Of "tokens/s/user >= 100", "tpot <= 20 and dollars <= 0.5": ms for tpot, dollars for a million tokens.

    Raises LongcatShapeError for anything else."""
    found = []
    for part in text.split(" and "):
        sign = ">=" if ">=" in part else "<="
        name, _, number = (one.strip() for one in part.partition(sign))
        try:
            target = Target(name.lower(), float(number))
            legal = 0 < target.value < float("inf") and (sign == ">=") == (target.metric.sense > 0)
        except (ValueError, KeyError):
            legal = False
        if not legal:
            forms = ", ".join(f'"{name} {">=" if m.sense > 0 else "<="} X"' for name, m in METRICS.items())
            raise LongcatShapeError(
                message("perf-model", "solve", repr(text), f"one of {forms}, or several with `and`")
            )
        found.append(target)
    return found


@dataclass(frozen=True)
class Solution:
    """best: the cheapest. by_gpu: the cheapest of each GPU kind that can. stop: what keeps a larger batch away. tried:
    kinds x sizes x overlaps. unpriced: GPU kinds that were left out."""

    best: Result
    by_gpu: dict[str, Result]
    stop: str
    tried: int
    unpriced: tuple[str, ...]


def solve(d: Deployment, wanted: list[Target], gpus: Iterable[Gpu] | None = None, eps: Iterable[int] | None = None,
          overlaps: Iterable[str] | None = None) -> Solution:  # fmt: skip
    """The cheapest a token over GPU kinds, numbers of GPUs (those that divide the experts) and batches; all else is
    d's. overlaps: None for d's own, or the network's.

    Raises LongcatUnsupportedError, with what each GPU kind reaches at most, where no deployment meets the targets."""
    kinds = list(GPUS.values() if gpus is None else gpus)
    sizes = sorted(divisors(d.network.experts) if eps is None else eps)
    hidings = [d.overlap] if overlaps is None else list(overlaps)
    tried, found, fallen = 0, {}, {}
    for gpu in kinds:
        if gpu.price is None:
            continue
        for ep in sizes:
            for hiding in hidings:
                try:
                    base = changed(d, gpu=gpu, batch=2, ep=ep, overlap=hiding)
                except LongcatShapeError:
                    continue
                tried += 1
                _add(found, fallen, gpu.name, base, wanted)
    unpriced = tuple(gpu.name for gpu in kinds if gpu.price is None)
    if not found:
        raise _impossible(wanted, fallen, unpriced)
    best = min(found.values(), key=_rank)
    return Solution(
        best, dict(sorted(found.items(), key=lambda one: _rank(one[1]))), _stop(best, wanted), tried, unpriced
    )


def _rank(result: Result) -> tuple[float, int, int]:
    """Cheapest, then fewest GPUs, then fastest."""
    d = result.deployment
    return _price(result), d.ep, d.batch


def _price(result: Result) -> float:
    """To nine digits: the last ones are rounding."""
    return float(f"{METRICS['dollars'].of(result):.9g}")


def _add(found: dict[str, Result], fallen: dict[str, list[Result]], name: str, base: Deployment,
         wanted: list[Target]) -> None:  # fmt: skip
    limits = [target for target in wanted if target.metric.limits]
    least = 2 if base.hiding == "tbo" else 1

    def holds(batch: int) -> bool:
        result = evaluate(replace(base, batch=batch))
        return result.fits and all(target.met(result) for target in limits)

    batch = _largest(holds, least, MOST_BATCH)
    result = evaluate(replace(base, batch=batch or least))
    if batch and all(target.met(result) for target in wanted):
        dearer = _largest(lambda one: _price(evaluate(replace(base, batch=one))) > _price(result), least, batch)
        result = evaluate(replace(base, batch=max(least, dearer + 1)))
        found[name] = min(found.get(name, result), result, key=_rank)
    else:
        fallen.setdefault(name, []).append(result)


def _largest(holds: Callable[[int], bool], least: int, most: int) -> int:
    """The largest batch in least .. most for which it holds; 0 if for none."""
    if not holds(least):
        return 0
    low, high = least, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _stop(result: Result, wanted: list[Target]) -> str:
    """Why no larger batch."""
    d = result.deployment
    if d.batch == MOST_BATCH:
        return f"the largest batch that was tried, {MOST_BATCH}"
    more = evaluate(replace(d, batch=d.batch + 1))
    if _price(more) >= _price(result):
        return "it is no cheaper: every part grows with it"
    missed = [str(target) for target in wanted if target.metric.limits and not target.met(more)]
    return " and ".join(
        missed if more.fits else [*missed, f"the memory of a GPU, {d.gpu.capacity.value / GIB:.0f} GiB"]
    )


def _impossible(wanted: list[Target], fallen: dict[str, list[Result]], unpriced: tuple[str, ...]) -> Exception:
    """What each GPU kind can do: of those that fit, the one that comes nearest, by the worst of its targets."""
    lines = []
    for name, results in fallen.items():
        fitting = [one for one in results if one.fits]
        if not fitting:
            least = min(results, key=lambda one: one.weights + one.cache)
            lines.append(f"{name}: does not fit: {(least.weights + least.cache) / GIB:.0f} GiB of "
                         f"{least.capacity / GIB:.0f} at EP {least.deployment.ep}, the least")  # fmt: skip
            continue
        near = min(fitting, key=lambda one: max(_missing(one, target) for target in wanted))
        part, bound = near.binding[0], near.binding[1].bound
        reached = ", ".join(f"{t.name} {t.metric.of(near):.3g}" for t in wanted)
        lines.append(f"{name}: at best {reached} (EP {near.deployment.ep}, batch {near.deployment.batch}); "
                     f"the longest part is {part}, by {bound}")  # fmt: skip
    if unpriced:
        lines.append(f"{', '.join(unpriced)}: no price known; give one with --price")
    got = repr(" and ".join(map(str, wanted)))
    return LongcatUnsupportedError(
        message("perf-model", "solve", got, "a target that a deployment meets", "\n  ".join(lines))
    )


def _missing(result: Result, target: Target) -> float:
    """How many times the value is short of the target."""
    value = target.metric.of(result)
    return target.value / value if target.metric.sense > 0 else value / target.value
