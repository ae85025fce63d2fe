"""Which tensors of a checkpoint become FP8 or dense, in which files they then lie, and their conversion in pieces."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LongcatCheckpointError, LongcatShapeError, message
from ..model.precision import Precision
from ..model.source import SCALE_SUFFIX, Expected, fp8_problem, scale_shape
from ..ops.quant import dequant_fp8, per_block_quant_fp8
from ..types import BLOCK
from .checkpoint import Header
from .tensor_file import Layout, NewTensorFile, TensorFile

E4M3 = torch.float8_e4m3fn
PIECE = 4 << 20  # bytes read at once: more would not stay in a cache until they are written
_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.\d+\.(gate|up|down)_proj\.weight")


@dataclass(frozen=True)
class Item:
    """A stored tensor, the scales stored beside it, and the tensors that are made of it, by name. want: what the
    network has under this name; None for what it does not read, such as weights of zero experts. copy_of: the name
    under which it is stored, if that is another one.
    """

    name: str
    want: Expected | None
    stored: Layout
    scales: Layout | None
    made: Mapping[str, Layout]
    copy_of: str | None = None

    def stored_name(self, made: str) -> str:
        """Where a tensor that stays as it is lies in the source."""
        return (self.copy_of or self.name) + made.removeprefix(self.name)

    @property
    def quantised(self) -> bool:
        """Whether it becomes FP8; not where it has been so."""
        return self.stored.dtype != E4M3 and self.made[self.name].dtype == E4M3

    @property
    def widened(self) -> bool:
        """Whether it was FP8 and becomes dense."""
        return self.stored.dtype == E4M3 and self.made[self.name].dtype != E4M3

    @property
    def stored_bytes(self) -> int:
        """With its scales."""
        return self.stored.num_bytes + (self.scales.num_bytes if self.scales else 0)

    @property
    def num_bytes(self) -> int:
        """Of what is made of it."""
        return sum(layout.num_bytes for layout in self.made.values())


def choose(header: Header, expected: Mapping[str, Expected], precision: Precision) -> list[Item]:
    """All tensors of a checkpoint in the order in which they are stored. A projection is FP8 if `precision` says so,
    other tensors stay as they are; dense ones that were FP8 are bf16.

    Raises: LongcatShapeError for a projection that cannot be FP8, and for a policy that splits the experts of a layer.
    """
    items, stacks = [], {}
    for name in _as_they_lie(header):
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in header.shape:
            continue
        shape = header.shape[name]
        stored, want = Layout(header.dtype[name], shape), expected.get(name)
        scaled, scale_name = stored.dtype == E4M3, name + SCALE_SUFFIX
        if scaled and scale_name not in header.shape:
            raise LongcatCheckpointError(f"tensor {name} is float8_e4m3fn but {scale_name} is missing.")
        scales = Layout(header.dtype[scale_name], header.shape[scale_name]) if scaled else None
        fp8 = precision.is_fp8(name, scaled) and (scaled or (want is not None and want.can_be_fp8))
        if fp8 and not scaled:
            _require_fp8(name, shape, stored.dtype)
        kind = E4M3 if fp8 else torch.bfloat16 if scaled else stored.dtype
        made = {name: Layout(kind, shape)}
        if fp8:
            made[scale_name] = scales or Layout(torch.float32, scale_shape(*shape))
        items.append(Item(name, want, stored, scales, made))
        if want is not None and (expert := _EXPERT.fullmatch(name)):
            stacks.setdefault((expert[1], expert[2] == "down"), {})[fp8] = name
    for (experts, down), names in stacks.items():
        if len(names) > 1:
            got = f"FP8 for {names[True]} and not for {names[False]}"
            which = "down_proj" if down else "gate_proj and up_proj"
            one = f"one precision for all {which} of {experts}, which loaders take as one"
            raise LongcatShapeError(message("quantize", "policy", got, one))
    return items


def _as_they_lie(header: Header) -> list[str]:
    """All tensors, file by file, so that reading them goes forward."""
    found = []
    for path in header.files:
        file = TensorFile(path)
        found += file.names
        file.close()
    return found


def _require_fp8(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = fp8_problem(*shape, torch.bfloat16 if dtype == torch.float64 else dtype)
    if problem:
        got = f"FP8 for {name} {list(shape)}"
        fix = 'a policy file {"' + name.removesuffix(".weight") + '": "bf16", "*": "fp8"} leaves it as it is'
        raise LongcatShapeError(message("quantize", "policy", got, "what the ops take", problem, fix))


def shards(items: Sequence[Item], most_bytes: int) -> dict[str, list[Item]]:
    """Files of at most so many bytes, if no tensor alone is larger; a weight and its scales lie in one."""
    groups: list[list[Item]] = []
    room = -1
    for item in items:
        if item.num_bytes > room or not groups:
            groups.append([])
            room = most_bytes
        groups[-1].append(item)
        room -= item.num_bytes
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def layouts(items: Sequence[Item]) -> dict[str, Layout]:
    return {name: layout for item in items for name, layout in item.made.items()}


class Reader:
    """Reads pieces of tensors. Their memory is used again: a piece lasts until the next one is read."""

    def __init__(self, file_of: Mapping[str, Path]) -> None:
        self._file_of, self._open = file_of, {}
        self._buffer = bytearray(PIECE)

    def bytes(self, name: str, begin: int, end: int) -> memoryview:
        """Bytes begin .. end-1 of a stored tensor."""
        if len(self._buffer) < end - begin:
            self._buffer = bytearray(end - begin)
        data = memoryview(self._buffer)[: end - begin]
        self._file(name).read(name, begin, data)
        return data

    def rows(self, name: str, layout: Layout, begin: int, end: int) -> Tensor:
        """Rows begin .. end-1 of a stored tensor [R,C]."""
        width = layout.shape[1]
        size = width * layout.dtype.itemsize
        data = self.bytes(name, begin * size, end * size)
        return torch.frombuffer(data, dtype=layout.dtype).view(end - begin, width)

    def _file(self, name: str) -> TensorFile:
        path = self._file_of[name]
        if path not in self._open:
            if len(self._open) > 1:  # a weight and its scales may lie in two
                self.close()
            self._open[path] = TensorFile(path)
        return self._open[path]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def convert(item: Item, reader: Reader, out: NewTensorFile, progress: Callable[[int], None]) -> None:
    """Writes what becomes of a tensor. progress: called with the bytes read, piece by piece.

    Raises: LongcatCheckpointError for a weight that holds NaN or inf and would become FP8.
    """
    if item.quantised:
        _quantise(item, reader, out, progress)
    elif item.widened:
        _widen(item, reader, out, progress)
    else:
        for name, layout in item.made.items():
            stored = item.stored_name(name)
            for begin in range(0, layout.num_bytes, PIECE):
                data = reader.bytes(stored, begin, min(begin + PIECE, layout.num_bytes))
                out.write_tensor(name, data, begin)
                progress(len(data))


def _quantise(item: Item, reader: Reader, out: NewTensorFile, progress: Callable[[int], None]) -> None:
    name, (_, (_, cols)) = item.name, item.stored
    for begin, end in _strips(item.stored):
        weight = reader.rows(name, item.stored, begin, end)
        q, s = per_block_quant_fp8(weight.float() if weight.dtype == torch.float64 else weight)
        if not torch.isfinite(s).all():
            at = (~torch.isfinite(s)).nonzero()[0] * BLOCK + torch.tensor([begin, 0])
            raise LongcatCheckpointError(
                f"tensor {name} holds NaN or inf in the {BLOCK} x {BLOCK} block at {at.tolist()}, expected numbers.\n"
                "  fix: copy or download its file again, or leave it as it is with a policy file"
            )
        out.write_tensor(name, _bytes(q), begin * cols)
        out.write_tensor(name + SCALE_SUFFIX, _bytes(s), begin // BLOCK * s.shape[1] * 4)
        progress(weight.nbytes)


def _widen(item: Item, reader: Reader, out: NewTensorFile, progress: Callable[[int], None]) -> None:
    name, (_, (_, cols)), made = item.name, item.stored, item.made[item.name]
    for begin, end in _strips(item.stored):
        s = reader.rows(name + SCALE_SUFFIX, item.scales, begin // BLOCK, -(-end // BLOCK)).to(torch.float32, copy=True)
        q = reader.rows(name, item.stored, begin, end)
        out.write_tensor(name, _bytes(dequant_fp8(q, s, made.dtype)), begin * cols * made.dtype.itemsize)
        progress(q.nbytes + s.nbytes)


def _strips(layout: Layout) -> Iterator[tuple[int, int]]:
    """Rows of whole blocks, about PIECE bytes of them at once."""
    rows, cols = layout.shape
    step = max(1, PIECE // (BLOCK * cols * layout.dtype.itemsize)) * BLOCK
    return ((begin, min(begin + step, rows)) for begin in range(0, rows, step))


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")
