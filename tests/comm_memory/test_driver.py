"""Calls of the CUDA driver by ctypes, against a library that is compiled with the prototypes of cuda.h."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_tools import NVCC, PLACES
from longcat_ops.comm.providers import driver as driver_module
from longcat_ops.comm.providers import vmm
from longcat_ops.comm.providers.driver import ENTRY_POINTS, FABRIC, POSIX_FD, Driver
from longcat_ops.comm.providers.faults import DriverError
from longcat_ops.errors import LongcatUnsupportedError
from support.rank_threads import Hub, on_each

SOURCE = Path(__file__).resolve().parents[1] / "support" / "fake_libcuda.c"
SIZE = (1 << 33) + 4096  # beyond 32 bits
MEMORY, ADDRESS, GROUP = 0xFEDCBA9876543210, 0x7F0123456000, 0x8000000000000001


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if NVCC is None:
        pytest.skip(f"needs cuda.h: nvcc was not found {PLACES}")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    flags = ["-shared", "-cudart", "none", "-Xcompiler", "-fPIC,-Wall,-Werror"]
    subprocess.run([NVCC, *flags, "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def fake(library: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(driver_module, "LIBRARY", str(library))
    made = ctypes.CDLL(str(library))
    made.fake_log.restype = ctypes.c_char_p
    made.fake_reset(13000)
    return made


def log(fake: ctypes.CDLL) -> list[str]:
    lines = [line.rstrip() for line in fake.fake_log().decode().splitlines()]
    fake.fake_reset(13000)
    return lines


PROP = "  prop pinned 1 types 1 device 1 id 3 rest 0 0 0 (nil)"
FABRIC_SUM = 0
for i in range(64):
    FABRIC_SUM = (FABRIC_SUM * 5 + (i & 3)) % (1 << 32)
CONTEXT = ("cuCtxPushCurrent 0x123456789abc", "cuCtxPopCurrent")

CALLS: dict[str, tuple[Callable[[Driver], object], object, list[str]]] = {
    "attribute": (lambda d: d.attribute("multicast"), 7, ["cuDeviceGetAttribute multicast 3"]),
    "attribute vmm": (lambda d: d.attribute("vmm"), 7, ["cuDeviceGetAttribute vmm 3"]),
    "attribute fd": (lambda d: d.attribute("posix_fd"), 7, ["cuDeviceGetAttribute posix_fd 3"]),
    "attribute fabric": (lambda d: d.attribute("fabric"), 7, ["cuDeviceGetAttribute fabric 3"]),
    "uuid": (lambda d: d.uuid(), bytes(range(16)).hex(), ["cuDeviceGetUuid 3"]),
    "memory_granularity": (
        lambda d: d.memory_granularity(POSIX_FD),
        1 << 40,
        ["cuMemGetAllocationGranularity recommended 1", PROP],
    ),
    "multicast_granularity": (
        lambda d: d.multicast_granularity(8, SIZE, POSIX_FD | FABRIC, False),
        1 << 41,
        ["cuMulticastGetGranularity recommended 0", f"  prop devices 8 size {SIZE} types 9 flags 0"],
    ),
    "multicast_granularity, recommended": (
        lambda d: d.multicast_granularity(8, SIZE, POSIX_FD, True),
        1 << 41,
        ["cuMulticastGetGranularity recommended 1", f"  prop devices 8 size {SIZE} types 1 flags 0"],
    ),
    "create": (lambda d: d.create(SIZE, POSIX_FD), MEMORY, [f"cuMemCreate {SIZE} 0", PROP]),
    "release": (lambda d: d.release(MEMORY), None, ["cuMemRelease fedcba9876543210"]),
    "reserve": (lambda d: d.reserve(SIZE, 2 << 20), ADDRESS, [f"cuMemAddressReserve {SIZE} 2097152 0 0"]),
    "free": (lambda d: d.free(ADDRESS, SIZE), None, [f"cuMemAddressFree 7f0123456000 {SIZE}"]),
    "map": (
        lambda d: d.map(ADDRESS, SIZE, MEMORY),
        None,
        [f"cuMemMap 7f0123456000 {SIZE} 0 fedcba9876543210 0"],
    ),
    "unmap": (lambda d: d.unmap(ADDRESS, SIZE), None, [f"cuMemUnmap 7f0123456000 {SIZE}"]),
    "set_access": (
        lambda d: d.set_access(ADDRESS, SIZE),
        None,
        [f"cuMemSetAccess 7f0123456000 {SIZE} device 1 id 3 read_write 1 count 1"],
    ),
    "zero": (
        lambda d: d.zero(ADDRESS, SIZE),
        None,
        [CONTEXT[0], f"cuMemsetD8 7f0123456000 0 {SIZE}", "cuCtxSynchronize", CONTEXT[1]],
    ),
    "synchronize": (lambda d: d.synchronize(), None, [CONTEXT[0], "cuCtxSynchronize", CONTEXT[1]]),
    "export_fd": (lambda d: d.export_fd(MEMORY), 77, ["cuMemExportToShareableHandle fedcba9876543210 type 1 0"]),
    "export_fabric": (
        lambda d: d.export_fabric(MEMORY),
        bytes([0, 1, 2, 3] * 16),  # zeros inside
        ["cuMemExportToShareableHandle fedcba9876543210 type 8 0"],
    ),
    "import_fd": (lambda d: d.import_fd(5), 0xABCDEF0123456789, ["cuMemImportFromShareableHandle 5 type 1"]),
    "import_fabric": (
        lambda d: d.import_fabric(bytes([0, 1, 2, 3] * 16)),
        0xABCDEF0123456789,
        [f"cuMemImportFromShareableHandle {FABRIC_SUM} type 8"],
    ),
    "multicast_create": (
        lambda d: d.multicast_create(8, SIZE, POSIX_FD),
        GROUP,
        ["cuMulticastCreate", f"  prop devices 8 size {SIZE} types 1 flags 0"],
    ),
    "multicast_add_device": (
        lambda d: d.multicast_add_device(GROUP),
        None,
        ["cuMulticastAddDevice 8000000000000001 3"],
    ),
    "multicast_bind": (
        lambda d: d.multicast_bind(GROUP, MEMORY, SIZE),
        None,
        [f"cuMulticastBindMem 8000000000000001 0 fedcba9876543210 0 {SIZE} 0"],
    ),
    "multicast_unbind": (
        lambda d: d.multicast_unbind(GROUP, SIZE),
        None,
        [f"cuMulticastUnbind 8000000000000001 3 0 {SIZE}"],
    ),
    "close": (lambda d: d.close(), None, ["cuDevicePrimaryCtxRelease 3"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_reaches_the_driver_as_cuda_h_says(fake: ctypes.CDLL, name: str) -> None:
    call, value, lines = CALLS[name]
    made = Driver(3)
    assert log(fake) == ["cuInit 0", "cuDeviceGet 3", "cuDevicePrimaryCtxRetain 3"]
    assert call(made) == value
    assert log(fake) == lines


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_has_its_name_and_code(fake: ctypes.CDLL, name: str) -> None:
    call, _, lines = CALLS[name]
    made = Driver(3)
    entry = lines[-1 if len(lines) == 1 else (1 if lines[0].startswith("cuCtx") else 0)].split()[0]
    fake.fake_fail(entry.encode(), 802)
    with pytest.raises(DriverError) as error:
        call(made)
    assert (error.value.call, error.value.code) == (entry, 802)
    assert str(error.value) == f"{entry} returned 802 (CUDA_ERROR_SYSTEM_NOT_READY)"
    if lines[0] == CONTEXT[0]:
        assert log(fake)[-1] == "cuCtxPopCurrent"


def test_an_unknown_code_has_no_name(fake: ctypes.CDLL) -> None:
    made = Driver(0)
    fake.fake_fail(b"cuMemRelease", 4711)
    with pytest.raises(DriverError, match=r"^cuMemRelease returned 4711$"):
        made.release(1)


def test_an_old_driver_is_refused(fake: ctypes.CDLL) -> None:
    fake.fake_reset(12000)
    with pytest.raises(LongcatUnsupportedError, match=r"is of CUDA 12\.0, expected 12\.1 or newer"):
        Driver(0)
    assert log(fake) == ["cuInit 0"]


def test_a_driver_without_an_entry_point_is_refused(fake: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "ENTRY_POINTS", (*ENTRY_POINTS, "cuMulticastFold"))
    with pytest.raises(LongcatUnsupportedError, match=r"CUDA 13\.0 without cuMulticastFold, expected"):
        Driver(0)


def test_no_driver_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "LIBRARY", "libcuda-that-is-not-there.so.1")
    exchanges = Hub(2, 10).exchanges()
    answers = on_each(2, lambda rank: vmm.open_memory(exchanges[rank], rank, 1 << 20))
    for answer in answers:
        assert answer.memory is None
        assert (
            "LongcatUnsupportedError: the CUDA driver cannot be loaded: libcuda-that-is-not-there.so.1"
            in (answer.why_not["p2p"])
        )
