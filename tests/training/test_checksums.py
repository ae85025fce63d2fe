"""Checksums: the formula by a plain loop, every flip of one bit, and which tensors are named."""

from __future__ import annotations

import random

import pytest
import torch

from longcat_ops import LongcatShapeError
from longcat_ops.training import Checksums, checksum, tensors_of
from longcat_ops.training.checksums import _WORDS, _factors
from support.flips import flip

MASK = (1 << 64) - 1


def by_hand(data: bytes) -> int:
    """The formula over bytes, in Python's integers."""
    factors = [f & MASK for f in _factors(torch.device("cpu")).tolist()]
    found, padded = len(data), data + bytes(-len(data) % 8)
    words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
    for block in (words[i : i + _WORDS] for i in range(0, len(words), _WORDS)):
        total = 0
        for word, factor in zip(block, factors, strict=False):
            y = word * factor & MASK
            total += (y ^ (y >> 32)) * factor
        found = (found * 0x9E3779B97F4A7C15 + total) & MASK
    return found


def bits(t: torch.Tensor) -> bytes:
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24, 1001, 8 * _WORDS - 1, 8 * _WORDS, 8 * _WORDS + 21])
def test_the_formula(size):
    t = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    assert checksum(t) == by_hand(bits(t))


def test_dtypes_strides_and_places():
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 10, generator=g)
    for t in (wide, wide.bfloat16(), wide.to(torch.float8_e4m3fn), wide > 0, wide.long(), wide.to(torch.complex64),
              wide.T, wide[1:, ::3], wide[2, 3], wide.bfloat16()[0, 1:], wide[:1].expand(4, 10), wide[:0]):  # fmt: skip
        assert checksum(t) == by_hand(bits(t)) == checksum(t.clone())
    assert checksum(torch.zeros(3)) != checksum(torch.zeros(4)) != checksum(torch.zeros(5))
    assert checksum(torch.tensor(0.0)) != checksum(torch.tensor(-0.0))
    assert checksum(torch.nn.Parameter(wide)) == checksum(wide)


def test_every_bit_counts():
    t = torch.randint(0, 256, (37,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = {checksum(t)}
    for i in range(37 * 8):
        t[i // 8] ^= 1 << i % 8
        found.add(checksum(t))
        t[i // 8] ^= 1 << i % 8
    assert len(found) == 37 * 8 + 1


def test_two_flips_do_not_cancel():
    """The same bit in two words, which a weighted sum of words would not see where it is the highest."""
    for bit in range(64):
        t = torch.zeros(12, dtype=torch.int64)
        found = {checksum(t)}
        for i in range(12):
            for j in range(i):
                t[i] = t[j] = -(2**63) if bit == 63 else 1 << bit
                found.add(checksum(t))
                t[i] = t[j] = 0
        assert len(found) == 12 * 11 // 2 + 1
    words = torch.randint(-(2**63), 2**63 - 1, (50,), generator=torch.Generator().manual_seed(2))
    assert checksum(words) != checksum(words.flip(0)) and checksum(words) != checksum(words.roll(1))


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3))
    return net


def test_what_changed_is_named():
    net, draw = module(), random.Random(0)
    sums = Checksums(tensors_of(net))
    assert sums.changed() == [] and sums.num_bytes == 4 * (35 + 7 + 4 * 7 + 21 + 3) + 8
    flip(net[2].weight, draw)
    assert sums.changed() == ["2.weight"] and sums.changed(["0.weight"]) == []
    flip(net[1].running_mean, draw)
    assert sums.changed() == ["2.weight", "1.running_mean"]
    sums.renew(["2.weight"])
    assert sums.changed() == ["1.running_mean"]
    sums.renew()
    assert sums.changed() == []
    with pytest.raises(LongcatShapeError, match=r"Checksums: argument `names` is '0.wait', expected names"):
        sums.changed(["0.wait"])


def test_all_come_in_turn():
    sums = Checksums({name: torch.zeros(1) for name in "abcde"})
    assert [sums.turn(2) for _ in range(4)] == [["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"]]
    assert sums.turn(9) == ["d", "e", "a", "b", "c"] and Checksums({}).turn(3) == []
