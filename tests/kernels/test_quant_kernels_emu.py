"""The CUDA kernels of the quantisation ops in the host emulator with its detectors on.

The pure quantisers must have the reference's bits. silu_and_mul_quant_fp8 is within 4 ulp of fp64 in its scales and
within one step of e4m3 in its codes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from longcat_ops import reference
from support.build_oracle import VALUES, assert_same_bits, hostile_input
from support.emulated_kernels import (
    DTYPES,
    LAYOUTS,
    ROOT,
    SMALL_SHAPES,
    apart,
    assert_gaps_untouched,
    assert_near_fp64,
    copied,
    run,
    scales,
    shapes,
    special_inputs,
)


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
@pytest.mark.parametrize(("rows", "columns"), [*shapes(4097 * 576), (129, 6144)])
def test_per_token_group_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    for x in special_inputs(rows, columns, dtype):
        quantise(x, 128, LAYOUTS[0], column_major=columns % 128 == 0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SMALL_SHAPES)
def test_per_token_group_quant_layouts(rows: int, columns: int, layout: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        for column_major in (False, True):
            quantise(hostile_input(rows, columns, dtype), 128, layout, column_major)


@pytest.mark.parametrize("group_size", [8, 24, 64, 136, 1024, 1400, 2808, 6144])
def test_per_token_group_quant_group_sizes(group_size: int) -> None:
    """The sizes cover all paths: above 128 columns a warp takes a group, above 1024 it reads the group's end twice."""
    for dtype in DTYPES:
        for layout in (LAYOUTS[0], LAYOUTS[-1]):
            quantise(hostile_input(3, 2808, dtype), group_size, layout, column_major=False)
            growing = torch.randn(3, 2808, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 2808)
            quantise(growing.to(dtype), group_size, layout, column_major=False)


def test_every_float16_value() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    quantise(codes.view(torch.float16).reshape(-1, 512), 8, LAYOUTS[0], column_major=False)


def test_quotients_at_ties() -> None:
    """The kernels divide by an FMA step, which rounds as IEEE division does within 2 ulp of a tie between two codes."""
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
    command += [f"-I{ROOT}/cpp", ROOT / "tests" / "support" / "exhaustive_quotients.cpp"]
    command += [ROOT / "build" / "emu" / "liblongcat_emu_core.a", "-o", tmp_path / "quotients"]
    subprocess.run(command, check=True)
    assert subprocess.run([tmp_path / "quotients"], capture_output=True, text=True).stdout == "ok\n"


def step(x: np.ndarray, ulps: int) -> np.ndarray:
    return (x.view(np.int32) + ulps).view(np.float32)


def quantise_blocks(w: torch.Tensor, layout: tuple[int, ...], column_major: bool) -> None:
    gap, offset, q_gap, q_offset = layout
    expected_q, expected_s = reference.per_block_quant_fp8(w)
    q = apart(*w.shape, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(*expected_s.shape, column_major)
    run("per_block_quant_fp8", copied(w, gap, offset), q, s)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)
    assert_gaps_untouched(q, s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), shapes(4097 * 576))
def test_per_block_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    for w in special_inputs(rows, columns, dtype, run=128):
        quantise_blocks(w, LAYOUTS[0], column_major=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(0, 128), (1, 8), (7, 160), (129, 576), (129, 136), (256, 128)])
def test_per_block_quant_layouts(rows: int, columns: int, dtype: torch.dtype) -> None:
    w = hostile_input(rows, columns, dtype)
    finite = torch.nan_to_num(w, nan=1.0, posinf=3.0, neginf=-2.0)
    quantise_blocks(w, LAYOUTS[0], column_major=False)
    quantise_blocks(finite, LAYOUTS[1], column_major=True)
    quantise_blocks(finite, LAYOUTS[-1], column_major=True)


def dequantise(rows: int, columns: int, dtype: torch.dtype, group: int | None, layout: tuple[int, ...]) -> None:
    """Random codes, some NaN, with special scales and scales of widely varying size. No group: 128 x 128 blocks."""
    gap, offset, q_gap, q_offset = layout
    generator = torch.Generator().manual_seed(rows + columns)
    shape = (rows, -(-columns // group)) if group else (-(-rows // 128), -(-columns // 128))
    values = torch.rand(shape, generator=generator) * 2.0 ** torch.randint(-40, 20, shape, generator=generator)
    special = torch.tensor([0.0, 1e-40, 1e6, float("inf"), float("nan")])
    values.view(-1)[1::3] = special.repeat(values.numel())[: len(values.view(-1)[1::3])]
    s = scales(*shape, column_major=gap > 0).copy_(values)
    q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
    q.view(torch.uint8).copy_(torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8))
    out = apart(rows, columns, dtype, gap, offset)
    run("dequant_fp8", q, s, group or 128, out)
    assert_same_bits(out, reference.dequant_fp8(q, s, dtype, group_size=group or 128))
    assert_gaps_untouched(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), shapes(4097 * 576))
def test_dequant(rows: int, columns: int, dtype: torch.dtype) -> None:
    dequantise(rows, columns, dtype, 128, LAYOUTS[0])
    dequantise(rows, columns, dtype, None, LAYOUTS[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [*SMALL_SHAPES, (129, 161), (300, 576), (5, 13), (7, 6144)])
def test_dequant_layouts(rows: int, columns: int, dtype: torch.dtype) -> None:
    dequantise(rows, columns, dtype, 24, LAYOUTS[1])
    dequantise(rows, columns, dtype, 128, LAYOUTS[-1])
    dequantise(rows, columns, dtype, None, LAYOUTS[-1])


def activate(x: torch.Tensor, layout: tuple[int, ...], column_major: bool) -> None:
    gap, offset, q_gap, q_offset = layout
    rows, columns = x.shape[0], x.shape[1] // 2
    gate, up = x.double().numpy()[:, :columns], x.double().numpy()[:, columns:]
    with np.errstate(all="ignore"):
        h = gate / (1 + np.exp(-gate)) * up
    q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(rows, -(-columns // 128), column_major)
    run("silu_and_mul_quant_fp8", copied(x, gap, offset), q, s)
    assert_near_fp64(q, s, h)
    assert_gaps_untouched(q, s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), shapes(4097 * 576))
def test_silu_and_mul_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    for x in special_inputs(rows, 2 * columns, dtype):
        activate(x, LAYOUTS[0], column_major=columns % 128 == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [*SMALL_SHAPES, (7, 6144), (129, 576)])
def test_silu_and_mul_quant_layouts(rows: int, columns: int, dtype: torch.dtype) -> None:
    ordinary = torch.randn(rows, 2 * columns, generator=torch.Generator().manual_seed(rows + columns))
    activate(ordinary.mul(6).to(dtype), LAYOUTS[0], column_major=False)
    for layout in LAYOUTS[1:]:
        activate(hostile_input(rows, 2 * columns, dtype), layout, column_major=True)
