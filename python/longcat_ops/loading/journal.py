"""A file of lines of JSON that a run writes as it goes on, each whole or not at all, and that its next start reads.

The first line says which run it is. A run that was killed leaves lines that count and at most one torn line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable


def lock(fd: int) -> bool:
    """Locks an open file until it is closed; False if another run holds it. Some file systems have no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def beginning(kind: str) -> bytes:
    """What the first line of a run of this kind begins with."""
    return json.dumps({"run": kind})[:-1].encode()


def read_lines(fd: int, kind: str, take: Callable[[int, bytes], None], unknown: Callable[[int], None]) -> None:
    """Calls take(number, line) for each whole line, from 1, and cuts the torn one off. Calls unknown(1), which raises,
    for a torn first line of anything else.
    """
    whole, start = 0, beginning(kind)  # bytes of whole lines
    with open(fd, "rb", closefd=False) as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                if number == 1 and not line.startswith(start[: len(line)]):
                    unknown(1)
                break
            take(number, line)
            whole += len(line)
    os.ftruncate(fd, whole)
    os.lseek(fd, whole, os.SEEK_SET)
