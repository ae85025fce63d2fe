"""The CUDA kernels of the quantisation ops and of rms_norm_quant_fp8 in the host emulator, its detectors on.

The pure quantisers must have the reference's bits. silu_and_mul_quant_fp8 is within 4 ulp of the scale and one step of
e4m3 of fp64; rms_norm_quant_fp8's y within the bound of its own test, and its q and s are the reference's of that y.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from build_oracle import VALUES, assert_same_bits, codes_of, encode, hostile_input
from longcat_ops import reference
from longcat_ops.ops import emulated
from test_rms_norm_quant_fp8 import assert_normed

ROOT = Path(__file__).resolve().parent.parent
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# (T, H)
SHAPES = [
    (0, 128),
    (1, 8),
    (1, 6144),
    (7, 128),
    (7, 160),
    (7, 576),
    (7, 6144),
    (129, 8),
    (129, 128),
    (129, 576),
]
SMALL_SHAPES = [(0, 8), (1, 160), (7, 576), (129, 8)]
FILLER = 0xA5  # of the bytes between rows


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """liblongcat_emu.so of this source tree, built when it is out of date."""
    subprocess.run([sys.executable, ROOT / "tools" / "build_emulator.py"], check=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other longer than these small tensors take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def schedule() -> Iterator[None]:
    emulated.configure(seed=1, policy="random", detectors=True)
    yield
    emulated.configure()


def run(op: str, *arguments: object) -> None:
    emulated.kernel(op, lambda *_: None)(*arguments)


def apart(rows: int, columns: int, dtype: torch.dtype, gap: int = 0, offset: int = 0) -> torch.Tensor:
    """[rows, columns] with `gap` elements between rows, `offset` elements after a 64-byte boundary, all of FILLER."""
    storage = torch.empty((rows + 1) * (columns + gap) + offset + 64, dtype=dtype)
    storage.view(torch.uint8).fill_(FILLER)
    return storage[offset:].as_strided((rows, columns), (columns + gap, 1))


def copied(x: torch.Tensor, gap: int, offset: int) -> torch.Tensor:
    return apart(*x.shape, x.dtype, gap, offset).copy_(x)


def scales(rows: int, columns: int, column_major: bool) -> torch.Tensor:
    if not column_major:
        return apart(rows, columns, torch.float32)
    padded = -(-rows // 4) * 4
    return apart(columns, padded, torch.float32).t()[:rows]


def assert_gaps_untouched(*tensors: torch.Tensor) -> None:
    for t in tensors:
        everything = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
        inside = torch.zeros(everything.numel(), dtype=torch.bool)
        inside.as_strided(t.shape, t.stride(), t.storage_offset()).fill_(True)
        assert bool((everything.view(torch.uint8).view(-1, t.element_size())[~inside] == FILLER).all())


# (gap of x, offset of x, gap of q, offset of q): aligned; rows apart; a base off 16 bytes; q off 8; all at once.
LAYOUTS = [(0, 0, 0, 0), (8, 0, 8, 0), (0, 1, 0, 0), (0, 0, 0, 3), (3, 5, 1, 7)]


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


def norm(x: torch.Tensor, residual: torch.Tensor | None, layout: tuple[int, ...], column_major: bool) -> None:
    gap, offset, q_gap, q_offset = layout
    rows, columns = x.shape
    weight = apart(1, columns, torch.float32, 0, offset).uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(rows, -(-columns // 128), column_major)
    y, total = apart(rows, columns, x.dtype, gap, offset), None
    if residual is not None:
        total, residual = apart(rows, columns, x.dtype, gap, offset), copied(residual, gap, offset)
    run("rms_norm_quant_fp8", copied(x, gap, offset), weight[0], 1e-5, residual, q, s, y, total)
    if residual is not None:
        assert_same_bits(total, (x.float() + residual.float()).to(x.dtype))
        assert_gaps_untouched(total)
    assert_normed(y, x if total is None else total, weight[0], 1e-5)
    expected_q, expected_s = reference.per_token_group_quant_fp8(y)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)
    assert_gaps_untouched(q, s, y)


# One, two, three, four and more chunks per thread; the last two are read twice.
WIDTHS = [8, 128, 160, 576, 2056, 4096, 6144, 8192, 16384, 16392, 20000]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", WIDTHS)
def test_rms_norm_quant_widths(columns: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(2, columns, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    norm(x, None, LAYOUTS[0], column_major=False)
    norm(x, residual, LAYOUTS[0], column_major=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (1, 160), (7, 576), (33, 8), (2, 16392)])
def test_rms_norm_quant_layouts(rows: int, columns: int, layout: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x, residual = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(i)) * 30 for i in range(2))
        norm(x.to(dtype), residual.to(dtype), layout, column_major=False)
        norm(x.to(dtype), None, layout, column_major=True)


def test_rms_norm_quant_special_rows() -> None:
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x[1] = 1e-40
    x[2, 3] = float("nan")
    x[3, 200] = float("inf")
    x[4] *= 1e6
    expected = reference.rms_norm(x, torch.ones(256), 1e-5)
    q, s, y = apart(6, 256, torch.float8_e4m3fn), scales(6, 2, False), apart(6, 256, torch.float32)
    run("rms_norm_quant_fp8", x, torch.ones(256), 1e-5, None, q, s, y, None)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-44, equal_nan=True)
    expected_q, expected_s = reference.per_token_group_quant_fp8(y)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)


def _all_outputs() -> list[torch.Tensor]:
    x, residual = hostile_input(9, 576, torch.bfloat16), hostile_input(9, 576, torch.bfloat16, seed=2)
    q, s = apart(9, 576, torch.float8_e4m3fn), scales(9, 5, True)
    run("per_token_group_quant_fp8", x, 128, q, s)
    outputs = [q, s]
    q, s = apart(9, 576, torch.float8_e4m3fn), scales(1, 5, False)
    run("per_block_quant_fp8", x.nan_to_num(1, 1, 1), q, s)
    out = apart(9, 576, torch.float16)
    run("dequant_fp8", q, s, 128, out)
    outputs += [q, s, out]
    q, s = apart(9, 288, torch.float8_e4m3fn), scales(9, 3, False)
    run("silu_and_mul_quant_fp8", x, q, s)
    outputs += [q, s]
    q, s, y, total = apart(9, 576, q.dtype), scales(9, 5, False), apart(9, 576, x.dtype), apart(9, 576, x.dtype)
    run("rms_norm_quant_fp8", x, torch.ones(576), 1e-5, residual, q, s, y, total)
    return [*outputs, q, s, y, total]


def test_bits_do_not_depend_on_the_schedule() -> None:
    expected = _all_outputs()
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            for actual, wanted in zip(_all_outputs(), expected, strict=True):
                assert_same_bits(actual, wanted)


def test_bits_of_a_row_do_not_depend_on_its_neighbours_or_alignment() -> None:
    """Enough rows that a thread takes several of them, against one row at a time; and against unaligned rows."""
    x = torch.randn(40, 1152, generator=torch.Generator().manual_seed(0)).bfloat16()

    def each(x: torch.Tensor) -> list[torch.Tensor]:
        rows = len(x)
        q, s = apart(rows, 576, torch.float8_e4m3fn), scales(rows, 5, False)
        run("silu_and_mul_quant_fp8", x, q, s)
        q2, s2, y = apart(rows, 1152, q.dtype), scales(rows, 9, False), apart(rows, 1152, x.dtype)
        run("rms_norm_quant_fp8", x, torch.ones(1152), 1e-5, None, q2, s2, y, None)
        return [q, s, q2, s2, y]

    together = each(x)
    for row in (0, 17, 39):
        for actual, wanted in zip(each(x[row : row + 1]), together, strict=True):
            assert_same_bits(actual, wanted[row : row + 1])
    for actual, wanted in zip(each(copied(x, 3, 1)), together, strict=True):
        assert_same_bits(actual, wanted)


def _short_scales() -> None:
    q, s = apart(7, 128, torch.float8_e4m3fn), torch.empty(6, 1)
    run("per_token_group_quant_fp8", torch.ones(7, 128), 128, q, s)


def _short_residual() -> None:
    x, q, s = torch.ones(7, 128), apart(7, 128, torch.float8_e4m3fn), scales(7, 1, False)
    run(
        "rms_norm_quant_fp8",
        x,
        torch.ones(128),
        0.0,
        torch.ones(7, 120),
        q,
        s,
        torch.empty(7, 128),
        torch.empty(7, 128),
    )


@pytest.mark.parametrize("call", [_short_scales, _short_residual])
def test_an_access_outside_the_arguments_is_reported(call: Callable[[], None]) -> None:
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
        call()
