"""The command line: `python -m longcat_ops generate | bench-engine | c2t | plan | quantize | grow | evaluate |
timeline | perf-model | certify | sdc-check | doctor`. Parsing alone imports no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from .. import _library
from ..errors import LongcatError
from . import arguments

BAD_INPUT, DIFFERENT, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A `LongcatError`, a file or a stream that cannot be used, becomes one
    message on stderr and code 2.
    """
    closed = _open_streams()
    try:
        if closed:
            raise LongcatError("stdout is closed: there is nowhere to write to.")
        try:
            code = _run(argv)
        except SystemExit:  # --help, --version, and what argparse refuses
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except LongcatError as error:
        return _failed(f"longcat_ops: {error}", BAD_INPUT)
    except KeyboardInterrupt:
        return _failed("\ninterrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has gone
        _discard(sys.stdout)
        return 0
    except OSError as error:
        named = f"{error.filename}: " if error.filename is not None else ""
        return _failed(f"longcat_ops: {named}{error.strerror or error}.", BAD_INPUT)


def _run(argv: Sequence[str] | None) -> int:
    parser = arguments.parser()
    args = parser.parse_args(argv)
    module = _module_of_generate(parser, args) if args.command == "generate" else args.command.replace("-", "_")
    if args.command not in ("doctor", "perf-model"):
        _library.require_torch()
    return importlib.import_module(f"{__package__}.{module}").run(args)


def _module_of_generate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Which module serves `generate`; options that belong to the other one are refused."""
    of_batch = ("output", "batch", "max_tokens_in_cache", "steps_per_schedule", "stop")
    if args.beta is not None and not args.speculative:
        parser.error("generate: --beta does not go with --no-speculative")
    of_one = [name for name in ("compare", "text") if getattr(args, name) not in (None, False)]
    of_one += ["draft sampled"] if args.draft != "argmax" else []
    if args.prompts is None:
        for name in of_batch:
            if getattr(args, name) is not None:
                parser.error(f"generate: --{name.replace('_', '-')} needs --prompts FILE")
        return "generate"
    if of_one:
        parser.error(f"generate: --{of_one[0]} does not go with --prompts")
    if args.output is None:
        parser.error("generate: --prompts needs --output FILE")
    return "batch"


def _open_streams() -> bool:
    """Make all three standard streams usable. True if stdout was closed from the start."""
    closed = sys.stdout is None
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # the next file opened would take the place of a stream
        pass
    os.close(spare)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        with contextlib.suppress(AttributeError, ValueError):
            getattr(sys, name).reconfigure(errors="replace")  # text may hold characters that the terminal lacks
    return closed


def _failed(text: str, code: int) -> int:
    """Say what is wrong, if stderr takes it; drop what stdout cannot take, so that nothing fails at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)
    return code


def _discard(stream: object) -> None:
    """Discards everything that is written to `stream` from here on."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
