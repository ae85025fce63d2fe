"""Text in and out of a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import LongcatCheckpointError, LongcatUnsupportedError
from ..model import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """tokenizer.json of a checkpoint. Raises LongcatUnsupportedError without the package, LongcatCheckpointError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise LongcatUnsupportedError(
            "text needs the package tokenizers, which is not installed.\n  fix: pip install 'longcat_ops[model]'"
        ) from error
    file = Path(folder) / "tokenizer.json"
    if not files.exists(file):
        raise LongcatCheckpointError(
            f"{file} does not exist, and without it there is no text.\n"
            "  fix: copy the tokenizer.json of the published checkpoint into it, or call longcat_ops.generate with ids"
        )
    text = files.read_text(file, files.MAX_INDEX)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the package raises no narrower class
        raise LongcatCheckpointError(f"{file} is not a tokenizer: {error}") from error


def encode(tokenizer: Tokenizer, text: str, bos: int | None) -> list[int]:
    """The ids of `text` as a document starts: BOS in front, if the model has one."""
    return [*([] if bos is None else [bos]), *tokenizer.encode(text, add_special_tokens=False).ids]


def windows(tokenizer: Tokenizer, text: str, bos: int | None, length: int) -> tuple[list[Tensor], int]:
    """(a text in pieces of at most `length` tokens, i64[n] each, bytes of what these predict). Each begins with BOS, if
    the model has one, and so all of the text is predicted. Otherwise the first token of each piece is not.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    front = [] if bos is None else [bos]
    step = length - len(front)
    pieces = [torch.tensor([*front, *ids[i : i + step]]) for i in range(0, len(ids), step)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if front:
        return pieces, len(text.encode())
    return pieces, sum(len(tokenizer.decode(piece[1:].tolist()).encode()) for piece in pieces)


class TextStream:
    """Turns ids into text as they come. A character whose bytes lie in several tokens waits for the last of them."""

    def __init__(self, decode: Callable[[list[int]], str], context: list[int] | None = None) -> None:
        self._decode = decode
        # Decoders may treat the first token of a run differently, so each piece is decoded behind the one before it.
        self._ids = list(context or [])[-4:]
        self._start, self._shown = 0, len(self._ids)

    def push(self, token: int) -> str:
        """The text that `token` completes, often "" within a character."""
        self._ids.append(token)
        piece = self._rest()
        if piece.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return piece

    def finish(self) -> str:
        """What is still held back, broken characters as U+FFFD."""
        piece = self._rest()
        self._start = self._shown = len(self._ids)
        return piece

    def _rest(self) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(before) :]
