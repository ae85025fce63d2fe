"""Opens the files of a checkpoint folder, which may be damaged or hostile.

Only regular files are opened; whatever is wrong is one LongcatCheckpointError that names the file.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import LongcatCheckpointError

MAX_CONFIG = 2**24  # bytes; published ones have a few thousand
MAX_INDEX = 2**28  # the index of the released model has 5 million
WEIGHTS = "*.safetensors"

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(path: str | Path) -> str:
    """The path for a message; a very long one is cut in the middle."""
    text = str(path)
    return text if len(text) <= 400 else f"{text[:200]}...{text[-100:]}"


def exists(path: str | Path) -> bool:
    """Whether there is an entry of this name, a dangling link too."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return True


def is_folder(path: str | Path) -> bool:
    """Whether this is a folder; no for whatever cannot be looked at."""
    try:
        return os.path.isdir(path)
    except ValueError:  # a name with a null byte
        return False


def require_regular(path: str | Path) -> os.stat_result:
    """Facts of a regular file, found without opening it. Raises LongcatCheckpointError for anything else."""
    try:
        facts = os.stat(path)
    except FileNotFoundError as error:
        if not os.path.islink(path):
            raise LongcatCheckpointError(f"{shown(path)} does not exist.") from error
        raise LongcatCheckpointError(
            f"{shown(path)} is missing: it is a link to {shown(os.readlink(path))}, which does not exist.\n"
            "  fix: copy or download the file itself"
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(facts.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(facts.st_mode)), "no file")
        raise LongcatCheckpointError(f"{shown(path)} is {kind}, expected a regular file.")
    return facts


def weight_files(folder: Path) -> list[Path]:
    """The *.safetensors of a folder in order. Names with a leading dot are notes of the system that copied it."""
    return [path for path in listed(folder) if path.name.endswith(WEIGHTS[1:]) and not path.name.startswith(".")]


def listed(folder: Path) -> list[Path]:
    """Whatever a folder holds, in the order of names."""
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise _unreadable(folder, error) from error


def open_to_read(path: str | Path) -> int:
    """A file descriptor. Should the file have become a FIFO since it was looked at, opening it still does not wait."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_text(path: str | Path, limit: int = MAX_CONFIG) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes."""
    size = require_regular(path).st_size
    if size > limit:
        raise LongcatCheckpointError(f"{shown(path)} has {size} bytes, expected at most {limit}.")
    try:
        with open(open_to_read(path), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:  # it grew since
            raise LongcatCheckpointError(f"{shown(path)} has more than {limit} bytes.")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LongcatCheckpointError(f"{shown(path)} is not valid UTF-8: {error.reason} at {error.start}.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def read_object(path: str | Path, limit: int = MAX_CONFIG, *, odd: list[str] | None = None) -> dict[str, Any]:
    """The JSON object that a file holds. NaN and Infinity, which are no JSON, are refused, or collected in `odd`."""

    def constant(name: str) -> float:
        if odd is None:
            raise ValueError(f"{name} is no JSON value")
        odd.append(name)
        return float(name)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise ValueError(f"key {counts.most_common(1)[0][0]!r} stands there twice")
        return found

    text = read_text(path, limit)
    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except RecursionError as error:
        raise LongcatCheckpointError(f"{shown(path)} is not valid JSON: nested too deeply.") from error
    except ValueError as error:
        raise LongcatCheckpointError(f"{shown(path)} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LongcatCheckpointError(f"{shown(path)} holds a {type(value).__name__}, expected an object.")
    return value


def _unreadable(path: str | Path, error: Exception) -> LongcatCheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LongcatCheckpointError(f"{shown(path)!r} cannot be read: {reason}.")
