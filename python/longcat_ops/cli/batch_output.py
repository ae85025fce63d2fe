"""The output of `generate --prompts`: a first line that says which run it belongs to, then a line a request.

A line is written whole, at once, when its request has finished. So a run that was killed leaves lines that count and
at most one torn line behind them, which the next run drops.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from ..errors import LongcatError, LongcatShapeError, message
from ..loading import journal

KIND = "longcat_ops generate --prompts"


class Output:
    """The file, locked. `header`: of the run that it belongs to, None if it is new. `done`: indices of its lines."""

    def __init__(self, path: str) -> None:
        self.path, self.header, self.done = path, None, set()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise LongcatShapeError(message("generate", "--output", f"{path}, no regular file", "a file to keep"))
            if not journal.lock(self._fd):
                raise LongcatError(f"--output {path}: another run is writing it.")
            journal.read_lines(
                self._fd, KIND, self._take, lambda number: self._refuse(number, "no line of this command")
            )
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, number: int, line: bytes) -> None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if number == 1:
            if not isinstance(value, dict) or value.get("run") != KIND:
                self._refuse(1, "no line of this command")
            self.header = value
            return
        index = value.get("index") if isinstance(value, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or index in self.done:
            self._refuse(number, f"index {index!r} a second time" if index in self.done else "no line of this command")
        self.done.add(index)

    def _refuse(self, number: int, what: str) -> None:
        got = f"{self.path}, whose line {number} is {what}"
        fix = "name a file that is not there yet, or remove this one"
        raise LongcatShapeError(message("generate", "--output", got, "the output of an interrupted run", fix=fix))

    def require_same(self, header: dict[str, Any], requests: int) -> None:
        """Raises LongcatShapeError if the file belongs to other prompts, another checkpoint or other options."""
        old = self.header or header
        where = f"as in the run that {self.path} belongs to"
        fix = "name another --output for another run"
        for key, argument in (("prompts", "--prompts"), ("checkpoint", "--checkpoint")):
            if old.get(key) != header[key]:
                raise LongcatShapeError(message("generate", argument, "another one", f"the one {where}", fix=fix))
        options, before = header["options"], old.get("options")
        before = before if isinstance(before, dict) else {}
        for key, value in options.items():
            if before.get(key, ...) != value:
                expected = f"{before.get(key)!r}, {where}"
                raise LongcatShapeError(message("generate", key, repr(value), expected, fix=fix))
        if strange := sorted(index for index in self.done if not 0 <= index < requests):
            raise LongcatShapeError(
                message("generate", "--output", f"{self.path} with index {strange[0]}", f"0 .. {requests - 1}", fix=fix)
            )

    def begin(self, header: dict[str, Any]) -> None:
        """Writes the first line of a new file."""
        if self.header is None:
            self.header = {"run": KIND, **header}
            self._write(self.header)

    def add(self, line: dict[str, Any]) -> None:
        """A finished request: its line is in the file when this returns."""
        self._write(line)
        self.done.add(line["index"])

    def _write(self, line: dict[str, Any]) -> None:
        left = memoryview(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise LongcatError(
                f"--output {self.path}: {error.strerror}; {len(self.done)} requests are in it.\n"
                "  fix: make room, then run the same command again, which goes on from there"
            ) from error

    def close(self) -> None:
        os.close(self._fd)
