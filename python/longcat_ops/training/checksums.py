"""Checksums of tensors: what finds a weight whose bits change although nobody writes to it.

Running a computation twice cannot see such a weight, because both runs read it. Silent data corruption of this kind is
one of the two that the LongCat-Flash technical report (arXiv:2509.01322) guards against; the other one, a result that
differs between two runs, is looked for by `determinism.check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from .checks import require

_WORDS = 1 << 17  # of a block: 1 MiB, so that a block and its factors stay in a cache
_MASK, _LOW = (1 << 64) - 1, (1 << 32) - 1
_STEP = 0x9E3779B97F4A7C15  # odd: 2^64 divided by the golden ratio (Knuth, TAOCP 3, 6.4)


@lru_cache(maxsize=8)
def _factors(device: torch.device) -> Tensor:
    """i64[_WORDS], odd, so that multiplication by each of them modulo 2^64 can be undone."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**63), 2**63 - 1, (_WORDS,), generator=generator) | 1).to(device)


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """64 bits that depend on every bit of a dense tensor of any dtype, on the CPU or a GPU; equal on both.

    The words x_i of 64 bits, the last one filled up with zeros, become f_i * m(f_i * x_i) mod 2^64, with
    m(y) = y xor (y >> 32) and odd factors f_i, and are added up; blocks of words are joined by s <- s * k + block,
    k odd. Each step can be undone, so two tensors that differ within one word never have the same checksum. Of other
    pairs about one in 2^64 does. Sums of integers modulo 2^64 have no order, so the checksum has none either.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.data_ptr() % 8:
        flat = flat.clone()
    found, factors = flat.numel(), _factors(flat.device)
    whole = found // (8 * _WORDS) * 8 * _WORDS
    blocks = [_block(words, factors) for words in flat[:whole].view(torch.int64).split(_WORDS)] if whole else []
    if whole < found:
        words = torch.nn.functional.pad(flat[whole:], (0, -found % 8)).view(torch.int64)
        blocks.append(_block(words, factors[: len(words)]))
    for block in torch.stack(blocks).tolist() if len(blocks) > 1 else map(int, blocks):
        found = (found * _STEP + block) & _MASK
    return found


def _block(words: Tensor, factors: Tensor) -> Tensor:
    mixed = words * factors
    mixed.bitwise_xor_((mixed >> 32).bitwise_and_(_LOW))  # the shift is arithmetic: its upper half is dropped
    return mixed.mul_(factors).sum()


class Checksums:
    """The checksums of named tensors as they were when this was made, or when `renew` was called last.

    Args:
        tensors: by name; they are held, not copied. `tensors_of(module)` gives those of a module.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self._sums: dict[str, int] = {}
        self._turn = 0
        self.renew()

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def renew(self, names: Iterable[str] | None = None) -> None:
        """Takes the checksums of these tensors again, None: of all, after somebody wrote to them."""
        for name in self._known(names):
            self._sums[name] = checksum(self.tensors[name])

    def changed(self, names: Iterable[str] | None = None) -> list[str]:
        """Which of these tensors, None: of all, have other bits than when their checksums were taken."""
        return [name for name in self._known(names) if checksum(self.tensors[name]) != self._sums[name]]

    def turn(self, count: int) -> list[str]:
        """The names of the next `count` tensors, and of all in turn if it is called again and again."""
        names = list(self.tensors)
        found = [names[(self._turn + i) % len(names)] for i in range(min(count, len(names)))]
        self._turn = (self._turn + len(found)) % max(1, len(names))
        return found

    def _known(self, names: Iterable[str] | None) -> list[str]:
        names = list(self.tensors if names is None else names)
        for name in names:
            require(name in self.tensors, "Checksums", "names", repr(name), "names of its tensors")
        return names


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
