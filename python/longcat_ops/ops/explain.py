"""What a call would do, without running it: is it legal, which backend serves it, what it costs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .. import _library, ops
from ..errors import LongcatUnsupportedError
from ..perf import comm, comm_explain, dispatch, expert_explain, swiglu
from ..perf.devices import DEVICES
from ..perf.model import Band, Counts, floor, predict
from ..perf.products import from_native
from . import checking, registration
from .arguments import schema_arguments
from .registry import OPS

EXPLAINED = ("H100", "H800", "H200")  # their number of SMs is that of the tile counts; perf has more devices


@dataclass(frozen=True)
class Floor:
    """The least time on one device, by the peaks of its data sheet, and what limits it: "memory" or "tensor cores"."""

    device: str
    microseconds: float
    bound: str


@dataclass(frozen=True)
class Prediction:
    """A band of microseconds on one device, by the model of `longcat_ops.perf`; not measured.

    bound: the limit, "memory", "L2", "loads of an SM", "tensor cores", "shared memory" or "instructions", of both ends,
    or of the low and the high one; "" for several launches.
    """

    device: str
    low: float
    high: float
    bound: str

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def __str__(self) -> str:
        return f"{self.device} {Band(self.low, self.high)} us" + (f" ({self.bound})" if self.bound else "")


@dataclass(frozen=True)
class Candidate:
    """A tile that the kernel of the FP8 matrix products has: `rows` of a weight by up to `tokens`, all K.

    paired: two blocks share the tokens of neighbouring weight tiles. stages, smem_bytes, blocks: of the launch. tiles:
    of the call. waves: tiles of its busiest block. Both assume that rows spread evenly over the groups. counts: what
    the launch moves and computes. predictions: see docs/performance_model.md.
    """

    rows: int
    tokens: int
    paired: bool
    stages: int
    smem_bytes: int
    blocks: int
    tiles: int
    waves: int
    chosen: bool
    reason: str
    counts: Counts
    predictions: tuple[Prediction, ...]

    def __str__(self) -> str:
        times = ", ".join(str(p) for p in self.predictions)
        size = f"{self.stages} stages, {self.smem_bytes:,} bytes shared, {self.tiles} tiles in {self.waves} waves"
        tile = f"tile of {self.rows} x {self.tokens} tokens{' in pairs' * self.paired}{' (chosen)' * self.chosen}"
        return f"{tile}: {self.reason}; {size}; {times}"


@dataclass(frozen=True)
class Launch:
    """A kernel that the CUDA backend starts: thread blocks, threads of one, bytes of its dynamic shared memory."""

    kernel: str
    blocks: int
    threads: int
    smem_bytes: int


@dataclass(frozen=True)
class Explanation:
    """One call of one op. `str()` of it is a report.

    arguments: name and descriptor or value, in the order of the schema. backends: for CPU and for CUDA tensors.
    bytes_read, bytes_written: every input and output once. flops: of matrix products, a multiply-add being two.
    assumes: what the counts assume where they depend on data. floors: times that no device can beat. predictions: bands
    for our kernels (with the chosen tile, if there is one), even where the reference would run. candidates: the tiles
    that the kernel of a matrix product chooses from.
    launches: of the CUDA backend, in order; empty where the launcher does not tell. forms: device -> both forms of
    gate_up with SwiGLU, in one kernel and apart; of that op alone, where h is quantised.
    """

    op: str
    arguments: tuple[tuple[str, str], ...]
    backends: dict[str, str]
    bytes_read: int
    bytes_written: int
    flops: float
    assumes: str
    floors: tuple[Floor, ...]
    predictions: tuple[Prediction, ...]
    candidates: tuple[Candidate, ...]
    launches: tuple[Launch, ...]
    forms: dict[str, swiglu.Forms]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.arguments) + 2
        lines = [self.op, *(f"  {name:<{width}}{text}" for name, text in self.arguments)]
        lines += [f"  runs on {device} tensors as: {backend}" for device, backend in self.backends.items()]
        lines += [f"  reads {self.bytes_read:,} bytes, writes {self.bytes_written:,}, {self.flops:.4g} flops"]
        lines += [f"  assuming that {self.assumes}"] if self.assumes else []
        lines += [
            f"  on a GPU: {k.kernel}, {k.blocks} x {k.threads} threads"
            + (f", {k.smem_bytes:,} bytes shared" * (k.smem_bytes > 0))
            for k in self.launches
        ]
        lines += [f"  floor on {f.device}: {f.microseconds:.2f} us, bound by {f.bound}" for f in self.floors]
        lines += [f"  predicted, not measured: {p}" for p in self.predictions]
        lines += [f"  on {device}, predicted: {both}" for device, both in self.forms.items()]
        lines += [f"  {candidate}" for candidate in self.candidates]
        return "\n".join(lines)


class _Capture(TorchDispatchMode):
    """Keeps the arguments of the op's schema, outputs included, instead of running it."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.overload = getattr(torch.ops.longcat_ops, op).default
        self.arguments: tuple[Any, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is self.overload:
            self.arguments = args
            return None
        return func(*args, **(kwargs or {}))


def explain(
    op: str, *args: Any, **kwargs: Any
) -> Explanation | comm_explain.CommExplanation | expert_explain.ExpertExplanation:
    """What `longcat_ops.<op>(*args, **kwargs)` would do. Nothing is run or allocated; tensors may be meta tensors.

    For a collective, as "all_reduce", it returns `perf.comm_explain.explain(op, *args, **kwargs)`, which takes bytes or
    a shape, and ranks. For "expert_parallel" it returns `perf.expert_explain.explain(*args, **kwargs)`, which takes
    (tokens of a rank, hidden), and ranks.

    Raises:
        LongcatUnsupportedError: there is no such op.
        LongcatShapeError: the call would be refused, for the reason given.
    """
    if op in comm.COLLECTIVES:
        return comm_explain.explain(op, *args, **kwargs)
    if op == "expert_parallel":
        return expert_explain.explain(*args, **kwargs)
    if op not in OPS:
        raise LongcatUnsupportedError(f"explain: op {op!r} does not exist; these do: {', '.join(sorted(OPS))}.")
    native = _library.load()
    checking.check(op, *schema_arguments(op, args, kwargs))
    with _Capture(op) as capture:
        getattr(ops, op)(*_to_meta(args), **{key: _to_meta(value) for key, value in kwargs.items()})
    found = native.explain(op, *capture.arguments)
    names = [spec.name for spec in capture.overload._schema.arguments]
    moved, flops = found["bytes_read"] + found["bytes_written"], found["flops"]
    pieces = next((a for a, name in zip(capture.arguments, names, strict=True) if name == "split_k"), 1)
    inputs = [a for a, spec in zip(capture.arguments, capture.overload._schema.arguments, strict=True)
              if isinstance(a, Tensor) and spec.alias_info is None]  # fmt: skip
    bf16 = all(a.dtype != torch.float8_e4m3fn for a in inputs)
    candidates = tuple(_candidate(fields, flops, pieces, bf16) for fields in found["candidates"])
    return Explanation(
        op=op,
        arguments=tuple((name, _text(a)) for name, a in zip(names, capture.arguments, strict=True)),
        backends={
            "CPU": _backend(op, registration.CPU_KERNELS, "C++ kernel"),
            "CUDA": _backend(op, registration.CUDA_KERNELS, "sm_90a kernel"),
        },
        bytes_read=found["bytes_read"],
        bytes_written=found["bytes_written"],
        flops=found["flops"],
        assumes=found["assumes"],
        floors=tuple(Floor(name, *floor(Counts(op, moved, flops, bf16=bf16), DEVICES[name])) for name in EXPLAINED),
        predictions=_predictions(op, moved, flops, len(found["launches"]), len(capture.arguments[0]), candidates, bf16),
        candidates=candidates,
        launches=tuple(Launch(*launch) for launch in found["launches"]),
        forms=_forms(op, dict(zip(names, capture.arguments, strict=True))),
    )


def _forms(op: str, arguments: dict[str, Any]) -> dict[str, swiglu.Forms]:
    if op != "m_grouped_fp8_swiglu_gemm_nt_offset" or arguments["sh"] is None:
        return {}
    if not len(arguments["a"]) or not len(arguments["gate_up"]):
        return {}
    (rows, k), (groups, n, _) = arguments["a"].shape, arguments["gate_up"].shape
    hint = arguments["max_m_hint"]
    return {name: swiglu.forms(groups, rows, n, k, DEVICES[name], max_rows=hint) for name in EXPLAINED}


def _backend(op: str, kernels: Collection[str], kernel: str) -> str:
    if OPS[op].chain and set(OPS[op].chain) <= set(kernels):
        return f"a chain of {kernel}s"
    return kernel if op in kernels else "plain-torch reference"


def _candidate(fields: tuple, flops: float, pieces: int, bf16: bool) -> Candidate:
    tile = from_native(fields, flops, pieces, bf16)
    return Candidate(**vars(tile), predictions=_bands(tile.counts))


def _bands(launches: Counts | list[Counts]) -> tuple[Prediction, ...]:
    bands = {name: predict(launches, DEVICES[name]) for name in EXPLAINED}
    return tuple(Prediction(name, band.low, band.high, band.bound) for name, band in bands.items())


def _predictions(
    op: str, moved: float, flops: float, launches: int, tokens: int, candidates: tuple[Candidate, ...], bf16: bool
) -> tuple[Prediction, ...]:
    if candidates:
        return next(candidate.predictions for candidate in candidates if candidate.chosen)
    parts = launches or len(OPS[op].chain) or 1
    if op == "moe_route":
        return _bands(dispatch.launches_of_route(moved, parts, tokens))
    if op == "moe_plan":
        return _bands(dispatch.launches_of_plan(moved, parts))
    return _bands([Counts(op, moved / parts, flops / parts, bf16=bf16)] * parts)


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, tuple | list):
        parts = [_to_meta(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
