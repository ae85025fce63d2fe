"""Where a model's weights come from: blocks ask a Source for tensors by published name while they are built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LongcatCheckpointError, LongcatShapeError, message
from ..ops import supports
from ..ops.quant import dequant_fp8, per_block_quant_fp8
from ..types import BLOCK, ROW_GROUP, Fp8Pair
from .device import usable_device
from .precision import Precision
from .shares import ALONE, WHOLE, Part, Shares

SCALE_SUFFIX = "_scale_inv"
_ROWS = torch.contiguous_format
DTYPES = (torch.bfloat16, torch.float32, torch.float64)  # of a network


def scale_shape(rows: int, cols: int) -> tuple[int, int]:
    """Shape of the fp32 scales of a [rows, cols] FP8 weight, one per 128x128 block, ragged blocks included."""
    return (-(-rows // BLOCK), -(-cols // BLOCK))


@lru_cache(maxsize=256)
def fp8_problem(rows: int, cols: int, dtype: torch.dtype) -> str:
    """Why no op takes x [T,cols] of `dtype` times an FP8 weight [rows,cols]; "" if they do."""

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = meta(1, cols, dtype=torch.float8_e4m3fn), meta(1, -(-cols // BLOCK))
    weight = meta(rows, cols, dtype=torch.float8_e4m3fn), meta(*scale_shape(rows, cols))
    for op, *arguments in (("per_token_group_quant_fp8", meta(1, cols, dtype=dtype)), ("fp8_gemm_nt", x, weight)):
        legal, reason, _ = supports(op, *arguments)
        if not legal:
            return reason
    return ""


class Source:
    """Hands out weights in the precision asked for; subclasses say where a stored tensor lies: `fetch`, `has`."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu",
                 precision: Precision | str | Path | None = None,
                 experts: Sequence[int] | None = None, tp: Shares = ALONE) -> None:  # fmt: skip
        if dtype not in DTYPES:
            fix = "dtype=torch.bfloat16: dense products refuse float16, which no LongCat holds"
            raise LongcatShapeError(
                message(
                    "from_pretrained",
                    "dtype",
                    dtype,
                    "bfloat16, float32 or float64",
                    fix=fix * (dtype == torch.float16),
                )
            )
        self.dtype = dtype
        self.device = usable_device(device)
        self.precision = precision if isinstance(precision, Precision) else Precision(precision)
        self.expert_range = experts  # the FFN experts of this expert-parallel rank; None: all
        self.tp = tp  # what this rank holds of the dense weights

    def has(self, name: str) -> bool:
        raise NotImplementedError(f"{type(self).__name__} must say which tensors it has")

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The stored tensor, of exactly this shape."""
        raise NotImplementedError(f"{type(self).__name__} must say where tensors lie")

    def fetch_part(self, name: str, shape: tuple[int, int], rows: slice, cols: slice) -> Tensor:
        """Those rows and columns of the stored tensor."""
        return self.fetch(name, shape)[rows, cols]

    def dense(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None,
              part: Part = WHOLE) -> Tensor:  # fmt: skip
        """A tensor that is never quantised: norm, router, embedding, head. Always a tensor of its own."""
        stored = self.fetch(name, shape) if part is WHOLE else self.fetch_part(name, shape, *part.of(*shape))
        return stored.to(device=self.device, dtype=dtype or self.dtype, copy=True)

    def linear(self, name: str, rows: int, cols: int, *, dense: bool = False,
               part: Part = WHOLE) -> Tensor | Fp8Pair:  # fmt: skip
        """A projection [rows, cols], or part of it: FP8 when stored with scales, unless `precision` (or `dense`) says
        otherwise. A part that is FP8 begins with the block that its first row and column are in.
        """
        held, scaled = part.of(rows, cols), self.has(name + SCALE_SUFFIX)
        read = list(held)
        if scaled or (not dense and self.precision.is_fp8(name, False)):
            # Whole blocks: from their begin, and to their end where scales are computed here.
            read = [_blocks(s, size, not scaled) for s, size in zip(held, (rows, cols), strict=True)]
        stored = self.fetch_part(name, (rows, cols), *read).to(self.device)
        scale = self._scale(name, stored, (rows, cols), read)
        above, before = (a.start - b.start for a, b in zip(held, read, strict=True))
        height, width = (a.stop - b.start for a, b in zip(held, read, strict=True))
        if dense or not self.precision.is_fp8(name, scale is not None):
            if scale is None:
                return stored[above:height, before:width].to(self.dtype, copy=True, memory_format=_ROWS)
            return dequant_fp8(stored.contiguous(), scale, self.dtype)[above:height, before:width].contiguous()
        self.require_fp8(name, height, width)
        # Copy tensors that a file maps: the file may change or vanish while the model lives.
        if scale is not None:
            return stored.clone(memory_format=_ROWS), scale
        q, s = per_block_quant_fp8(stored.contiguous() if stored.dtype != torch.float64 else stored.float())
        blocks = scale_shape(height, width)
        return q[:height, :width].contiguous(), s[: blocks[0], : blocks[1]].contiguous()

    def require_fp8(self, name: str, rows: int, cols: int) -> None:
        """Raises LongcatShapeError for a projection [rows, cols] that cannot be FP8 in a model of this dtype."""
        problem = fp8_problem(rows, cols, self.dtype)
        if problem:
            got, fix = f"FP8 for {name} {[rows, cols]}", 'precision="bf16" holds every projection in the model\'s dtype'
            raise LongcatShapeError(message("from_pretrained", "precision", got, "what the ops take", problem, fix))

    def check_fp8(self, expected: Mapping[str, Expected], stored_fp8: Callable[[str], bool]) -> None:
        """`require_fp8` for all that would be held as FP8, before anything is read."""
        for name, want in expected.items():
            if want.can_be_fp8 and self.precision.is_fp8(name, stored_fp8(name)):
                self.require_fp8(name, *(want.fp8_part or want.shape))

    def experts(self, name: str, count: int, width: int, hidden: int) -> tuple[Tensor | Fp8Pair, Tensor | Fp8Pair]:
        """(gate_up [G,2*width,hidden], down [G,hidden,width]) of this rank's experts, stacked as they are read, gate_up
        in the order of `interleave_gate_up`. FP8: each with its scales.
        """
        mine = self.expert_range or range(count)
        gate_up, down = _Stack(len(mine), 2), _Stack(len(mine), 1)
        for g, e in enumerate(mine):
            for half, part in enumerate(("gate_proj", "up_proj")):
                gate_up.put(g, half, self.linear(f"{name}.{e}.{part}.weight", width, hidden))
            down.put(g, 0, self.linear(f"{name}.{e}.down_proj.weight", hidden, width))
        return gate_up.stacked(f"{name}.gate_up"), down.stacked(f"{name}.down")

    def _scale(self, name: str, stored: Tensor, shape: tuple[int, int], read: Sequence[slice]) -> Tensor | None:
        """FP8 is decided by the tensor itself: e4m3 with a `_scale_inv` beside it. read: its rows and columns, from the
        begin of a block on.
        """
        if stored.dtype != torch.float8_e4m3fn:
            return None
        if not self.has(name + SCALE_SUFFIX):
            raise LongcatCheckpointError(f"tensor {name} is float8_e4m3fn but {name}{SCALE_SUFFIX} is missing.")
        part = [slice(s.start // BLOCK, -(-s.stop // BLOCK)) for s in read]
        scale = self.fetch_part(name + SCALE_SUFFIX, scale_shape(*shape), *part)
        return scale.to(self.device, torch.float32, copy=True, memory_format=_ROWS)


def _blocks(part: slice, size: int, to_end: bool) -> slice:
    """`part`, from the begin of the FP8 block that its first element is in; to_end: to the end of its last block."""
    stop = min(size, -(-part.stop // BLOCK) * BLOCK) if to_end else part.stop
    return slice(part.start // BLOCK * BLOCK, stop)


class _Stack:
    """[G, halves*rows, cols], allocated at the first part and filled in place, so that experts are held once.

    Rows of two halves are interleaved as `interleave_gate_up` does: values by 8, scales by 1.
    """

    def __init__(self, count: int, halves: int) -> None:
        self.count, self.halves = count, halves
        self.parts: list[Tensor] = []

    def put(self, g: int, half: int, weight: Tensor | Fp8Pair) -> None:
        pair = weight if isinstance(weight, tuple) else (weight,)
        if not self.parts:
            self.parts = [self._empty(t, unit) for t, unit in zip(pair, (ROW_GROUP, 1), strict=False)]
        if len(pair) != len(self.parts):
            raise LongcatCheckpointError(
                "the experts of one layer are partly FP8: all of them or none must carry scales."
            )
        for whole, part in zip(self.parts, pair, strict=True):
            whole[g, :, half].copy_(part.reshape(whole.shape[1], *whole.shape[3:]))

    def _empty(self, part: Tensor, unit: int) -> Tensor:
        rows, cols = part.shape
        unit = unit if self.halves > 1 else rows
        return part.new_empty((self.count, rows // unit, self.halves, unit, cols))

    def stacked(self, name: str) -> Tensor | Fp8Pair:
        if not self.parts:
            raise LongcatCheckpointError(f"{name}: no expert falls to this rank.")
        flat = [t.flatten(1, 3) for t in self.parts]
        return (flat[0], flat[1]) if len(flat) == 2 else flat[0]


class StateDictSource(Source):
    """Weights from a mapping of published names to tensors (which stay untouched)."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: object) -> None:
        super().__init__(dtype, **options)
        self.tensors = tensors

    def has(self, name: str) -> bool:
        return name in self.tensors

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.tensors:
            raise LongcatCheckpointError(f"tensor {name} is missing, expected one of shape {list(shape)}.")
        tensor = self.tensors[name]
        if tuple(tensor.shape) != shape:
            raise LongcatCheckpointError(f"tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}.")
        return tensor


class RandomSource(Source):
    """Reproducible random weights: for benches and shape tests, where the values do not matter."""

    def __init__(self, dtype: torch.dtype, *, seed: int = 0, std: float = 0.05, **options: object) -> None:
        super().__init__(dtype, **options)
        self.generator, self.std = torch.Generator().manual_seed(seed), std

    def has(self, name: str) -> bool:
        return not name.endswith(SCALE_SUFFIX)

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight") or ".m.weight" in name:
            return torch.ones(shape)
        return torch.empty(shape).normal_(0, self.std, generator=self.generator)


@dataclass(frozen=True)
class Expected:
    """One tensor a network of a given configuration needs: its shape, whether it may be stored as FP8, whether it is
    held dense all the same, which share of it this rank holds, and the shape of that as FP8, where it is no whole.
    """

    shape: tuple[int, ...]
    quantisable: bool
    dense: bool = False
    share: float = 1.0
    fp8_part: tuple[int, ...] = ()

    @property
    def can_be_fp8(self) -> bool:
        return self.quantisable and not self.dense


class Recorder(Source):
    """Collects the tensors that a model asks for, without loading any: the one list of expected tensors."""

    def __init__(self, has: Callable[[str], bool] = lambda name: False, **options: object) -> None:
        super().__init__(torch.bfloat16, "meta", **options)
        self._has = has
        self.expected: dict[str, Expected] = {}

    def has(self, name: str) -> bool:
        return self._has(name)

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.record(name, Expected(shape, quantisable=False))

    def fetch_part(self, name: str, shape: tuple[int, int], rows: slice, cols: slice) -> Tensor:
        return self.record(name, Expected(shape, quantisable=False), rows, cols)

    def linear(self, name: str, rows: int, cols: int, *, dense: bool = False, part: Part = WHOLE) -> Tensor:
        held = part.of(rows, cols)
        as_fp8 = tuple(s.stop - s.start // BLOCK * BLOCK for s in held)
        return self.record(name, Expected((rows, cols), quantisable=True, dense=dense, fp8_part=as_fp8), *held)

    def record(self, name: str, want: Expected, *part: slice) -> Tensor:
        """One tensor, of which this rank holds these rows and columns, or all of it. Returns that, without values."""
        held = torch.empty(want.shape, dtype=torch.bfloat16, device="meta")[part]
        self.expected[name] = replace(want, share=held.numel() / max(1, math.prod(want.shape)))
        return held

    def experts(self, name: str, count: int, width: int, hidden: int) -> tuple[Tensor, Tensor]:
        """Records names without a stack: a wrong config may ask for a million experts, and this must stay fast."""
        into, out = Expected((width, hidden), quantisable=True), Expected((hidden, width), quantisable=True)
        mine = self.expert_range or range(count)
        for e in mine:
            for part, want in (("gate_proj", into), ("up_proj", into), ("down_proj", out)):
                self.expected[f"{name}.{e}.{part}.weight"] = want
        empty = torch.empty((), dtype=torch.bfloat16, device="meta")
        return empty.expand(len(mine), 2 * width, hidden), empty.expand(len(mine), hidden, width)


@contextmanager
def released(source: Source) -> Iterator[Source]:
    """Close what the source opened, whatever happens while the model is built."""
    try:
        yield source
    finally:
        close = getattr(source, "close", None)
        if close:
            close()
