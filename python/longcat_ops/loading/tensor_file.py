"""Safetensors files, read and written a piece at a time.

The format is that of huggingface/safetensors: the length of a header as u64, little endian; the header, a JSON object
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, padded with spaces to 8 bytes; then the bytes of the tensors
without gaps. Here the widest elements come first, so that each tensor begins at a multiple of its element's size.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import LongcatCheckpointError
from ..model import files
from .durable import Bytes, NewFile

_LENGTH = struct.Struct("<Q")
_MOST_HEADER = 100 * 10**6  # what readers of the format take
NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


class Layout(NamedTuple):
    """A tensor of a file: its dtype and its shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A file to read from. It is read by `pread`, not mapped: a file cut short while it is read is an error, no crash.

    Raises: LongcatCheckpointError for a file that cannot be read, or ends before its tensors do.
    """

    def __init__(self, path: Path) -> None:
        files.require_regular(path)
        self.path = path
        self._fd = files.open_to_read(path)
        try:
            (length,) = _LENGTH.unpack(self._head(_LENGTH.size, 0))
            if length > _MOST_HEADER:
                raise LongcatCheckpointError(f"{path} has a header of {length} bytes, expected {_MOST_HEADER} at most.")
            header = json.loads(self._head(length, _LENGTH.size))
            self._base = _LENGTH.size + length
            self._begin = {name: entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            os.close(self._fd)
            raise LongcatCheckpointError(f"{path} is no safetensors file: {error}") from error
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def names(self) -> list[str]:
        """In the order in which tensors lie in the file."""
        return sorted(self._begin, key=self._begin.__getitem__)

    def read(self, name: str, begin: int, into: memoryview) -> None:
        """The bytes of a tensor from its byte `begin` on, as many as there is room for."""
        self._pread(into, self._base + self._begin[name] + begin)

    def _head(self, size: int, offset: int) -> bytearray:
        buffer = bytearray(size)
        self._pread(memoryview(buffer), offset)
        return buffer

    def _pread(self, left: memoryview, offset: int) -> None:
        while left:
            try:
                count = os.preadv(self._fd, [left], offset)
            except OSError as error:
                raise LongcatCheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
            if not count:
                raise LongcatCheckpointError(
                    f"{self.path} ends at byte {offset}, expected {len(left)} more.\n"
                    "  fix: copy or download the file again"
                )
            left, offset = left[count:], offset + count

    def close(self) -> None:
        os.close(self._fd)


class TensorLayout:
    """Where tensors lie in a file, and its header. size: of the file in bytes."""

    def __init__(self, tensors: Mapping[str, Layout]) -> None:
        entries, at = {}, 0
        for name in sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize):  # stable
            dtype, shape = tensors[name]
            end = at + tensors[name].num_bytes
            entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = _LENGTH.pack(len(text)) + text
        self.begin = {name: len(self.header) + entry["data_offsets"][0] for name, entry in entries.items()}
        self.size = len(self.header) + at


class NewTensorFile(NewFile):
    """A file laid out so, whose tensors are then written in any order and piece by piece."""

    def __init__(self, folder: Path, name: str, layout: TensorLayout) -> None:
        super().__init__(folder, name)
        self._layout = layout

    def write_tensor(self, name: str, data: Bytes, begin: int) -> None:
        """Bytes of a tensor, from its byte `begin` on."""
        self.write(data, self._layout.begin[name] + begin)

    def commit(self) -> None:
        self.write(self._layout.header, 0)
        super().commit()
