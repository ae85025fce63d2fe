"""The latent key/value cache: one row of kv_lora_rank + qk_rope_head_dim elements per token and attention, in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from .config import LongcatFlashConfig

PAGE_SIZE = 64  # rows; the page of the public Hopper MLA decode kernels


class LatentCache:
    """Paged rows for `batch_size` sequences of at most `max_length` tokens, which share `num_pages` pages of PAGE_SIZE
    rows; by default there are enough for all of them.

    `lengths` i32[B], on the device, counts the valid rows of each sequence. A decode step advances it there; rolling
    back is `truncate`: nothing is copied, the rows past the length are written again by the next step. Slot
    2 * layer + i is attention i of that layer; the last slot is the MTP head's when there is one. The host hands pages
    out with `reserve` and takes them back with `release`; it keeps no lengths.
    """

    def __init__(self, config: LongcatFlashConfig, batch_size: int, max_length: int, *, num_slots: int,
                 num_pages: int | None = None, dtype: torch.dtype = torch.bfloat16,
                 device: torch.device | str = "cpu") -> None:  # fmt: skip
        pages_each = -(-max_length // PAGE_SIZE)
        num_pages = batch_size * pages_each if num_pages is None else num_pages
        for name, value in (("batch_size", batch_size), ("max_length", max_length), ("num_pages", num_pages)):
            if value < 1:
                raise LongcatShapeError(message("LatentCache", name, value, "1 or more"))
        self.batch_size, self.max_length = batch_size, max_length
        # Zeros, not empty: whole pages are read, and weight 0 times a NaN in a masked row would still be NaN.
        shape = (num_slots, num_pages, PAGE_SIZE, config.latent_width)
        self.rows = torch.zeros(shape, dtype=dtype, device=device)  # [slots, pages, PAGE_SIZE, 512+64]
        # Pages of each sequence in order, for kernels: a token finds its rows by its sequence and position. -1: none.
        self.page_table = torch.full((batch_size, pages_each), -1, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self.pages: list[list[int]] = [[] for _ in range(batch_size)]
        self._free = list(range(num_pages))[::-1]

    def reserve(self, sequence: int, length: int) -> None:
        """Make rows 0 .. length-1 of `sequence` writable. Raises LongcatShapeError beyond max_length."""
        if length > self.max_length:
            raise LongcatShapeError(
                message(
                    "LatentCache",
                    "max_length",
                    self.max_length,
                    f"at least {length}",
                    f"sequence {sequence} grows to it",
                )
            )
        pages = self.pages[sequence]
        while len(pages) * PAGE_SIZE < length:
            # A page right behind the last one keeps the sequence contiguous, so that `read` is a view.
            after = pages[-1] + 1 if pages else -1
            pages.append(self._free.pop(self._free.index(after)) if after in self._free else self._free.pop())
            self.page_table[sequence, len(pages) - 1] = pages[-1]

    def add_pages(self, sequence: int, pages: list[int]) -> None:
        """These pages behind those that `sequence` has. Who uses this in place of `reserve` hands pages out itself."""
        own = self.pages[sequence]
        new, table = torch.tensor(pages, dtype=torch.int32), self.page_table
        new = new if table.device.type == "cpu" else new.pin_memory().to(table.device, non_blocking=True)
        table[sequence, len(own) : len(own) + len(pages)] = new
        own.extend(pages)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget rows >= length of `sequence`; its pages stay."""
        if not 0 <= length <= len(self.pages[sequence]) * PAGE_SIZE:
            limit = len(self.pages[sequence]) * PAGE_SIZE
            raise LongcatShapeError(message("LatentCache.truncate", "length", length, f"0 .. {limit} reserved rows"))
        self.lengths[sequence] = length

    def release(self, sequence: int) -> None:
        """Empty `sequence` and give its pages back."""
        self._free.extend(reversed(self.pages[sequence]))
        self.clear(sequence)

    def clear(self, sequence: int) -> None:
        """Empty `sequence`, its pages zeroed: a NaN left in one would reach its next owner."""
        self.rows[:, self.pages[sequence]] = 0
        self.pages[sequence] = []
        self.page_table[sequence] = -1
        self.lengths[sequence] = 0

    def read(self, slot: int, sequence: int, length: int) -> Tensor:
        """[P, 512+64], P a multiple of PAGE_SIZE: the pages that hold rows 0 .. length-1; a view if adjacent."""
        pages = self.pages[sequence][: -(-length // PAGE_SIZE)]
        if pages[-1] - pages[0] + 1 == len(pages) and pages == sorted(pages):
            return self.rows[slot, pages[0] : pages[-1] + 1].flatten(0, 1)
        return self.rows[slot, pages].flatten(0, 1)
