"""Errors of the CUDA driver while symmetric memory is set up, and what a set-up does about each.

The table follows what users of multicast memory reported: NVIDIA/nccl issues 1788 and 2077, pytorch/pytorch issue
177472, meta-pytorch/torchcomms pull request 3130, sgl-project/sglang issue 30364.
"""

from __future__ import annotations

from dataclasses import dataclass

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, DEINITIALIZED = 1, 2, 3, 4
INVALID_CONTEXT, INVALID_HANDLE, ILLEGAL_STATE = 201, 400, 401
ILLEGAL_ADDRESS, CONTEXT_IS_DESTROYED = 700, 709
NOT_PERMITTED, NOT_SUPPORTED, SYSTEM_NOT_READY = 800, 801, 802

# A request for FABRIC handles may get these where only file descriptors are allowed: ask again without FABRIC.
FABRIC_REFUSED = (NOT_PERMITTED, NOT_SUPPORTED, INVALID_VALUE)
# The context or the driver is gone, as when the process ends: its memory went with it.
GONE = (NOT_INITIALIZED, DEINITIALIZED, INVALID_CONTEXT, CONTEXT_IS_DESTROYED)
RETRIES = 3  # of a step that got SYSTEM_NOT_READY, by all ranks together

MULTICAST_CALLS = ("cuMulticastCreate", "cuMulticastAddDevice", "cuMulticastBindMem", "cuMulticastGetGranularity")


class DriverError(RuntimeError):
    """A call of the CUDA driver failed. call: its name; code: the CUresult."""

    def __init__(self, call: str, code: int, name: str = "") -> None:
        self.call, self.code = call, code
        super().__init__(f"{call} returned {code}{f' ({name})' if name else ''}")


@dataclass(frozen=True)
class Fault:
    """One row of the table. calls: those it is about, () for any; action: "retry" or "fall back"; cause: for users."""

    code: int
    calls: tuple[str, ...]
    action: str
    cause: str


TABLE = (
    Fault(SYSTEM_NOT_READY, (), "retry", f"still so after {RETRIES} retries: check nvidia-fabricmanager"),
    Fault(
        ILLEGAL_STATE,
        (*MULTICAST_CALLS, "cuMemMap"),
        "fall back",
        "check nvidia-fabricmanager: it does not run or has failed",
    ),
    Fault(
        INVALID_VALUE,
        ("cuMulticastCreate",),
        "fall back",
        "the device announces multicast and the driver refuses it: pass /dev/nvidia-caps into the container; on bare"
        " metal the driver's state is stale, and a reboot renews it",
    ),
    Fault(
        OUT_OF_MEMORY,
        ("cuMulticastCreate", "cuMulticastAddDevice", "cuMulticastBindMem"),
        "fall back",
        "an NVSwitch has 128 multicast slots, and all are in use: close other communicators on this machine",
    ),
    Fault(OUT_OF_MEMORY, (), "fall back", "the device has not enough free memory"),
    Fault(
        NOT_SUPPORTED,
        MULTICAST_CALLS,
        "fall back",
        "multicast is switched off, as under confidential computing; peer memory does not depend on it",
    ),
    Fault(NOT_PERMITTED, (), "fall back", "this process may not use the call: look at the container's devices"),
)


def find(error: DriverError) -> Fault | None:
    """The row for an error, None where the table has none: then the set-up falls back and shows the error alone."""
    for fault in TABLE:
        if fault.code == error.code and (not fault.calls or error.call in fault.calls):
            return fault
    return None


def is_transient(error: BaseException) -> bool:
    """Whether all ranks should try the step again together."""
    fault = find(error) if isinstance(error, DriverError) else None
    return fault is not None and fault.action == "retry"


def describe(error: BaseException) -> str:
    """One line for users: the error, and its cause where the table knows one."""
    fault = find(error) if isinstance(error, DriverError) else None
    text = str(error) if isinstance(error, DriverError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"{text}: {fault.cause}" if fault else text
