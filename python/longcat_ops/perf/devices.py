"""What Hopper devices can do: the one table of their figures, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import LongcatUnsupportedError, message


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Device:
    """Peaks of one device; `copied` is the rate of a copy from memory to memory, reads and writes together.

    memory, copied, nvlink: bytes/s; nvlink both directions together. fp8, bf16: dense flops/s of the tensor cores, half
    of the sparse ones in data sheets. l2_bytes: its size. l2_low, l2_high: bytes/s that leave it. clock: Hz at which
    the tensor cores have those flops/s. wire_low, wire_high: bytes/s of one direction of NVLink that collectives reach
    through a switch, nvlink / 2 at most; None where the device has no switch.
    """

    name: str
    memory: Figure
    fp8: Figure
    bf16: Figure
    sms: Figure
    l2_bytes: Figure
    l2_low: Figure
    l2_high: Figure
    clock: Figure
    nvlink: Figure
    copied: Figure | None = None
    wire_low: Figure | None = None
    wire_high: Figure | None = None

    def figures(self) -> dict[str, Figure]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Figure)}


_WHITE_PAPER = "NVIDIA, H100 Tensor Core GPU Architecture (white paper)"
_SM_FLOPS = 8192  # dense FP8 flops of one SM in a clock: 4 tensor cores x 1024 multiply-adds
_H20 = "no data sheet of NVIDIA is public; as dealers and the press state it"
# What TMA gets from the L2 of a Hopper device is not published as far as we know: the band is two assumptions.
_L2_LOW = Figure(5.5e12, "assumed in this project's first tables and in a review of its kernels; not measured")
_L2_HIGH = Figure(8.0e12, "assumed by DeepGEMM (csrc/jit_kernels/heuristics/sm90.hpp, commit 54e2261); not measured")


def _device(name: str, sheet: str, memory: float, fp8: float, bf16: float, nvlink: float, sms: int, sms_source: str,
            l2: Figure, copied: Figure | None = None, wire: tuple[Figure, Figure] | None = None) -> Device:  # fmt: skip
    """A device of which NVIDIA has published a data sheet."""
    clock = Figure(fp8 / sms / _SM_FLOPS, f"{fp8 / 1e12:.0f}e12 / ({sms} SMs x {_SM_FLOPS} flops in a clock)")
    return Device(name, Figure(memory, sheet), Figure(fp8, sheet),
                  Figure(bf16, sheet), Figure(sms, sms_source), l2, _L2_LOW, _L2_HIGH,
                  clock, Figure(nvlink, sheet), copied, *(wire or ()))  # fmt: skip


def _sheet(name: str) -> str:
    return f"NVIDIA, {name} data sheet"


_L2_50 = Figure(50 * 2**20, _WHITE_PAPER)
_L2_60 = Figure(60 * 2**20, "as CUDA reports it there, by others; a full GH100 has as much")
_FULL_SXM = f"{_WHITE_PAPER}, H100 SXM5"
_AS_SXM = "as the H100 SXM5, by its number of CUDA cores"
_COPY_H100 = Figure(3.0e12, "measured by others on one H100 SXM, undated: a copy from device to device")
_COPY_H200 = Figure(4.3e12, "measured by others on one H200, undated: a copy from device to device")

# An all-reduce through the switch moves S(1 + 1/8) bytes each way, and NCCL's busbw is 1.75 S / us at 8 GPUs.
_WIRE_AS_H100 = "as the H100, by its NVLink; not measured"
_WIRE_H100 = (
    Figure(309e9, "NCCL's NVLS all-reduce, busbw 480 GB/s at 8 GPUs (nccl-tests issue 212, nccl issue 1455)"),
    Figure(370e9, "NCCL's symmetric all-gather, 128 MiB in 363 us at 8 GPUs (Megatron-LM pull request 5596)"),
)
_WIRE_H200 = (
    Figure(305e9, "NCCL's NVLS all-reduce, busbw 475 GB/s at 8 GPUs (nccl-tests issue 272)"),
    Figure(370e9, _WIRE_AS_H100),
)
_WIRE_H800 = (
    Figure(138e9, "NCCL's NVLS all-reduce, busbw 215 GB/s at 8 GPUs (nccl issue 1374)"),
    Figure(164e9, "the share of NVLink that the H100 reaches; not measured"),
)
_WIRE_LIKE_H100 = (Figure(309e9, _WIRE_AS_H100), Figure(370e9, _WIRE_AS_H100))

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device("H100", _sheet("H100, SXM"), 3.35e12, 1979e12, 989e12, 900e9, 132, _FULL_SXM, _L2_50, _COPY_H100,
                _WIRE_H100),
        _device("H800", "NVIDIA publishes none: as the H100 SXM, but for NVLink", 3.35e12,
                1979e12, 989e12, 400e9, 132, _AS_SXM, _L2_50, wire=_WIRE_H800),
        _device("H200", _sheet("H200, SXM"), 4.8e12, 1979e12, 989e12, 900e9, 132, _AS_SXM, _L2_60, _COPY_H200,
                _WIRE_H200),
        Device("H20", Figure(4.0e12, _H20), Figure(296e12, _H20), Figure(148e12, _H20), Figure(78, _H20), _L2_60,
               _L2_LOW, Figure(6.5e12, "64 bytes a clock and SM at 1.3 GHz, DeepGEMM's rule; not measured"),
               Figure(1.83e9, "assumed to be that of the H100 SXM"), Figure(900e9, _H20), None, *_WIRE_LIKE_H100),
        _device("GH200", _sheet("GH200, 96 GB HBM3"), 4.0e12, 1979e12, 989e12, 900e9, 132, _AS_SXM, _L2_60,
                wire=_WIRE_LIKE_H100),
        _device("GH200 144G", _sheet("GH200, 144 GB HBM3e"), 4.9e12, 1979e12, 989e12, 900e9, 132, _AS_SXM, _L2_60,
                wire=_WIRE_LIKE_H100),
        _device("H100 PCIe", _sheet("H100, PCIe"), 2.0e12, 1513e12, 756e12, 600e9, 114, f"{_WHITE_PAPER}, H100 PCIe",
                _L2_50),
        _device("H100 NVL", _sheet("H100 NVL"), 3.9e12, 1671e12, 835e12, 600e9, 132, _AS_SXM, _L2_50),
        _device("H200 NVL", _sheet("H200 NVL"), 4.8e12, 1671e12, 836e12, 900e9, 132, _AS_SXM, _L2_60),
    )
}  # fmt: skip


_FORMS = {"PCIe", "NVL"}  # a card of its own, with other memory and clocks than the SXM module


def by_name(device_name: str) -> Device:
    """The device of a name as CUDA reports it ("NVIDIA H100 80GB HBM3") or as in the table ("H100").

    Raises:
        LongcatUnsupportedError: the table does not have it.
    """
    words = set(device_name.split())  # whole words: an "H20-3e" has another memory than an "H20"
    # The longest name counts, so that an "H100 PCIe" is not an "H100".
    for name in sorted(DEVICES, key=lambda name: -len(name.split())):
        if set(name.split()) <= words and not (_FORMS & words) - set(name.split()):
            return DEVICES[name]
    known = ", ".join(DEVICES)
    raise LongcatUnsupportedError(message("perf", "device_name", repr(device_name), f"one with a name of {known}"))
