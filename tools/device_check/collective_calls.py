"""Calls of the collectives with what each rank must have afterwards, worked out on the host.

Sums are in float32, in the order of ranks, and rounded once: the kernels without multicast must have these bits.
Outputs hold FILLER at first. What a call must leave alone is compared, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import longcat_ops
from longcat_ops.comm import kernels
from longcat_ops.comm.providers.base import CONTROL_BYTES
from longcat_ops.comm.rungs.device_memory import THREADS

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPS = 1e-5
FILLER = 0xA5
PAYLOAD = CONTROL_BYTES


@dataclass(frozen=True)
class Sizes:
    """grid: blocks and threads of a launch. payload: bytes for the largest tensor; line: of the largest message in
    lines."""

    grid: tuple[int, int]
    payload: int
    line: int

    @property
    def lines(self) -> int:
        """Where lines lie in the symmetric memory."""
        return PAYLOAD + self.payload

    def region(self, ranks: int) -> int:
        """Bytes of a rank's symmetric memory."""
        return self.lines + 4 * ranks * self.line


def sizes(real: bool) -> Sizes:
    """8 ranks have 32 blocks: fewer than the multiprocessors, so all of them run at the same time."""
    return Sizes((4, THREADS), 2 << 20, 16 << 10) if real else Sizes((2, 64), 64 << 10, 1 << 10)


@dataclass(frozen=True)
class Call:
    """One collective of all ranks.

    args: the struct of longcat_ops.comm.kernels. given: its values that are the same on all ranks. inputs, outputs: of
    each rank by the name in the struct, on the host; outputs as they must be afterwards. held, left: what lies in the
    symmetric memory of each rank at given["payload"], before and afterwards; empty where that does not matter.
    """

    name: str
    args: type
    given: dict[str, Any]
    inputs: list[dict[str, Tensor]]
    outputs: list[dict[str, Tensor]]
    held: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)


def hollow(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """All FILLER."""
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).fill_(FILLER)
    return tensor


def padded(tensor: Tensor, rows: int) -> Tensor:
    """`tensor`, and FILLER in `rows` more rows."""
    return torch.cat([tensor, hollow((rows, *tensor.shape[1:]), tensor.dtype)])


def difference(got: Tensor, expected: Tensor) -> str:
    """Empty if the bits are the same. Shapes and dtypes are."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.element_size()]
    wrong = (got.contiguous().view(kind) != expected.contiguous().view(kind)).flatten()
    count = int(wrong.sum())
    return f"{count} of {wrong.numel()} values differ, the first at {int(wrong.nonzero()[0])}" if count else ""


def normal(ranks: int, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g).to(dtype) for _ in range(ranks)]


def addends(ranks: int, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """The first and the last cancel out and are large, so that in another order the sum has other bits in any dtype."""
    tensors = normal(ranks, shape, dtype, seed)
    if ranks > 2:
        tensors[0] = (4096 * tensors[0].float()).to(dtype)
        tensors[-1] = -tensors[0]
    return tensors


def in_order(tensors: Sequence[Tensor]) -> Tensor:
    """The sum in float32, in the order of ranks, rounded once."""
    total = tensors[0].float()
    for tensor in tensors[1:]:
        total = total + tensor.float()
    return total.to(tensors[0].dtype)


def all_reduce(ranks: int, count: int, dtype: torch.dtype, *, staged: bool, seed: int, offset: int = 0) -> Call:
    """In place: `offset` elements behind the beginning of the payload."""
    tensors = addends(ranks, (count,), dtype, seed)
    total = in_order(tensors)
    given = dict(payload=PAYLOAD + offset * dtype.itemsize, elements=count, dtype=kernels.DTYPES[dtype])
    name = f"all_reduce of {count} x {dtype}{'' if staged else ', in place'}"
    if not staged:
        return Call(name, kernels.AllReduceArgs, given, [{}] * ranks, [{}] * ranks, tensors, [total] * ranks)
    return Call(name, kernels.AllReduceArgs, given, [{"input": t} for t in tensors], [{"out": total}] * ranks)


def lines(ranks: int, count: int, dtype: torch.dtype, size: Sizes, *, seed: int) -> Call:
    tensors = addends(ranks, (count,), dtype, seed)
    given = dict(lines=size.lines, max_bytes=size.line, elements=count, dtype=kernels.DTYPES[dtype])
    name = f"all_reduce_low_latency of {count} x {dtype}"
    return Call(name, kernels.LowLatencyArgs, given, [{"input": t} for t in tensors],
                [{"out": in_order(tensors)}] * ranks)  # fmt: skip


def _rows(rows: Sequence[int], on_device: bool, spare: int) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """The values that say how many rows each rank has. On the device, `spare` more would fit."""
    if not on_device:
        return dict(rows=list(rows), max_rows=sum(rows)), [{} for _ in rows]
    counts = torch.tensor(rows, dtype=torch.int32)
    return dict(max_rows=sum(rows) + spare, max_own_rows=sum(rows) + spare), [{"device_rows": counts} for _ in rows]


def reduce_scatter(rows: Sequence[int], width: int, dtype: torch.dtype, *, staged: bool, on_device: bool, seed: int,
                   spare: int = 3) -> Call:  # fmt: skip
    """Of len(rows) ranks, [sum(rows), width] each. With counts on the device, input and output have room for `spare`
    more rows."""
    ranks, more = len(rows), spare if on_device else 0
    given, inputs = _rows(rows, on_device, spare)
    given |= dict(payload=PAYLOAD, width=width, dtype=kernels.DTYPES[dtype])
    tensors = addends(ranks, (sum(rows), width), dtype, seed)
    parts = in_order(tensors).split(list(rows))
    outputs = [{"out": padded(part, sum(rows) + more - len(part) if on_device else 0)} for part in parts]
    wide = [padded(tensor, more) for tensor in tensors]
    name = f"reduce_scatter of rows {list(rows)} x {width} x {dtype}, {_how(staged, on_device)}"
    if not staged:
        return Call(name, kernels.ReduceScatterArgs, given, inputs, outputs, wide)
    inputs = [given_to | {"input": tensor} for given_to, tensor in zip(inputs, wide, strict=True)]
    return Call(name, kernels.ReduceScatterArgs, given, inputs, outputs)


def all_gather(rows: Sequence[int], width: int, dtype: torch.dtype, *, staged: bool, on_device: bool, seed: int,
               spare: int = 3) -> Call:  # fmt: skip
    """rows[r] rows of rank r. A broadcast: only the source has rows."""
    ranks, more = len(rows), spare if on_device else 0
    given, inputs = _rows(rows, on_device, spare)
    given |= dict(payload=PAYLOAD, row_bytes=width * dtype.itemsize)
    (whole,) = normal(1, (sum(rows), width), dtype, seed)
    parts, result = whole.split(list(rows)), padded(whole, more)
    name = f"all_gather of rows {list(rows)} x {width} x {dtype}, {_how(staged, on_device)}"
    if staged:
        own = [padded(part, len(result) - len(part) if on_device else 0) for part in parts]
        inputs = [given_to | {"input": tensor} for given_to, tensor in zip(inputs, own, strict=True)]
        return Call(name, kernels.AllGatherArgs, given, inputs, [{"out": result}] * ranks)
    held = [hollow(result.shape, dtype) for _ in range(ranks)]
    for rank, part in enumerate(parts):
        held[rank][sum(rows[:rank]) :][: len(part)] = part
    return Call(name, kernels.AllGatherArgs, given, inputs, [{}] * ranks, held, [result] * ranks)


def _how(staged: bool, on_device: bool) -> str:
    return f"{'staged' if staged else 'in place'}, counts on the {'device' if on_device else 'host'}"


def residual_norm(ranks: int, rows: int, width: int, dtype: torch.dtype, size: Sizes, *, seed: int, by_lines: bool,
                  staged: bool = True, codes: bool = True) -> Call:  # fmt: skip
    """The bits of rms_norm_quant_fp8 of the sum and the residual. Scales by rows or by columns."""
    tensors = addends(ranks, (rows, width), dtype, seed)
    (residual,) = normal(1, (rows, width), dtype, seed + 1)
    (weight,) = normal(1, (width,), torch.float32, seed + 2)
    q, s, y, h = longcat_ops.rms_norm_quant_fp8(in_order(tensors), weight, EPS, residual)
    by_columns = seed % 2 == 1
    given: dict[str, Any] = dict(payload=size.lines if by_lines else PAYLOAD, lines=int(by_lines), max_bytes=size.line,
                                 rows=rows, width=width, eps=EPS, dtype=kernels.DTYPES[dtype])  # fmt: skip
    expected = {"residual_out": h, "y": y}
    if codes:
        expected |= {"q": q, "s": s.t().contiguous() if by_columns else s}
        given |= dict(zip(("s_row_stride", "s_column_stride"), (1, rows) if by_columns else s.stride(), strict=True))
    inputs = [{"residual": residual, "weight": weight} for _ in range(ranks)]
    form = "lines" if by_lines else "staged" if staged else "in place"
    name = f"all_reduce_residual_rms_norm of {rows} x {width} x {dtype}, {form}{', codes' * codes}"
    if not staged:
        return Call(name, kernels.NormArgs, given, inputs, [expected] * ranks, tensors, [h] * ranks)
    inputs = [given_to | {"input": tensor} for given_to, tensor in zip(inputs, tensors, strict=True)]
    return Call(name, kernels.NormArgs, given, inputs, [expected] * ranks)
