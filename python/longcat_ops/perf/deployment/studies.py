"""A deployment varied: along one or two axes, and without one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ...errors import LongcatShapeError, message
from .deployment import OVERLAPS, PRECISIONS, Deployment, require
from .hardware import GPUS, LINKS, Gpu, link_by_name, with_price
from .step import Result, evaluate

AXES: dict[str, tuple[type, tuple[str, ...]]] = {  # the type of a value, and the values of a name
    "ep": (int, ()), "batch": (int, ()), "drafts": (int, ()), "acceptance": (float, ()), "context": (int, ()),
    "tp": (int, ()), "ffn_experts": (float, ()), "price": (float, ()), "gpu": (str, tuple(GPUS)), "link": (str, LINKS),
    "overlap": (str, OVERLAPS), "precision": (str, tuple(PRECISIONS)), "attention_precision": (str, tuple(PRECISIONS)),
}  # fmt: skip
MOST_POINTS = 10_000


def changed(d: Deployment, **values: Any) -> Deployment:
    """The deployment with values of AXES in place of its own; gpu: a name or a Gpu. A link that was named follows it.

    Raises LongcatShapeError for a value that cannot be."""
    price, link, gpu = (values.pop(name, None) for name in ("price", "link", "gpu"))
    gpu = GPUS[gpu] if isinstance(gpu, str) else gpu or d.gpu
    if price is not None:
        require("price", price, 0 < price < 1e6, "dollars an hour, more than 0")
        gpu = with_price(gpu, price)
    name = link or (d.link.name if d.link is not None else None)
    path = link_by_name(name, gpu) if name in LINKS else d.link
    return replace(d, gpu=gpu, link=path, **values)


@dataclass(frozen=True)
class Point:
    """values: of the axes. result: None where they cannot be, for `reason`."""

    values: tuple[Any, ...]
    result: Result | None
    reason: str = ""


def axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """ "batch=8,16,32", "ep=8..128" (doubling from the first to the last) or "gpu=H20,H800".

    Raises LongcatShapeError for another name, another value or no value."""
    name, _, listed = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in AXES:
        raise LongcatShapeError(
            message("perf-model", "sweep", repr(text), f"AXIS=VALUE,.. with one of {', '.join(AXES)}")
        )
    kind, words = AXES[name]
    values: list[Any] = []
    for part in listed.split(","):
        ends = [_value(text, one, kind, words) for one in part.split("..")]
        if len(ends) == 1:
            values += ends
            continue
        low, high = ends if len(ends) == 2 and kind is int else (0, 0)
        if not 0 < low <= high:
            raise LongcatShapeError(message("perf-model", "sweep", repr(text), "LOW..HIGH of positive integers"))
        values += [low << i for i in range((high // low).bit_length())]
    return name, tuple(values)


def _value(text: str, word: str, kind: type, words: tuple[str, ...]) -> Any:
    word = word.strip()
    try:
        if words and word not in words:
            raise ValueError
        return kind(word)
    except ValueError:
        expected = f"values of {', '.join(words)}" if words else f"values that are {kind.__name__}s"
        raise LongcatShapeError(message("perf-model", "sweep", repr(text), expected)) from None


def sweep(d: Deployment, axes: Mapping[str, Sequence[Any]], gpus: Mapping[str, Gpu] = GPUS) -> list[Point]:
    """Every combination, the last axis fastest. gpus: those that the axis `gpu` names."""
    count = 1
    for values in axes.values():
        count *= len(values)
    if not 1 <= len(axes) <= 2 or count > MOST_POINTS:
        got = f"{len(axes)} axes with {count} points"
        raise LongcatShapeError(message("perf-model", "sweep", got, f"one or two axes, {MOST_POINTS} points at most"))
    points = []
    for values in product(*axes.values()):
        try:
            named = dict(zip(axes, values, strict=True))
            if "gpu" in named:
                named["gpu"] = gpus[named["gpu"]]
            points.append(Point(values, evaluate(changed(d, **named))))
        except LongcatShapeError as error:
            points.append(Point(values, None, str(error).splitlines()[0]))
    return points


def ablation(d: Deployment) -> list[tuple[str, Point]]:
    """What each thing is worth: the deployment, then it without one thing at a time. What it has not is left out."""
    net = d.network
    without: list[tuple[str, Mapping[str, Any]]] = [("as it is", {})]
    if net.zero_experts and d.zero_aware:
        without.append(("zero experts travel", {"zero_aware": False}))
    if net.zero_experts and d.rows < net.choices:
        without.append((f"all {net.choices} choices are FFN experts", {"ffn_experts": net.choices}))
    if d.drafts:
        without.append(("no drafts", {"drafts": 0}))
    if d.hiding == "sbo":
        without.append(("two micro-batches in place of SBO", {"overlap": "tbo"}))
    if d.hiding != "none":
        without.append(("no overlap", {"overlap": "none"}))
    if d.precision == "fp8":
        without.append(("bf16 in place of FP8", {"precision": "bf16", "attention_precision": "bf16"}))
    found = []
    for name, values in without:
        try:
            found.append((name, Point((), evaluate(replace(d, **values)))))
        except LongcatShapeError as error:
            found.append((name, Point((), None, str(error).splitlines()[0])))
    return found
