"""Files that are there whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias, TypeVar

Bytes: TypeAlias = "bytes | bytearray | memoryview"
_File = TypeVar("_File", bound="NewFile")


class NewFile:
    """A file of a folder, written under a name with a leading dot, which nobody loads, until `commit`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._temporary = folder / f".{name}.part"
        self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, data: Bytes, offset: int) -> None:
        """All of `data`, from byte `offset` on."""
        left = memoryview(data).cast("B")
        while left:
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written

    def commit(self) -> None:
        """The bytes are on the disk, then the name is."""
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        os.replace(self._temporary, self.folder / self.name)
        sync_folder(self.folder)

    def __enter__(self: _File) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays of a file that was not committed; its room is free again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._temporary.unlink(missing_ok=True)


def write_file(folder: Path, name: str, data: Bytes) -> None:
    """A small file at once."""
    with NewFile(folder, name) as file:
        file.write(data, 0)
        file.commit()


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk, as far as its file system can promise that."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
