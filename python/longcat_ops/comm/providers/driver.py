"""The calls of the CUDA driver that symmetric memory needs, by ctypes: one method a call, with no state but a context.

Constants, structures and meanings are those of cuda.h (CUDA driver API, sections "Virtual Memory Management" and
"Multicast Object Management"). Handles, addresses and sizes are plain integers; sizes are bytes.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_ushort, c_void_p
from typing import TYPE_CHECKING

from ...errors import LongcatUnsupportedError
from .faults import DriverError

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "libcuda.so.1"
OLDEST = 12010  # CUDA 12.1, the first with multicast objects

POSIX_FD, FABRIC = 1, 8  # CUmemAllocationHandleType
FABRIC_BYTES = 64
# CUdevice_attribute
ATTRIBUTES = {"vmm": 102, "posix_fd": 103, "fabric": 128, "multicast": 132}

_PINNED, _DEVICE, _READ_WRITE, _RECOMMENDED = 1, 1, 3, 1

ENTRY_POINTS = (
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxSynchronize",
    "cuMemGetAllocationGranularity",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemsetD8_v2",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
    "cuMulticastGetGranularity",
    "cuMulticastCreate",
    "cuMulticastAddDevice",
    "cuMulticastBindMem",
    "cuMulticastUnbind",
)


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", c_int), ("id", c_int))


class AllocationFlags(ctypes.Structure):
    """CUmemAllocationProp.allocFlags."""

    _fields_ = (("compression", c_ubyte), ("rdma", c_ubyte), ("usage", c_ushort), ("reserved", c_ubyte * 4))


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("win32", c_void_p),
        ("flags", AllocationFlags),
    )


class AccessDesc(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", c_int))


class MulticastProp(ctypes.Structure):
    """CUmulticastObjectProp."""

    _fields_ = (("devices", c_uint), ("size", c_size_t), ("handle_types", c_ulonglong), ("flags", c_ulonglong))


class Driver:
    """The driver with the primary context of one device. Each failed call raises DriverError with its name and code."""

    def __init__(self, device: int) -> None:
        """Retains the device's primary context, which torch uses, too.

        Raises LongcatUnsupportedError without a driver, or with one older than CUDA 12.1, with both versions.
        """
        self._cuda = _load()
        self._call("cuInit", c_uint(0))
        version = c_int()
        self._call("cuDriverGetVersion", byref(version))
        self.version = version.value
        _require_new(self._cuda, self.version)
        handle, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(handle), c_int(device))
        self.device = handle.value
        self._call("cuDevicePrimaryCtxRetain", byref(context), handle)
        self._context = context

    def close(self) -> None:
        self._call("cuDevicePrimaryCtxRelease_v2", c_int(self.device))

    def attribute(self, name: str) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), c_int(ATTRIBUTES[name]), c_int(self.device))
        return value.value

    def uuid(self) -> str:
        value = (c_char * 16)()
        self._call("cuDeviceGetUuid_v2", byref(value), c_int(self.device))
        return value.raw.hex()

    def memory_granularity(self, handle_types: int) -> int:
        return self._granularity("cuMemGetAllocationGranularity", self._memory(handle_types), _RECOMMENDED)

    def multicast_granularity(self, ranks: int, size: int, handle_types: int, recommended: bool) -> int:
        prop = MulticastProp(ranks, size, handle_types, 0)
        return self._granularity("cuMulticastGetGranularity", prop, _RECOMMENDED if recommended else 0)

    def create(self, size: int, handle_types: int) -> int:
        return self._handle("cuMemCreate", c_size_t(size), byref(self._memory(handle_types)), c_ulonglong(0))

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", c_ulonglong(handle))

    def reserve(self, size: int, alignment: int) -> int:
        return self._handle("cuMemAddressReserve", c_size_t(size), c_size_t(alignment), c_ulonglong(0), c_ulonglong(0))

    def free(self, address: int, size: int) -> None:
        self._call("cuMemAddressFree", c_ulonglong(address), c_size_t(size))

    def map(self, address: int, size: int, handle: int) -> None:
        self._call("cuMemMap", c_ulonglong(address), c_size_t(size), c_size_t(0), c_ulonglong(handle), c_ulonglong(0))

    def unmap(self, address: int, size: int) -> None:
        self._call("cuMemUnmap", c_ulonglong(address), c_size_t(size))

    def set_access(self, address: int, size: int) -> None:
        access = AccessDesc(Location(_DEVICE, self.device), _READ_WRITE)
        self._call("cuMemSetAccess", c_ulonglong(address), c_size_t(size), byref(access), c_size_t(1))

    def zero(self, address: int, size: int) -> None:
        """Zeroes memory and waits for the device."""
        self._with_context(("cuMemsetD8_v2", c_ulonglong(address), c_ubyte(0), c_size_t(size)), ("cuCtxSynchronize",))

    def synchronize(self) -> None:
        self._with_context(("cuCtxSynchronize",))

    def export_fd(self, handle: int) -> int:
        fd = c_int(-1)
        self._call("cuMemExportToShareableHandle", byref(fd), c_ulonglong(handle), c_int(POSIX_FD), c_ulonglong(0))
        return fd.value

    def export_fabric(self, handle: int) -> bytes:
        data = (c_char * FABRIC_BYTES)()
        self._call("cuMemExportToShareableHandle", byref(data), c_ulonglong(handle), c_int(FABRIC), c_ulonglong(0))
        return data.raw

    def import_fd(self, fd: int) -> int:
        return self._handle("cuMemImportFromShareableHandle", c_void_p(fd), c_int(POSIX_FD))

    def import_fabric(self, data: bytes) -> int:
        return self._handle("cuMemImportFromShareableHandle", c_char_p(data), c_int(FABRIC))

    def multicast_create(self, ranks: int, size: int, handle_types: int) -> int:
        return self._handle("cuMulticastCreate", byref(MulticastProp(ranks, size, handle_types, 0)))

    def multicast_add_device(self, handle: int) -> None:
        self._call("cuMulticastAddDevice", c_ulonglong(handle), c_int(self.device))

    def multicast_bind(self, handle: int, memory: int, size: int) -> None:
        """Blocks in the driver until every device of the multicast object has been added."""
        zero, flags = c_size_t(0), c_ulonglong(0)
        self._call("cuMulticastBindMem", c_ulonglong(handle), zero, c_ulonglong(memory), zero, c_size_t(size), flags)

    def multicast_unbind(self, handle: int, size: int) -> None:
        self._call("cuMulticastUnbind", c_ulonglong(handle), c_int(self.device), c_size_t(0), c_size_t(size))

    def tensor(self, address: int, size: int) -> Tensor:
        """The memory at `address` as a tensor, uint8 [size]. The memory is not the tensor's: it must outlive it."""
        import torch

        array = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
        view = type("DeviceMemory", (), {"__cuda_array_interface__": array})()
        return torch.as_tensor(view, device=torch.device("cuda", self.device))

    def _memory(self, handle_types: int) -> AllocationProp:
        return AllocationProp(_PINNED, handle_types, Location(_DEVICE, self.device), None, AllocationFlags())

    def _granularity(self, name: str, prop: ctypes.Structure, option: int) -> int:
        value = c_size_t()
        self._call(name, byref(value), byref(prop), c_int(option))
        return value.value

    def _handle(self, name: str, *arguments: object) -> int:
        """Calls what returns a 64-bit handle or address through its first parameter."""
        value = c_ulonglong()
        self._call(name, byref(value), *arguments)
        return value.value

    def _with_context(self, *calls: tuple) -> None:
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            for name, *arguments in calls:
                self._call(name, *arguments)
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = c_char_p()
            self._cuda.cuGetErrorName(c_int(code), byref(text))
            raise DriverError(name.removesuffix("_v2"), code, (text.value or b"").decode())


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise LongcatUnsupportedError(f"the CUDA driver cannot be loaded: {error}") from error


def _require_new(cuda: ctypes.CDLL, version: int) -> None:
    """Raises LongcatUnsupportedError unless the driver is new enough and has every entry point."""
    missing = [name for name in ENTRY_POINTS if not hasattr(cuda, name)]
    if version < OLDEST or missing:
        had = f"CUDA {version // 1000}.{version % 1000 // 10}"
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise LongcatUnsupportedError(f"the CUDA driver is of {had}{lacks}, expected 12.1 or newer")
