"""Parts of parsers that several commands share. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """The parser of a command; text: what it does, in lower case and without a full stop."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def integers(least: int, most: int) -> Callable[[str], list[int]]:
    """Reads integers with commas between them."""
    one = integer(least, most)
    return lambda text: [one(part) for part in text.split(",")]


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads an integer in least .. most."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also of more digits than Python reads
            value = least - 1
        if value < least or (most is not None and value > most):
            expected = f">= {least}" if most is None else f"in {least} .. {most}"
            raise argparse.ArgumentTypeError(f"{_short(text)} is not an integer {expected}")
        return value

    return parse


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:20]!r}... of {len(text)} characters"
