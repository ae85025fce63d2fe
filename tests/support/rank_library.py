"""What stands in for a communicator and a device where a rung launches kernels on emulated GPUs."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from longcat_ops.errors import LongcatCommError, LongcatError
from support.comm_machine import Machine


class RankLibrary:
    """The emulator's functions, called on one rank's device."""

    def __init__(self, machine: Machine, rank: int) -> None:
        self.machine, self.rank, self.record = machine, rank, None

    def __getattr__(self, name: str) -> Any:
        def call(args: Any, stream: Any) -> int:
            self.machine.library.lc_emu_device(ctypes.c_int32(self.rank), ctypes.byref(self.record))
            return getattr(self.machine.library, name)(args, stream)

        return self.machine.library.lc_last_error if name == "lc_last_error" else call


class Watch:
    """What a rung asks of its communicator."""

    def __init__(self, rank: int) -> None:
        self.rank, self.failure = rank, None
        self.channels = [
            SimpleNamespace(watch=self, index=i, op="a call", post=SimpleNamespace(call=5 + i), disagree=self.disagree)
            for i in range(2)
        ]

    def disagree(self, text: str) -> LongcatError:
        """As a watch whose posts say nothing."""
        return self.poison(LongcatCommError(text))

    def poison(self, error: LongcatError) -> LongcatError:
        self.failure = self.failure or error
        return error
