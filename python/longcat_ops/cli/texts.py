"""Texts of files, and the pieces of them that a network reads."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from torch import Tensor

from ..engine.text import load_tokenizer, windows
from ..errors import LongcatError, LongcatShapeError, message
from ..model import LongcatFlashConfig

MOST_TEXT = 64 << 20  # bytes of a prompt or a text: far more than any context holds
WINDOW = 1024  # tokens


def read_text(option: str, name: str) -> str:
    """The text of a file, or of stdin for -."""
    try:
        if name == "-" and sys.stdin is None:
            raise LongcatError(f"{option} -: stdin is closed.")
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as stream:
            data = stream.read(MOST_TEXT + 1)
        if len(data) > MOST_TEXT:
            raise LongcatError(f"{option} {name}: more than {MOST_TEXT >> 20} MiB.")
        return data.decode("utf-8")
    except OSError as error:
        raise LongcatError(f"{option} {name}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LongcatError(f"{option} {name}: not UTF-8 text ({error.reason}).") from error


def windows_of(args: argparse.Namespace, folder: str | Path, option: str, name: str) -> tuple[list[Tensor], int]:
    """The text of a file, cut by --window, in the tokens of a checkpoint folder; bytes of what these predict."""
    config, _ = LongcatFlashConfig.read_files(folder)
    longest = config.max_position_embeddings
    length = min(WINDOW, longest) if args.window is None else args.window
    if length > longest:
        raise LongcatShapeError(
            message(args.command, "--window", length, f"at most {longest}, max_position_embeddings")
        )
    found = windows(load_tokenizer(folder), read_text(option, name), config.bos_token_id, length)
    if not found[0]:
        raise LongcatShapeError(message(args.command, option, f"{name}, without text", "a text of some tokens"))
    return found
