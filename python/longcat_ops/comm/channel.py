"""The operations of one channel of a communicator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatError
from . import calls, checks
from .rungs.base import Rung, Session
from .runner import Runner, captured, is_capturing


class Channel(Runner):
    """Collectives among the ranks of a group, one at a time, in the same order on every rank.

    Tensors are dense and contiguous, on a device of `caps.devices`. Sums take bfloat16, float16 and float32; the other
    operations take any dtype. Every size is legal, 0 included, up to `max_bytes` of the whole tensor. With
    `caps.fixed_order` a sum is taken in float32, in rank order, and rounded once: the same bits on every rank.

    rows: how many rows each rank has, zero rows included. None: the same on each. A list: one int for each rank. An
    int32 tensor [ranks]: then `out` is required, tensors may have more rows than are used, and the rest is not touched.

    A call that is not legal raises LongcatShapeError or LongcatUnsupportedError before anything is sent. What is the
    same on every rank (dtypes, shapes, rows, source) is refused by all of them together, and the communicator stays
    usable. What only one rank got wrong, that rank refuses; the others raise LongcatCommError with its rank and its
    text. A rank that does not come within `timeout_s`, or whose process ends, is named by LongcatTimeoutError on every
    other. After either, the communicator is poisoned: every call raises LongcatCommError and says why.
    """

    def __init__(self, session: Session, rung: Rung) -> None:
        self.caps = rung.caps
        self._limits = checks.Limits(session.rank, session.ranks, rung.caps.devices, session.config.max_bytes)
        super().__init__(session, rung, calls.CALLS, self._limits)

    def all_reduce(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The sum of every rank's x, of any shape; out may be x."""
        self._need("all_reduce", x=x, out=out)
        if out is x:
            return self.all_reduce_(x)
        out = torch.empty_like(x) if out is None else out
        torch.ops.longcat_ops.comm_all_reduce(self._handle, x, out)
        return out

    def all_reduce_(self, x: Tensor) -> Tensor:
        """`all_reduce` in place."""
        self._need("all_reduce_", x=x)
        torch.ops.longcat_ops.comm_all_reduce_(self._handle, x)
        return x

    def reduce_scatter(self, x: Tensor, out: Tensor | None = None, rows: list[int] | Tensor | None = None) -> Tensor:
        """This rank's rows of the sum: x [sum(rows), ...] -> [rows[rank], ...]; out may be these rows of x.

        With a tensor of rows: x [>= sum(rows), ...], out [>= rows[rank], ...].
        """
        self._need("reduce_scatter", x=x, out=out)
        if out is None:
            try:
                counts = self._counts("reduce_scatter", x, rows, len(x) if x.dim() else 0)
                out = torch.empty((counts[self.rank], *x.shape[1:]), dtype=x.dtype, device=x.device)
            except LongcatError as error:
                self._refuse("reduce_scatter", error)
        torch.ops.longcat_ops.comm_reduce_scatter(self._handle, x, out, *self._split("reduce_scatter", rows))
        return out

    def all_gather(self, x: Tensor, out: Tensor | None = None, rows: list[int] | Tensor | None = None) -> Tensor:
        """Every rank's rows, in rank order: x [rows[rank], ...] -> [sum(rows), ...]; x may be its place in out.

        With a tensor of rows: x [>= rows[rank], ...], out [max_rows, ...] with max_rows >= sum(rows).
        """
        self._need("all_gather", x=x, out=out)
        if out is None:
            try:
                counts = self._counts("all_gather", x, rows, None)
                out = torch.empty((sum(counts), *x.shape[1:]), dtype=x.dtype, device=x.device)
            except LongcatError as error:
                self._refuse("all_gather", error)
        torch.ops.longcat_ops.comm_all_gather(self._handle, x, out, *self._split("all_gather", rows))
        return out

    def broadcast_(self, x: Tensor, src: int) -> Tensor:
        """x of rank `src`, written to x on every rank."""
        self._need("broadcast_", x=x)
        try:
            checks.source("broadcast_", src, self._limits)
        except LongcatError as error:
            self._refuse("broadcast_", error)
        torch.ops.longcat_ops.comm_broadcast_(self._handle, x, src)
        return x

    def all_reduce_residual_rmsnorm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Any = None,
        residual_out: Tensor | None = None, quant: str | None = None,
    ) -> tuple[Any, Tensor]:  # fmt: skip
        """RMSNorm of the sum of every rank's x, plus residual.

        The bits are those of `all_reduce(x)` in x's dtype and then `rms_norm(sum + residual, weight, eps)`, or
        `rms_norm_quant_fp8(sum, weight, eps, residual)`.

        Args:
            x, residual: [T, H] of one dtype, bfloat16, float16 or float32. weight: float32 [H]. eps: 0 or small.
            out: None, or where to write: a tensor [T, H] that may be x; with quant a pair (q, s).
            residual_out: None, or a tensor [T, H]; may be residual.
            quant: None or "fp8_1x128"; then H is a multiple of 8.

        Returns:
            (out, residual_out), or ((q, s), residual_out): q float8_e4m3fn [T, H], s float32 [T, ceil(H / 128)];
            residual_out = sum + residual in x's dtype.
        """
        op = "all_reduce_residual_rmsnorm"
        self._need(op, x=x, residual=residual, weight=weight, residual_out=residual_out)
        if quant not in checks.QUANTS or x.dim() != 2 or not isinstance(eps, int | float):
            try:
                checks.norm(op, x, residual, weight, eps, quant, self._limits)
            except LongcatError as error:
                self._refuse(op, error)
        residual_out = torch.empty_like(x) if residual_out is None else residual_out
        if quant is None:
            self._need(op, out=out)
            out = torch.empty_like(x) if out is None else out
            torch.ops.longcat_ops.comm_all_reduce_residual_rmsnorm(
                self._handle, x, residual, weight, eps, out, residual_out
            )
            return out, residual_out
        if out is None:
            q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
            out = q, torch.empty(calls.scales_shape(x), dtype=torch.float32, device=x.device)
        elif not isinstance(out, tuple) or len(out) != 2:
            self._refuse(op, checks.refuse(op, "out", type(out).__name__, "a pair of tensors (q, s)"))
        q, s = out
        self._need(op, q=q, s=s)
        torch.ops.longcat_ops.comm_all_reduce_residual_rmsnorm_quant(
            self._handle, x, residual, weight, eps, q, s, residual_out
        )
        return (q, s), residual_out

    def barrier(self) -> None:
        """Returns after every rank has called it."""
        torch.ops.longcat_ops.comm_barrier(self._handle, self._token)

    def empty(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that calls of this communicator need not copy, where `caps.symmetric`; its values are not set. The
        same calls in the same order on every rank; each rank passes the tensor, or none does."""
        self._session.watch.require_open("empty")
        if is_capturing():
            raise captured("empty", "a replay would find the memory in use")
        return self._rung.empty(checks.shape("empty", shape, dtype, self._limits), dtype)

    def _need(self, op: str, **named: Any) -> None:
        """Refuses what is no tensor; outputs may be None."""
        for name, value in named.items():
            if not isinstance(value, Tensor) and (value is not None or name not in ("out", "residual_out")):
                self._refuse(op, checks.refuse(op, name, type(value).__name__, "a torch.Tensor"))
            if value is not None and value.device.type == "meta":  # its kernel is the fake, which meets nobody
                self._refuse(op, checks.refuse(op, name, "on meta", f"on {' or '.join(self.caps.devices)}"))

    def _counts(self, op: str, x: Tensor, rows: Any, first: int | None) -> list[int]:
        if x.dim() == 0:
            raise checks.refuse(op, "x", "of shape []", "at least 1-dimensional")
        counts = checks.rows(op, rows, self._limits, first).counts
        if counts is None and rows is not None:
            raise checks.refuse(op, "out", None, "a tensor: rows are a tensor, which only the device reads")
        return [x.shape[0]] * self.ranks if counts is None else counts

    def _split(self, op: str, rows: Any) -> tuple[list[int] | None, Tensor | None]:
        """`rows` as the schema takes them."""
        if rows is None or isinstance(rows, Tensor):
            return None, rows
        try:
            return checks.rows(op, rows, self._limits, None).counts, None
        except LongcatError as error:
            self._refuse(op, error)
