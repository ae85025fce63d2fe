"""What a communicator refuses, before anything is sent or written.

Each check comes in two parts. The first looks at what is the same on every rank of a right program: types, dtypes,
shapes, rows, source. All ranks refuse such a call together. What only one rank can know comes after it and raises with
`rank_local` set: its own rows, its output, its memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._environment import LONGEST_S
from ..errors import LongcatError, LongcatShapeError, message
from ..ops import tensors
from ..ops.checking import supports
from .sizes import PROVIDERS

SUMMED = (torch.bfloat16, torch.float16, torch.float32)
QUANTS = (None, "fp8_1x128")
Fn = TypeVar("Fn", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """What the checks know of a communicator."""

    rank: int
    ranks: int
    devices: tuple[str, ...]
    max_bytes: int


@dataclass(frozen=True)
class Rows:
    """Rows of each rank. counts: None while only a device knows them. capacity: tensors may have more rows than are
    used, as they must where a graph is replayed with other counts."""

    counts: list[int] | None
    tensor: Tensor | None = None
    capacity: bool = False

    def value(self) -> Any:
        """As a rung takes them."""
        return self.tensor if self.counts is None else self.counts

    def read(self) -> Rows:
        """The same with the counts of a tensor read by the host."""
        return self if self.tensor is None else replace(self, counts=self.tensor.tolist(), capacity=True)


def rank_local(check: Fn) -> Fn:
    """Marks what `check` raises as known to this rank alone."""

    @functools.wraps(check)
    def marked(*args: Any, **kwargs: Any) -> Any:
        try:
            return check(*args, **kwargs)
        except LongcatError as error:
            error.rank_local = True
            raise

    return marked


def refuse(op: str, name: str, got: object, expected: object, context: str | None = None) -> LongcatShapeError:
    return LongcatShapeError(message(op, name, got, expected, context))


def tensor(op: str, name: str, x: Any, limits: Limits, dtypes: Sequence[torch.dtype] = (), dims: int = 0) -> None:
    """A dense, contiguous tensor without gradient, of one of `dtypes` and with at least `dims` dimensions."""
    if problem := tensors.layout_problem(op, name, x) or tensors.gradient_problem(op, name, x):
        raise problem
    if x.device.type not in limits.devices:
        raise refuse(op, name, f"on {x.device}", f"on {' or '.join(limits.devices)}")
    if dtypes and x.dtype not in dtypes:
        raise refuse(op, name, x.dtype, " or ".join(map(str, dtypes)))
    if x.dim() < dims:
        raise refuse(op, name, f"of shape {list(x.shape)}", f"at least {dims}-dimensional")
    if not x.is_contiguous():
        raise refuse(op, name, f"of strides {list(x.stride())}", "contiguous", f"{name}: {describe(x)}")


def size(op: str, name: str, num_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.max_bytes:
        raise refuse(op, name, f"{num_bytes} bytes", f"at most {limits.max_bytes}, the communicator's max_bytes")


@rank_local
def output(op: str, name: str, out: Any, like: Tensor, shape: Sequence[int], limits: Limits) -> None:
    """`out` has `shape`, and dtype and device of `like`."""
    tensor(op, name, out, limits, (like.dtype,))
    if list(out.shape) != list(shape):
        raise refuse(op, name, f"of shape {list(out.shape)}", list(shape))
    if out.device != like.device:
        raise refuse(op, name, f"on {out.device}", f"on {like.device}, as the input")


@rank_local
def apart(op: str, name: str, out: Tensor, others: dict[str, Tensor]) -> None:
    """`out` shares no memory with the others, except with one that is the same memory, from its start to its end."""
    for other, x in others.items():
        if overlap(out, x) and (out.data_ptr(), out.nbytes) != (x.data_ptr(), x.nbytes):
            raise refuse(op, name, f"memory that overlaps `{other}`", f"apart from `{other}`, or the same memory")


def overlap(a: Tensor, b: Tensor) -> bool:
    first, second = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in (a, b))
    return bool(a.nbytes and b.nbytes) and second[0] < first[1]


def describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def rows(op: str, rows: Any, limits: Limits, first: int | None) -> Rows:
    """The rows of each rank. first: how many rows there are together, where the caller knows; None divides nothing."""
    ranks = limits.ranks
    if rows is None:
        if first is None:
            return Rows(None)
        if first % ranks:
            fix = f"pass rows=, one count for each rank; {first} % {ranks} is {first % ranks}"
            raise LongcatShapeError(message(op, "x", f"{first} rows", f"a multiple of {ranks} ranks", fix=fix))
        return Rows([first // ranks] * ranks)
    if isinstance(rows, Tensor):
        if rows.dtype != torch.int32 or list(rows.shape) != [ranks] or not rows.is_contiguous():
            raise refuse(op, "rows", describe(rows), f"int32 [{ranks}], contiguous")
        if rows.device.type not in limits.devices:
            raise refuse(op, "rows", f"on {rows.device}", f"on {' or '.join(limits.devices)}")
        return Rows(None, rows, True)
    if not isinstance(rows, Sequence) or any(isinstance(n, bool) or not isinstance(n, int) for n in rows):
        raise refuse(op, "rows", f"{rows!r}", "a list of ints, or an int32 tensor")
    if len(rows) != ranks:
        raise refuse(op, "rows", f"{list(rows)}, {len(rows)} counts", f"{ranks}, one for each rank")
    if min(rows) < 0:
        raise refuse(op, "rows", list(rows), "counts of 0 or more")
    return Rows(list(rows))


def counted(op: str, found: Rows, have: int, name: str) -> None:
    """The counts are legal and their sum fits `have` rows of the tensor `name`."""
    counts = found.counts or []
    if min(counts) < 0:
        raise refuse(op, "rows", counts, "counts of 0 or more")
    total = sum(counts)
    if total > have or (total < have and not found.capacity):
        expected = f"at least {total}" if found.capacity else f"{total}"
        raise refuse(op, name, f"{have} rows", f"{expected}, the sum of rows {counts}")


@rank_local
def own_rows(op: str, name: str, x: Tensor, found: Rows, limits: Limits) -> None:
    """`x` has this rank's rows."""
    if found.counts is None:
        return
    want = found.counts[limits.rank]
    if len(x) < want or (len(x) > want and not found.capacity):
        expected = f"at least {want}" if found.capacity else f"{want}"
        raise refuse(op, name, f"{len(x)} rows", f"{expected}, rows[{limits.rank}] of {found.counts}")


def source(op: str, src: Any, limits: Limits) -> None:
    if isinstance(src, bool) or not isinstance(src, int) or not 0 <= src < limits.ranks:
        raise refuse(op, "src", f"{src!r}", f"a rank, 0 .. {limits.ranks - 1}")


def norm(op: str, x: Tensor, residual: Any, weight: Any, eps: Any, quant: Any, limits: Limits) -> None:
    """Arguments of the fused operation, its outputs apart."""
    if quant not in QUANTS:
        raise refuse(op, "quant", f"{quant!r}", " or ".join(map(repr, QUANTS)))
    tensor(op, "x", x, limits, SUMMED)
    tensor(op, "residual", residual, limits, (x.dtype,))
    if x.dim() != 2 or residual.shape != x.shape:
        context = f"x: {describe(x)}\n  residual: {describe(residual)}"
        raise refuse(op, "x", f"of shape {list(x.shape)}", "[T, H], as `residual`", context)
    if quant is None:
        legal, reason, fix = supports("rms_norm", (x, weight, eps), {})
    else:
        legal, reason, fix = supports("rms_norm_quant_fp8", (x, weight, eps, residual), {})
    if not legal:
        raise LongcatShapeError(f"{op}: {reason}" + (f"\n  fix: {fix}" if fix else ""))


def shape(op: str, shape: Any, dtype: Any, limits: Limits) -> tuple[int, ...]:
    """The shape of a tensor to make."""
    given = (shape,) if isinstance(shape, int) else shape
    if not isinstance(given, Sequence) or any(not isinstance(n, int) or n < 0 for n in given):
        raise refuse(op, "shape", f"{shape!r}", "a tuple of ints of 0 or more")
    if not isinstance(dtype, torch.dtype):
        raise refuse(op, "dtype", f"{dtype!r}", "a torch.dtype")
    size(op, "shape", math.prod(given) * dtype.itemsize, limits)
    return tuple(given)


def constructor(config: Any, names: Sequence[str], op: str = "Communicator") -> None:
    """The arguments of a Communicator, a `Config`, or of what takes more than these."""
    for name, least in (("max_bytes", 1), ("num_blocks", 1), ("num_channels", 1)):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise refuse(op, name, f"{value!r}", f"an int of {least} or more")
    if config.backend not in names:
        raise refuse(op, "backend", f"{config.backend!r}", " or ".join(names))
    if config.provider not in PROVIDERS:
        raise refuse(op, "provider", f"{config.provider!r}", " or ".join(PROVIDERS))
    if not isinstance(config.deterministic, bool):
        raise refuse(op, "deterministic", f"{config.deterministic!r}", "True or False")
    seconds = config.timeout_s
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_S:
        expected = f"seconds, 0 .. {LONGEST_S:.0e}; 0 waits for ever"
        raise refuse(op, "timeout_s", f"{seconds!r}", expected)
