"""Calls of the CUDA kernels in the host emulator over arguments with gaps, offsets and fillers, and their fixtures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longcat_ops.ops import emulated

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
