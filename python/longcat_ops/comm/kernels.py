"""The C functions of the collectives (cuda/include/longcat_ops.h) and their argument structs, by ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from ..errors import LongcatError

MAX_RANKS, MAX_CHANNELS, MAX_BLOCKS = 8, 4, 32  # LC_COMM_*
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # lc_dtype, of what is summed
STATUS = {1: "timeout", 2: "a peer aborted", 3: "aborted by the host", 4: "bad row counts"}  # lc_comm_status
STAGES = {1: "entry", 2: "exit", 3: "lines", 4: "rows", 5: "counts", 6: "dispatch", 7: "combine"}  # lc_comm_stage
EXPERT_STAGES = ("counts", "dispatch", "combine")  # of calls of expert parallelism, which have epochs of their own

_i32, _i64, _u32, _u64, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class Record(ctypes.Structure):
    """lc_comm_record: why a rank's collectives gave up, in host memory that its GPU reaches."""

    _fields_ = [
        (name, _u32)
        for name in ("status", "op", "channel", "block", "stage", "expected", "seen", "missing", "host_abort")
    ]

    @property
    def missing_ranks(self) -> list[int]:
        return [rank for rank in range(MAX_RANKS) if self.missing >> rank & 1]


class Comm(ctypes.Structure):
    """lc_comm: one channel of a communicator, as a launch sees it."""

    _fields_ = [
        ("memory", _pointer * MAX_RANKS),
        ("multicast", _pointer),
        ("record", _pointer),
        ("timeout_ns", _u64),
        *((name, _i32) for name in ("rank", "ranks", "channel", "op", "blocks", "threads", "fixed_order", "load_only")),
    ]


class Args(ctypes.Structure):
    """An argument struct; struct_size fills itself in. Pointers are integers, 0 for none."""

    function: str

    def __init__(self, **values: Any) -> None:
        counts = values.pop("rows", ()) if isinstance(values.get("rows"), list) else ()
        super().__init__(struct_size=ctypes.sizeof(self), **values)
        for rank, count in enumerate(counts):
            self.rows[rank] = count


_HEAD = [("struct_size", ctypes.c_size_t), ("comm", Comm), ("input", _pointer), ("out", _pointer)]
_ROWS = [("max_rows", _i64), ("max_own_rows", _i64), ("device_rows", _pointer), ("rows", _i32 * MAX_RANKS)]


class AbortArgs(Args):
    function = "lc_comm_abort"
    _fields_ = [("struct_size", ctypes.c_size_t), ("comm", Comm)]


class AllReduceArgs(Args):
    function = "lc_all_reduce"
    _fields_ = [*_HEAD, ("payload", _u64), ("elements", _i64), ("dtype", _i32)]


class LowLatencyArgs(Args):
    function = "lc_all_reduce_low_latency"
    _fields_ = [*_HEAD, ("lines", _u64), ("max_bytes", _i64), ("elements", _i64), ("dtype", _i32)]


class ReduceScatterArgs(Args):
    function = "lc_reduce_scatter"
    _fields_ = [*_HEAD, ("payload", _u64), ("width", _i64), *_ROWS, ("dtype", _i32)]


class AllGatherArgs(Args):
    function = "lc_all_gather"
    _fields_ = [*_HEAD, ("payload", _u64), ("row_bytes", _i64), *_ROWS]


class NormArgs(Args):
    function = "lc_all_reduce_residual_rms_norm"
    _fields_ = [
        *_HEAD[:3],
        ("residual", _pointer),
        ("weight", _pointer),
        ("eps", ctypes.c_double),
        *((name, _pointer) for name in ("residual_out", "y", "q", "s")),
        ("s_row_stride", _i64),
        ("s_column_stride", _i64),
        ("payload", _u64),
        *((name, _i64) for name in ("max_bytes", "rows", "width")),
        ("dtype", _i32),
        ("lines", _i32),
    ]


def call(library: ctypes.CDLL, args: Args, stream: int = 0) -> None:
    """Launches on a CUDA stream, given by its handle. Raises LongcatError with the library's text."""
    if getattr(library, args.function)(ctypes.byref(args), ctypes.c_void_p(stream)) != 0:
        library.lc_last_error.restype = ctypes.c_char_p
        raise LongcatError(library.lc_last_error().decode())
