"""Pages of the cache for requests that grow: who may take some, so that each can finish."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ..errors import LongcatShapeError, message


@dataclass
class _Holder:
    most: int  # pages that it may come to need
    pages: list[int] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.most - len(self.pages)


class PagePool:
    """`total` pages. A holder says what it may need at most, and takes pages as it grows.

    A page is handed out only if an order remains in which every holder can get all it may need from free pages and from
    those that holders ahead of it give back (the banker's algorithm: Dijkstra, EWD 623). So holders may have claims far
    beyond the pool together, none ever waits for ever, and nothing that a holder has is taken from it.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise LongcatShapeError(message("PagePool", "total", total, "1 or more"))
        self.total = total
        self._free = list(range(total))[::-1]
        self._holders: dict[Hashable, _Holder] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def held(self, holder: Hashable) -> list[int]:
        """The pages of a holder, in the order in which it took them."""
        return list(self._holders[holder].pages)

    def enter(self, holder: Hashable, most: int, pages: int) -> list[int] | None:
        """A new holder takes its first pages; None, and it is none, if it has to wait."""
        if holder in self._holders or not 0 <= pages <= most <= self.total:
            expected = f"a new holder, pages <= most <= {self.total}"
            raise LongcatShapeError(message("PagePool", "most", f"{most} for {pages} pages", expected))
        self._holders[holder] = _Holder(most)
        taken = self.take(holder, pages)
        if taken is None:
            del self._holders[holder]
        return taken

    def take(self, holder: Hashable, pages: int) -> list[int] | None:
        """More pages; None, and nothing changes, if the holder has to wait for others."""
        one = self._holders[holder]
        if not 0 <= pages <= one.missing:
            raise LongcatShapeError(message("PagePool", "pages", pages, f"0 .. {one.missing}, what was claimed"))
        if pages > len(self._free):
            return None
        one.pages.extend(taken := [self._free.pop() for _ in range(pages)])
        if self._is_safe():
            return taken
        del one.pages[len(one.pages) - pages :]
        self._free.extend(reversed(taken))
        return None

    def leave(self, holder: Hashable) -> list[int]:
        """A holder gives all its pages back. Returns them."""
        pages = self._holders.pop(holder).pages
        self._free.extend(reversed(pages))
        return pages

    def _is_safe(self) -> bool:
        """Whether all holders can finish, those that miss least first: no other order helps if this one does not."""
        there = len(self._free)
        for one in sorted(self._holders.values(), key=lambda h: h.missing):
            if one.missing > there:
                return False
            there += len(one.pages)
        return True
