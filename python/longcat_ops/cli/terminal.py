"""Output of the commands on a terminal: pieces of text in colour, a line while something takes a while."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def writer() -> Callable[[str, bool], None]:
    """Prints pieces at once, accepted drafts in colour if stdout is a terminal and rich is installed."""
    screen = console()
    if screen is not None:
        from rich.text import Text

        return lambda piece, drafted: screen.print(Text(piece, style="green" if drafted else ""), end="")

    def write(piece: str, drafted: bool) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    return write


def console() -> Console | None:
    """rich's console if stdout is a terminal with colours and rich is installed."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    screen = Console(soft_wrap=True)
    return screen if screen.color_system and not screen.no_color else None


@contextmanager
def status(text: str) -> Iterator[None]:
    """A line on stderr while something takes a while; only on a terminal, gone afterwards."""
    shown = sys.stderr.isatty()
    if shown:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r" + " " * len(text) + "\r", end="", file=sys.stderr, flush=True)


class NoBar:
    """A progress bar that shows nothing."""

    def update(self, _: int) -> None: ...

    def set_postfix_str(self, *_: object, **__: object) -> None: ...

    def close(self) -> None: ...


def bar(text: str, total: int, done: int = 0, unit: str = "request") -> Any:
    """A progress bar on stderr, if that is a terminal and tqdm is installed. unit "B": of bytes, in KiB, MiB, GiB."""
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    scale = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
    return tqdm(total=total, initial=done, unit=unit, desc=text, disable=None, **scale)


class Bars:
    """A progress bar for each thing that is done, one after another; close it in the end."""

    def __init__(self, unit: str) -> None:
        self._unit, self._what, self._done, self._bar = unit, "", 0, None

    def show(self, what: str, done: int, total: int) -> None:
        """So much of `what` is done."""
        if what != self._what:
            self.close()
            self._what, self._done, self._bar = what, 0, bar(what, total, unit=self._unit)
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._what, self._bar = "", None
