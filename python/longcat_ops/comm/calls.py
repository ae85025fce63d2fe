"""Every operation as the schema gives it: its checks, the text that describes it to other ranks, and the call of the
rung. The text holds what must be the same on every rank: ranks with other texts disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..types import BLOCK
from . import checks
from .checks import Limits, Rows, describe
from .ops import SCHEMAS
from .rungs.base import Rung
from .runner import Prepared


def all_reduce(limits: Limits, rung: Rung, x: Tensor, out: Tensor) -> Prepared:
    _summed("all_reduce", x, limits)
    checks.output("all_reduce", "out", out, x, x.shape, limits)
    checks.apart("all_reduce", "out", out, {"x": x})
    return f"all_reduce {describe(x)}", lambda: rung.all_reduce(x, out)


def all_reduce_(limits: Limits, rung: Rung, x: Tensor) -> Prepared:
    _summed("all_reduce_", x, limits)
    return f"all_reduce {describe(x)}", lambda: rung.all_reduce(x, x)


def _summed(op: str, x: Tensor, limits: Limits) -> None:
    checks.tensor(op, "x", x, limits, checks.SUMMED)
    checks.size(op, "x", x.nbytes, limits)


def reduce_scatter(
    limits: Limits, rung: Rung, x: Tensor, out: Tensor, rows: list[int] | None, counts: Tensor | None
) -> Prepared:
    op = "reduce_scatter"
    checks.tensor(op, "x", x, limits, checks.SUMMED, dims=1)
    checks.size(op, "x", x.nbytes, limits)
    found = _read(op, rows if counts is None else counts, limits, rung, len(x))
    if found.counts is not None:
        checks.counted(op, found, len(x), "x")
    checks.output(op, "out", out, x, [len(out), *x.shape[1:]] if out.dim() else x.shape, limits)
    checks.own_rows(op, "out", out, found, limits)
    own, place = out, None
    if found.counts is not None:
        start = sum(found.counts[: limits.rank])
        x, own = x[: sum(found.counts)], out[: found.counts[limits.rank]]
        place = x[start : start + len(own)]
    checks.apart(op, "out", own, {"x": x} if place is None or own.data_ptr() != place.data_ptr() else {})
    text = f"{op} {describe(x)} rows {_shown(found)}"
    return text, lambda: rung.reduce_scatter(x, own, found.value())


def all_gather(
    limits: Limits, rung: Rung, x: Tensor, out: Tensor, rows: list[int] | None, counts: Tensor | None
) -> Prepared:
    op = "all_gather"
    checks.tensor(op, "x", x, limits, dims=1)
    given = rows if counts is None else counts
    found = _read(op, given, limits, rung, None)
    if given is None:
        found = Rows([len(x)] * limits.ranks)
    checks.output(op, "out", out, x, [len(out), *x.shape[1:]] if out.dim() else x.shape, limits)
    checks.size(op, "out", out.nbytes, limits)
    if found.counts is not None:
        checks.counted(op, found, len(out), "out")
    checks.own_rows(op, "x", x, found, limits)
    place = None
    if found.counts is not None:
        start = sum(found.counts[: limits.rank])
        out, x = out[: sum(found.counts)], x[: found.counts[limits.rank]]
        place = out[start : start + len(x)]
    checks.apart(op, "out", out, {"x": x} if place is None or x.data_ptr() != place.data_ptr() else {})
    text = f"{op} {str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])} rows {_shown(found)}"
    return text, lambda: rung.all_gather(x, out, found.value())


def _read(op: str, rows: Any, limits: Limits, rung: Rung, first: int | None) -> Rows:
    found = checks.rows(op, rows, limits, first)
    return found.read() if rung.reads_rows else found


def _shown(found: Rows) -> str:
    return "on the device" if found.counts is None else str(found.counts)


def broadcast_(limits: Limits, rung: Rung, x: Tensor, src: int) -> Prepared:
    checks.tensor("broadcast_", "x", x, limits)
    checks.size("broadcast_", "x", x.nbytes, limits)
    checks.source("broadcast_", src, limits)
    return f"broadcast {describe(x)} from rank {src}", lambda: rung.broadcast_(x, src)


def all_reduce_residual_rmsnorm(
    limits: Limits,
    rung: Rung,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    residual_out: Tensor,
) -> Prepared:
    op = "all_reduce_residual_rmsnorm"
    checks.norm(op, x, residual, weight, eps, None, limits)
    checks.size(op, "x", x.nbytes, limits)
    checks.output(op, "out", out, x, x.shape, limits)
    checks.output(op, "residual_out", residual_out, x, x.shape, limits)
    checks.apart(op, "out", out, {"x": x, "weight": weight})
    checks.apart(op, "residual_out", residual_out, {"residual": residual, "x": x, "weight": weight})
    _distinct(op, {"out": out, "residual_out": residual_out, "residual": residual})
    text = f"{op} {describe(x)} eps {eps}"
    return text, lambda: rung.all_reduce_residual_rmsnorm(x, residual, weight, eps, out, residual_out)


def all_reduce_residual_rmsnorm_quant(
    limits: Limits, rung: Rung, x: Tensor, residual: Tensor, weight: Tensor, eps: float, q: Tensor, s: Tensor,
    residual_out: Tensor,
) -> Prepared:  # fmt: skip
    op = "all_reduce_residual_rmsnorm"
    checks.norm(op, x, residual, weight, eps, "fp8_1x128", limits)
    checks.size(op, "x", x.nbytes, limits)
    checks.output(op, "q", q, x.new_empty(0, dtype=torch.float8_e4m3fn), x.shape, limits)
    checks.output(op, "s", s, weight, scales_shape(x), limits)
    checks.output(op, "residual_out", residual_out, x, x.shape, limits)
    checks.apart(op, "residual_out", residual_out, {"residual": residual, "x": x, "weight": weight})
    _distinct(op, {"q": q, "x": x, "residual": residual, "weight": weight, "residual_out": residual_out})
    _distinct(op, {"s": s, "x": x, "residual": residual, "weight": weight, "residual_out": residual_out, "q": q})
    text = f"{op} {describe(x)} eps {eps} quant fp8_1x128"
    return text, lambda: rung.all_reduce_residual_rmsnorm(x, residual, weight, eps, (q, s), residual_out)


def scales_shape(x: Tensor) -> list[int]:
    """[T, ceil(H / 128)] of x [T, H]."""
    return [x.shape[0], -(-x.shape[1] // BLOCK)]


@checks.rank_local
def _distinct(op: str, named: dict[str, Tensor]) -> None:
    """The first shares no memory with any other."""
    (name, first), *others = named.items()
    for other, x in others:
        if checks.overlap(first, x):
            raise checks.refuse(op, name, f"memory of `{other}`", "memory of its own")


def barrier(limits: Limits, rung: Rung, token: Tensor) -> Prepared:
    def run() -> None:
        rung.barrier()
        token.add_(1)

    return "barrier", run


CALLS: dict[str, Callable[..., Prepared]] = {
    f.__name__: f
    for f in (
        all_reduce,
        all_reduce_,
        reduce_scatter,
        all_gather,
        broadcast_,
        all_reduce_residual_rmsnorm,
        all_reduce_residual_rmsnorm_quant,
        barrier,
    )
}
assert CALLS.keys() == SCHEMAS.keys()
