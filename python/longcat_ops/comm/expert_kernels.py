"""The C functions of expert parallelism (cuda/include/longcat_ops.h) and their argument structs, by ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import Args, Comm

MAX_BUFFERS = 4  # LC_EP_MAX_BUFFERS
DISPATCH, COMBINE = 0, 1  # lc_ep_traffic
MAX_EXPERTS, MAX_TOP_K = 1024, 32
COLUMNS = 16  # of a row, a multiple
PAYLOADS = {"fp8": 3, "bf16": 2}  # lc_dtype
EPOCH_BYTE, COUNTER_BYTE, COUNTERS = 0, 64, 4  # of the table: i32 of the last call; i64 counters
ROWS_SENT, ROWS_TO_OTHERS, CHOICES_NOT_SENT, BYTES_TO_OTHERS = range(COUNTERS)

_i32, _i64, _u64, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p


@dataclass(frozen=True)
class Shape:
    """What all ranks agree on. experts: of all ranks, a multiple of them; payload: a key of PAYLOADS."""

    ranks: int
    experts: int
    top_k: int
    max_tokens: int
    hidden: int
    payload: str

    @property
    def local(self) -> int:
        return self.experts // self.ranks

    @property
    def received(self) -> int:
        """Rows that a rank may receive."""
        return self.ranks * self.max_tokens * min(self.top_k, self.local)

    @property
    def returned(self) -> int:
        """Rows that may come back to a rank."""
        return self.max_tokens * min(self.top_k, self.experts)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.hidden // 128) if self.payload == "fp8" else 0

    @property
    def row_bytes(self) -> int:
        """Of a row on its way to an expert."""
        return self.hidden + 4 * self.groups if self.payload == "fp8" else 2 * self.hidden

    def parts(self) -> dict[str, int]:
        """Bytes of the parts of the symmetric memory that all buffers share. Zero before the first call."""
        return {"lines": 2 * self.ranks * (self.experts + 1) * 8, "flags": 2 * MAX_BUFFERS * 128}

    def buffer_parts(self) -> dict[str, int]:
        """Bytes of the parts that each buffer has: [received, H] codes or bf16, [received, groups] f32, [returned, H]
        bf16."""
        rows = self.received * self.hidden * (1 if self.payload == "fp8" else 2)
        return {"rows": rows, "scales": 4 * self.received * self.groups, "returned": 2 * self.returned * self.hidden}

    def table_bytes(self, buffers: int) -> int:
        """Of a rank's own table, zero before the first call."""
        words = 8 + 3 * self.experts + 1
        return 4 * (32 + buffers * -(-words // 32) * 32)


class Matrix(ctypes.Structure):
    """lc_matrix. Strides in elements."""

    _fields_ = [("data", _pointer), ("dtype", _i32), *((name, _i64) for name in ("rows", "columns", "row", "column"))]

    @staticmethod
    def of(tensor: Tensor) -> Matrix:
        """tensor: [rows, columns]."""
        dtype = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 3}[tensor.dtype]
        rows, columns = tensor.shape
        return Matrix(tensor.data_ptr(), dtype, rows, columns, *tensor.stride())


class Experts(ctypes.Structure):
    """lc_experts: a buffer of an exchange, as a launch sees it."""

    _fields_ = [
        ("comm", Comm),
        *((name, _i32) for name in ("buffer", "num_experts", "top_k", "payload")),
        *((name, _i64) for name in ("max_tokens", "hidden")),
        *((name, _u64) for name in ("lines", "flags", "rows", "scales", "returned")),
        ("tables", _pointer),
    ]


_HEAD = [("struct_size", ctypes.c_size_t), ("experts", Experts)]


class CountsArgs(Args):
    function = "lc_ep_counts"
    _fields_ = (*_HEAD, ("plan_offsets", _pointer), ("tokens", _i64), ("offsets", _pointer))


class DispatchArgs(Args):
    function = "lc_ep_dispatch"
    _fields_ = (*_HEAD, ("x", Matrix), ("ids", _pointer), ("row_of", _pointer))


class WaitArgs(Args):
    function = "lc_ep_wait"
    _fields_ = (*_HEAD, ("traffic", _i32))


class CombineArgs(Args):
    function = "lc_ep_combine"
    _fields_ = (*_HEAD, ("y", Matrix))
