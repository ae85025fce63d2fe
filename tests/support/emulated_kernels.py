"""Calls of the CUDA kernels in the host emulator, on arguments with gaps, offsets and fillers, and their fixtures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longcat_ops.ops import emulated
from support.build_oracle import codes_of, encode

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROWS, COLUMNS = (0, 1, 7, 4097), (8, 128, 160, 576, 6144)
SMALL_SHAPES = [(0, 8), (1, 160), (7, 576), (129, 8)]
FILLER = 0xA5  # each byte between rows


def shapes(longest: int) -> list:
    """Every (T, H) of ROWS and COLUMNS; those with more than `longest` elements only with --full."""
    slow = pytest.mark.slow
    return [pytest.param(t, h, marks=slow if t * h > longest else ()) for t in ROWS for h in COLUMNS]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """Rebuilds this source tree's liblongcat_emu.so if it is out of date."""
    subprocess.run([sys.executable, ROOT / "tools" / "build_emulator.py"], check=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other longer than these small tensors take to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def schedule() -> Iterator[None]:
    emulated.configure(seed=1, policy="random", detectors=True)
    yield
    emulated.configure()


KINDS = 7


def special_rows(rows: int, columns: int, dtype: torch.dtype, first: int = 0, run: int = 1) -> torch.Tensor:
    """Rows of seven kinds in turn, `run` rows of each: random values of widely varying magnitude, zeros of both signs,
    subnormals, +-1e6 (or the format's largest value), and rows with one NaN, inf or -inf.
    """
    generator = torch.Generator().manual_seed(rows + columns + first)
    x = torch.randn(rows, columns, generator=generator)
    kind = (first + torch.arange(rows) // run) % KINDS
    x[kind == 0] *= torch.logspace(-12, 4, int((kind == 0).sum()))[:, None]
    x[kind == 1] *= 0
    eighths = torch.randint(-7, 8, x.shape, generator=generator)
    x = torch.where((kind == 2)[:, None], eighths * (torch.finfo(dtype).smallest_normal / 8), x)
    x = torch.where((kind == 3)[:, None], x.sign() * min(1e6, torch.finfo(dtype).max), x)
    for i, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        row = (kind == 4 + i).nonzero().flatten()
        x[row, 7 * row % columns] = value
    return x.to(dtype)


def special_inputs(rows: int, columns: int, dtype: torch.dtype, run: int = 1) -> Iterator[torch.Tensor]:
    """Every kind of row: in one tensor if it has enough rows, otherwise in one tensor each."""
    for first in range(KINDS if 0 < rows < run * KINDS else 1):
        yield special_rows(rows, columns, dtype, first, run)


def run(op: str, *arguments: object) -> None:
    """Calls the kernel even with arguments that the op refuses."""
    with emulated.unchecked():
        emulated.kernel(op)(*arguments)


def apart(rows: int, columns: int, dtype: torch.dtype, gap: int = 0, offset: int = 0) -> torch.Tensor:
    """[rows, columns] with `gap` elements between rows, `offset` elements after a 64-byte boundary, all FILLER."""
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


# (gap of x, offset of x, gap of q, offset of q): aligned; rows apart; x off 16 bytes; q off 8 bytes; all at once.
LAYOUTS = [(0, 0, 0, 0), (8, 0, 8, 0), (0, 1, 0, 0), (0, 0, 0, 3), (3, 5, 1, 7)]


def _steps(codes: np.ndarray) -> np.ndarray:
    """Codes as integers in the order of their values; +0 and -0 are one step apart."""
    magnitude = (codes & 0x7F).astype(np.int64)
    return np.where(codes & 0x80, -1 - magnitude, magnitude)


def assert_near_fp64(q: torch.Tensor, s: torch.Tensor, h: np.ndarray, rounded: float = 0.0) -> None:
    """s is within 4 ulp and q within a step of the quantisation of h, float64 values that are first rounded to float32.

    rounded: relative half step of the format to which the kernel rounds its values before it quantises them.
    """
    columns = h.shape[1]
    codes = codes_of(q)
    with np.errstate(all="ignore"):
        h = h.astype(np.float32)
        for group in range(s.shape[1]):
            part = np.s_[:, 128 * group : min(128 * group + 128, columns)]
            scale = np.maximum(np.max(np.abs(h[part]), axis=1), np.float32(1e-4)) / np.float32(448)
            actual = s[:, group].numpy()
            ulps = 4 * np.spacing(scale).astype(np.float64)
            close = np.abs(actual.astype(np.float64) - scale) <= ulps + rounded * scale
            assert (close | (actual == scale) | (np.isnan(actual) & np.isnan(scale))).all()
            expected = encode(h[part] / scale[:, None])
            same_nan = (expected == 0x7F) == (codes[part] == 0x7F)
            assert same_nan.all()
            assert (np.abs(_steps(expected) - _steps(codes[part]))[expected != 0x7F] <= 1).all()
