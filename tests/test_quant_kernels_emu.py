"""The CUDA kernels of the quantisation ops in the host emulator, its detectors on.

The pure quantisers must have the reference's bits. silu_and_mul_quant_fp8 is within 4 ulp of the scale and one step of
e4m3 of fp64.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from build_oracle import VALUES, assert_same_bits, codes_of, encode, hostile_input
from emulated_kernels import (  # noqa: F401  (fixtures of every test here)
    DTYPES,
    LAYOUTS,
    ROOT,
    SHAPES,
    SMALL_SHAPES,
    apart,
    assert_gaps_untouched,
    copied,
    library,
    one_thread,
    run,
    scales,
    schedule,
)
from longcat_ops import reference


def quantise(x: torch.Tensor, group_size: int, layout: tuple[int, ...], column_major: bool) -> None:
    gap, offset, q_gap, q_offset = layout
    expected_q, expected_s = reference.per_token_group_quant_fp8(x, group_size)
    q = apart(*x.shape, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(*expected_s.shape, column_major)
    run("per_token_group_quant_fp8", copied(x, gap, offset), group_size, q, s)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)
    assert_gaps_untouched(q, s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (129, 6144)])
def test_per_token_group_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    quantise(hostile_input(rows, columns, dtype), 128, LAYOUTS[0], column_major=rows % 2 == 1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SMALL_SHAPES)
def test_per_token_group_quant_layouts(rows: int, columns: int, layout: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        for column_major in (False, True):
            quantise(hostile_input(rows, columns, dtype), 128, layout, column_major)


@pytest.mark.parametrize("group_size", [8, 24, 64, 136, 1024, 1400, 2808, 6144])
def test_per_token_group_quant_group_sizes(group_size: int) -> None:
    """Above 128 columns a warp takes a group, above 1024 it reads the end of it twice."""
    for dtype in DTYPES:
        for layout in (LAYOUTS[0], LAYOUTS[-1]):
            quantise(hostile_input(3, 2808, dtype), group_size, layout, column_major=False)
            growing = torch.randn(3, 2808, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 2808)
            quantise(growing.to(dtype), group_size, layout, column_major=False)


def test_every_float16_value() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    quantise(codes.view(torch.float16).reshape(-1, 512), 8, LAYOUTS[0], column_major=False)


def test_quotients_at_ties() -> None:
    """The kernels divide by an FMA step: within 2 ulp of a tie between two codes x / s must round as IEEE division."""
    generator = np.random.default_rng(0)
    amax = np.float32(10.0) ** generator.uniform(-5, 38, (96, 1)).astype(np.float32)
    s = np.maximum(amax, np.float32(1e-4)) / np.float32(448)
    ties = ((VALUES[1:] + VALUES[:-1]) / 2).astype(np.float32)[None]
    x = np.concatenate([step(ties * s, steps) for steps in range(-2, 3)], axis=1)
    x = np.where(np.abs(x) <= np.maximum(amax, np.float32(1e-4)), x, 0) * generator.choice(np.float32([-1, 1]), x.shape)
    x = np.concatenate([amax, x, np.zeros((96, 1), np.float32)], axis=1)  # 632 = 1 + 5 * 126 + 1
    quantise(torch.from_numpy(x), 632, LAYOUTS[0], column_major=False)


@pytest.mark.slow
def test_every_quotient(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    command = [compiler, "-std=c++20", "-O2", "-DLC_EMULATE", "-ffp-contract=off", "-Wno-psabi", f"-I{ROOT}/cuda"]
    command += [f"-I{ROOT}/cpp", ROOT / "tests" / "exhaustive_quotients.cpp"]
    command += [ROOT / "build" / "emu" / "liblongcat_emu_core.a", "-o", tmp_path / "quotients"]
    subprocess.run(command, check=True)
    assert subprocess.run([tmp_path / "quotients"], capture_output=True, text=True).stdout == "ok\n"


def step(x: np.ndarray, ulps: int) -> np.ndarray:
    return (x.view(np.int32) + ulps).view(np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(0, 128), (1, 8), (7, 160), (129, 576), (129, 136), (256, 128)])
def test_per_block_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    w = hostile_input(rows, columns, dtype)
    finite = torch.nan_to_num(w, nan=1.0, posinf=3.0, neginf=-2.0)
    for values, (gap, offset, q_gap, q_offset) in ((w, LAYOUTS[0]), (finite, LAYOUTS[1]), (finite, LAYOUTS[-1])):
        expected_q, expected_s = reference.per_block_quant_fp8(values)
        q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
        s = scales(*expected_s.shape, column_major=gap > 0)
        run("per_block_quant_fp8", copied(values, gap, offset), q, s)
        assert_same_bits(q, expected_q)
        assert_same_bits(s, expected_s)
        assert_gaps_untouched(q, s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (129, 161), (300, 576), (5, 13)])
def test_dequant(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + columns)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    for group, layout in ((128, LAYOUTS[0]), (24, LAYOUTS[1]), (None, LAYOUTS[0]), (None, LAYOUTS[-1])):
        gap, offset, q_gap, q_offset = layout
        shape = (rows, -(-columns // group)) if group else (-(-rows // 128), -(-columns // 128))
        values = torch.rand(shape, generator=generator) * 2.0 ** torch.randint(-40, 20, shape, generator=generator)
        s = scales(*shape, column_major=gap > 0).copy_(values)
        q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
        q.view(torch.uint8).copy_(codes)
        out = apart(rows, columns, dtype, gap, offset)
        run("dequant_fp8", q, s, group or 128, out)
        assert_same_bits(out, reference.dequant_fp8(q, s, dtype, group_size=group or 128))
        assert_gaps_untouched(out)


def _steps(codes: np.ndarray) -> np.ndarray:
    """Codes as integers in the order of their values; +0 and -0 are one step apart."""
    magnitude = (codes & 0x7F).astype(np.int64)
    return np.where(codes & 0x80, -1 - magnitude, magnitude)


def assert_near_fp64(q: torch.Tensor, s: torch.Tensor, h: np.ndarray) -> None:
    """s within 4 ulp, q within a step of the quantisation of the float64 values h, rounded to float32 first."""
    columns = h.shape[1]
    codes = codes_of(q)
    with np.errstate(all="ignore"):
        h = h.astype(np.float32)
        for group in range(s.shape[1]):
            part = np.s_[:, 128 * group : min(128 * group + 128, columns)]
            scale = np.maximum(np.max(np.abs(h[part]), axis=1), np.float32(1e-4)) / np.float32(448)
            actual = s[:, group].numpy()
            close = np.abs(actual.astype(np.float64) - scale) <= 4 * np.spacing(scale).astype(np.float64)
            assert (close | (actual == scale) | (np.isnan(actual) & np.isnan(scale))).all()
            expected = encode(h[part] / scale[:, None])
            same_nan = (expected == 0x7F) == (codes[part] == 0x7F)
            assert same_nan.all()
            assert (np.abs(_steps(expected) - _steps(codes[part]))[expected != 0x7F] <= 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_silu_and_mul_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + columns)
    ordinary = torch.randn(rows, 2 * columns, generator=generator).mul(6).to(dtype)
    for x, layout in ((ordinary, LAYOUTS[0]), (hostile_input(rows, 2 * columns, dtype), LAYOUTS[rows % len(LAYOUTS)])):
        gap, offset, q_gap, q_offset = layout
        gate, up = x.double().numpy()[:, :columns], x.double().numpy()[:, columns:]
        with np.errstate(all="ignore"):
            h = gate / (1 + np.exp(-gate)) * up
        q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
        s = scales(rows, -(-columns // 128), column_major=rows % 2 == 0)
        run("silu_and_mul_quant_fp8", copied(x, gap, offset), q, s)
        assert_near_fp64(q, s, h)
        assert_gaps_untouched(q, s)
