"""Whether the process of another rank still lives: exact for ranks of one host, unknown for others.

A process is known by its host's boot, its PID namespace, its PID and its start time, so a PID that is used again is not
mistaken for it. Where /proc is missing nothing is known, and only deadlines tell.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """host: the same text for all processes that see each other's PIDs. started: clock ticks since boot."""

    host: str
    name: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.name}"


def this_process() -> Process:
    pid = os.getpid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        host = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        host = ""
    return Process(host, socket.gethostname(), pid, _status(pid)[1] if host else "")


def has_ended(process: Process, here: Process) -> bool:
    """Whether `process` is known to have ended. False where this process cannot see it."""
    if not here.host or process.host != here.host:
        return False
    state, started = _status(process.pid)
    return state in ("", "Z", "X") or started != process.started


def _status(pid: int) -> tuple[str, str]:
    """State and start time of a process, from /proc/<pid>/stat; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
