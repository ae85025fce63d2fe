"""The folder that a conversion of a checkpoint writes to, and its record of what is whole there.

The record is `<op>.jsonl`, such as `quantize.jsonl`: a first line that says which run it belongs to, a line for each
file of weights that is whole, and a last line once everything is. A run that is interrupted leaves lines that count and
at most one torn line, which the next run drops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import LongcatError, LongcatShapeError, message
from ..model import files
from . import journal
from .durable import sync_folder

RECORDS = {op: f"{op}.jsonl" for op in ("quantize", "grow")}


class Destination:
    """The folder, made if it is not there, and locked. op: of RECORDS, what is run. header: of the run that the folder
    belongs to, None if none has begun. shards: the bytes of each file of weights that is whole. complete: whether
    everything is.

    Raises: LongcatShapeError if `path` is, holds or lies in the folder `source`, is no folder, or holds anything but
    what such a run has written. LongcatError if it cannot be written, or another run writes it.
    """

    def __init__(self, op: str, source: Path, path: Path) -> None:
        self.op, self.path, self.source = op, path, source
        self._record, self._kind = RECORDS[op], f"longcat_ops {op}"
        self.header: dict[str, Any] | None = None
        self.shards: dict[str, int] = {}
        self.complete = False
        self._require_apart()
        with writing(path):
            if os.path.lexists(path) and not path.is_dir():
                raise self._refuse(f"{path}, which is no folder", "a folder, or a path where one can be made")
            path.mkdir(parents=True, exist_ok=True)
            names = os.listdir(path)
            if names and self._record not in names:
                fix = "name another folder, or empty this one"
                raise self._refuse(f"{path}, which holds {sorted(names)[0]}", "a new or an empty folder", fix)
            if names:
                files.require_regular(path / self._record)
            self._fd = os.open(path / self._record, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                if not journal.lock(self._fd):
                    raise LongcatError(f"{self.path}: another run is writing it.")
                journal.read_lines(self._fd, self._kind, self._take, self._unknown)
                sync_folder(path)
            except BaseException:
                os.close(self._fd)
                raise

    def _require_apart(self) -> None:
        """Follows links, and compares the folders themselves, so that no second name of one is overlooked."""
        here, there = Path(os.path.realpath(self.source)), Path(os.path.realpath(self.path))
        for inner, outer, how in ((there, here, "lies in"), (here, there, "holds")):
            for folder in (inner, *inner.parents):
                if folder == outer or (folder.exists() and outer.exists() and os.path.samefile(folder, outer)):
                    got = f"{self.path}, which {'is' if folder == inner else how} SOURCE"
                    raise self._refuse(got, "a folder apart from SOURCE, which stays as it is")

    def _refuse(self, got: str, expected: str, fix: str | None = None) -> LongcatShapeError:
        return LongcatShapeError(message(self.op, "DEST", got, expected, fix=fix))

    def _take(self, number: int, line: bytes) -> None:
        try:
            value = json.loads(line)
            if number == 1 and value["run"] == self._kind:
                self.header = value
            elif number > 1 and value.keys() == {"shard", "bytes"}:
                self.shards[value["shard"]] = int(value["bytes"])
            elif number > 1 and value == {"complete": True}:
                self.complete = True
            else:
                self._unknown(number)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._unknown(number)

    def _unknown(self, number: int) -> None:
        got = f"{self.path}, whose {self._record} has an unknown line {number}"
        raise self._refuse(got, "the output of an interrupted run", "name another folder, or empty this one")

    def require_same(self, source: dict[str, Any], options: dict[str, Any]) -> None:
        """Raises LongcatShapeError for another SOURCE, or other options, than those of the interrupted run, if any."""
        if self.header is None:
            return
        where, fix = f"the one that {self.path} was begun with", "name another folder for another run"
        for key, value in json.loads(json.dumps(options)).items():
            before = self.header.get("options", {}).get(key, ...)
            if before != value:
                raise LongcatShapeError(message(self.op, key, _short(value), f"{_short(before)}, {where}", fix=fix))
        if self.header.get("source") != source:
            changed = _changed(self.header.get("source"), source)
            raise LongcatShapeError(message(self.op, "SOURCE", f"changed: {changed}", where, fix=fix))

    def begin(self, source: dict[str, Any], options: dict[str, Any], plan: str) -> None:
        """The run that this folder belongs to: a new one, or the one that was interrupted, which `require_same` has
        compared. plan: a hash of all files to come.
        """
        header = json.loads(json.dumps({"run": self._kind, "source": source, "options": options, "plan": plan}))
        if self.header is None:
            self.header = header
            self._add(header)
        elif self.header != header:
            got = f"{self.path}, begun by a release that divides tensors otherwise"
            raise self._refuse(got, "one that this release began", "name another folder, or empty this one")

    def has(self, shard: str, size: int) -> bool:
        """Whether this file of weights, of so many bytes, is whole."""
        try:
            return self.shards.get(shard) == size == os.stat(self.path / shard).st_size
        except OSError:
            return False

    def add_shard(self, shard: str, size: int) -> None:
        """Its file is whole, and the disk has it."""
        self._add({"shard": shard, "bytes": size})
        self.shards[shard] = size

    def finish(self) -> None:
        """Everything is whole."""
        if not self.complete:
            self._add({"complete": True})
            self.complete = True

    def _add(self, line: dict[str, Any]) -> None:
        left = memoryview(json.dumps(line).encode() + b"\n")
        while left:
            left = left[os.write(self._fd, left) :]
        os.fsync(self._fd)

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        os.close(self._fd)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of a write to the folder `path` into a LongcatError that names it."""
    try:
        yield
    except OSError as error:
        raise LongcatError(
            f"{path} cannot be written: {error.strerror or error}.\n"
            "  fix: make room or give access, then run the same command again, which goes on from there"
        ) from error


def _changed(before: Any, now: dict[str, Any]) -> str:
    """What of SOURCE differs, in words."""
    before = before if isinstance(before, dict) else {}
    names = [key for key in now if key != "files" and before.get(key) != now[key]]
    old, new = before.get("files", {}), now["files"]
    names += [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") if names else "its record"


def _short(value: Any) -> str:
    text = "not recorded" if value is ... else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
