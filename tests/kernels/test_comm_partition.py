"""Who works on which bytes of a collective: every element belongs to one rank, one block and one lane, exactly once."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from longcat_ops.comm import expert_kernels

ROOT = Path(__file__).resolve().parents[2]
RANDOM = random.Random(20)
WARP = 32


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("partition") / "libpartition.so"
    command = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{ROOT}/cuda"]
    subprocess.run([*command, ROOT / "tests" / "support" / "comm_partition.cpp", "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    number = ctypes.c_int64
    loaded.walk.argtypes = [number, ctypes.c_int, ctypes.c_int, number, ctypes.c_void_p]
    loaded.walk.restype = None
    loaded.split.argtypes = [ctypes.c_uint64, number, number, ctypes.c_void_p]
    loaded.shard.argtypes = [number, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    loaded.slot_bytes.argtypes = [number]
    loaded.slot_offset.argtypes = [ctypes.c_int] * 3 + [number]
    loaded.scratch_bytes.argtypes = [ctypes.c_int, number]
    loaded.expert_sizes.argtypes = [ctypes.c_int] * 4 + [number, number, ctypes.c_int, ctypes.c_void_p]
    loaded.blocks_of_combine.argtypes = [ctypes.c_int] * 3 + [number, number]
    for name in ("blocks_of_combine", "first_of_warp", "slot_bytes", "slot_offset", "scratch_bytes"):
        getattr(loaded, name).restype = number
    return loaded


def numbers(count: int, call: object, *arguments: object) -> list[int]:
    """What a function writes behind its last argument."""
    out = np.full(count, -1, np.int64)
    call(*arguments, out.ctypes.data)
    return out.tolist()


@pytest.mark.parametrize("element_bytes", [1, 2, 4, 8])
def test_head_packs_and_tail_are_the_whole_tensor(native: ctypes.CDLL, element_bytes: int) -> None:
    for past in range(0, 16, element_bytes):
        for elements in [*range(40), 1003]:
            address = 2**40 + past
            head, packs, tail = numbers(3, native.split, address, elements, element_bytes)
            per_pack = 16 // element_bytes
            assert head + packs * per_pack + tail == elements and min(head, packs, tail) >= 0
            assert packs == 0 or (address + head * element_bytes) % 16 == 0
            # No more outside of packs than alignment forces: the head ends at the first boundary or with the tensor.
            assert head == min(elements, -address % 16 // element_bytes) and tail < per_pack


def test_every_pack_of_a_tensor_is_done_once(native: ctypes.CDLL) -> None:
    """For random ranks, blocks, threads, dtypes and offsets, and for the sizes at which a step or a shard is added."""
    for _ in range(120):
        ranks, blocks = RANDOM.randint(1, 8), RANDOM.choice([1, 2, 3, 4, 5, 7, 8, 16])
        threads, element = WARP * RANDOM.choice([1, 2, 3, 16, 32]), RANDOM.choice([1, 2, 4])
        step = blocks * threads
        packs = RANDOM.choice(
            [0, 1, ranks - 1, ranks, ranks + 1, step * ranks, step * ranks + 1, RANDOM.randint(0, 5000)]
        )
        elements, past = packs * 16 // element + RANDOM.randint(0, 40), element * RANDOM.randrange(16 // element)
        _, packs, _ = numbers(3, native.split, past, elements, element)
        seen = np.zeros(packs + 1, np.int64)  # one more, for what is past the end
        for rank in range(ranks):
            begin, end = numbers(2, native.shard, packs, ranks, rank)
            native.walk(end - begin, blocks, threads, begin, seen.ctypes.data)
        assert seen[:packs].tolist() == [1] * packs and seen[packs] == 0, (ranks, blocks, threads, packs)


def test_shards_follow_each_other_and_are_even(native: ctypes.CDLL) -> None:
    for ranks in range(1, 9):
        for packs in range(70):
            shards = [numbers(2, native.shard, packs, ranks, rank) for rank in range(ranks)]
            assert shards[0][0] == 0 and shards[-1][1] == packs
            assert all(first[1] == second[0] for first, second in pairwise(shards))
            # No shard is larger than an even split needs, so no rank is later than it must be.
            assert max(end - begin for begin, end in shards) == -(-packs // ranks)


def test_a_small_message_spreads_over_all_blocks(native: ctypes.CDLL) -> None:
    """Runs of 32 packs go to block 0, 1, 2, 3, and only then to the second warp of block 0."""
    first = {(b, w): native.first_of_warp(b, 4, w) for b in range(4) for w in range(16)}
    order = sorted(first, key=first.__getitem__)
    assert [first[key] for key in order] == [WARP * i for i in range(4 * 16)]
    assert order[:5] == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]


def test_low_latency_slots_do_not_overlap(native: ctypes.CDLL) -> None:
    """Two parities of a slot for each rank, which hold the message twice over, by whole stores of 16 bytes."""
    for ranks in (2, 3, 8):
        for most in (2, 4, 8, 14, 1024, 32768):
            slot = native.slot_bytes(most)
            assert slot % 16 == 0 and 2 * most <= slot < 2 * most + 16
            offsets = [native.slot_offset(parity, rank, ranks, most) for parity in range(2) for rank in range(ranks)]
            assert offsets == [slot * i for i in range(2 * ranks)]
            assert native.scratch_bytes(ranks, most) == offsets[-1] + slot


def test_sizes_of_expert_parallelism_are_those_that_python_allocates(native: ctypes.CDLL) -> None:
    shapes = [(8, 512, 12, 192, 6144), (2, 6, 1, 9, 400), (4, 4, 12, 0, 16), (1, 1024, 32, 7, 144)]
    for ranks, experts, top_k, tokens, hidden in shapes:
        for payload, buffers in (("fp8", 1), ("bf16", 4)):
            shape = expert_kernels.Shape(ranks, experts, top_k, tokens, hidden, payload)
            sizes = [shape.received, shape.returned, shape.row_bytes, *shape.parts().values(),
                     *shape.buffer_parts().values(), shape.table_bytes(buffers)]  # fmt: skip
            fp8 = int(payload == "fp8")
            assert sizes == numbers(9, native.expert_sizes, ranks, experts, top_k, fp8, tokens, hidden, buffers)


def test_expert_parallelism_at_the_published_size(native: ctypes.CDLL) -> None:
    """8 GPUs, 512 experts, 12 choices, 192 tokens of 6144 columns, counted by hand."""
    shape = expert_kernels.Shape(8, 512, 12, 192, 6144, "fp8")
    assert (shape.received, shape.returned, shape.row_bytes) == (18432, 2304, 6144 + 192)
    assert shape.parts() == {"lines": 2 * 8 * 513 * 8, "flags": 1024}
    assert shape.buffer_parts() == {"rows": 18432 * 6144, "scales": 18432 * 48 * 4, "returned": 2304 * 12288}
    assert shape.table_bytes(2) == 4 * (32 + 2 * 1568)  # 8 + 3 * 512 + 1 = 1545 words, rounded up to 1568
    assert native.blocks_of_combine(8, 512, 12, 192, 6144) == 4 * 132
    # A warp takes 2 KB: 6 parts of a row, 4 warps a block.
    assert native.blocks_of_combine(2, 4, 2, 3, 6144) == 2 * 3 * 2 * 6 // 4
    assert native.blocks_of_combine(2, 4, 2, 0, 6144) == 1
