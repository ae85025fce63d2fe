"""The device table is complete, cites its sources, and is found by the names that CUDA reports."""

from __future__ import annotations

import pytest

from longcat_ops import LongcatUnsupportedError, perf
from longcat_ops.perf.devices import DEVICES, Figure

FIGURES = {"memory", "fp8", "bf16", "sms", "l2_bytes", "l2_low", "l2_high", "clock", "nvlink"}


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_is_there_and_has_a_source(name: str) -> None:
    device = DEVICES[name]
    figures = device.figures()
    assert device.name == name and figures.keys() - {"copied", "wire_low", "wire_high"} == FIGURES
    assert all(figure.value > 0 and len(figure.source) > 10 for figure in figures.values())
    assert device.l2_low.value < device.l2_high.value
    # L2 is faster than memory, and bf16 half as fast as FP8: these catch a mistyped digit.
    assert device.memory.value < device.l2_low.value
    assert device.bf16.value == pytest.approx(device.fp8.value / 2, rel=0.002)
    assert device.copied is None or 0.8 < device.copied.value / device.memory.value < 1


def test_figures_of_the_data_sheets() -> None:
    """The table equals the data sheets, typed in a second time here."""
    known = {
        name: (d.memory.value / 1e12, d.fp8.value / 1e12, d.sms.value, d.nvlink.value / 1e9)
        for name, d in DEVICES.items()
    }
    assert known == {
        "H100": (3.35, 1979, 132, 900),
        "H800": (3.35, 1979, 132, 400),
        "H200": (4.8, 1979, 132, 900),
        "H20": (4.0, 296, 78, 900),
        "GH200": (4.0, 1979, 132, 900),
        "GH200 144G": (4.9, 1979, 132, 900),
        "H100 PCIe": (2.0, 1513, 114, 600),
        "H100 NVL": (3.9, 1671, 132, 600),
        "H200 NVL": (4.8, 1671, 132, 900),
    }


def test_wire_rates_are_shares_of_one_direction() -> None:
    """SXM modules and GH200 have both, cards none; busbw of NCCL at 8 GPUs counts 1.75 S, its NVLS moves 1.125 S."""
    shares = {}
    for name, device in DEVICES.items():
        if device.wire_low is not None and device.wire_high is not None:
            shares[name] = [2 * f.value / device.nvlink.value for f in (device.wire_low, device.wire_high)]
    assert shares.keys() == {"H100", "H800", "H200", "H20", "GH200", "GH200 144G"}
    assert all(low == pytest.approx(0.685, abs=0.01) and high == pytest.approx(0.82, abs=0.01)
               for low, high in shares.values())  # fmt: skip
    for name, busbw in (("H100", 480e9), ("H200", 475e9), ("H800", 215e9)):
        assert DEVICES[name].wire_low.value == pytest.approx(busbw / 1.75 * 1.125, rel=0.002)
    assert DEVICES["H100"].wire_high.value == pytest.approx(128 * 2**20 / 363e-6, rel=0.002)


def test_clocks_are_those_at_which_the_peaks_hold() -> None:
    """The clocks match other sources: 1.83 GHz for the H100 SXM, 1.62 GHz for its PCIe card."""
    assert DEVICES["H100"].clock.value == pytest.approx(1.83e9, rel=0.001)
    assert DEVICES["H100 PCIe"].clock.value == pytest.approx(1.62e9, rel=0.001)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144G"),
        ("NVIDIA H20", "H20"),
        *((name, name) for name in DEVICES),
    ],
)
def test_names_as_cuda_tells_them(told: str, name: str) -> None:
    assert perf.by_name(told) is DEVICES[name]


@pytest.mark.parametrize(
    "told", ["NVIDIA A100-SXM4-80GB", "NVIDIA H20-3e", "NVIDIA H800 PCIe", "NVIDIA B200", "", "AMD EPYC 9654"]
)
def test_an_unknown_device_is_refused(told: str) -> None:
    with pytest.raises(LongcatUnsupportedError) as caught:
        perf.by_name(told)
    assert str(caught.value) == (
        f"perf: argument `device_name` is {told!r}, expected one with a name of H100, H800, H200, H20, GH200, "
        "GH200 144G, H100 PCIe, H100 NVL, H200 NVL."
    )


def test_figures_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        DEVICES["H100"].memory = Figure(1.0, "nobody")
