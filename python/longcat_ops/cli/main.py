"""The command line: `python -m longcat_ops generate | bench-engine | plan | quantize | evaluate | timeline | certify |
doctor`. Parsing alone imports no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__, _library
from ..errors import LongcatError
from . import conversion_options
from .options import command as _command
from .options import integer as _integer
from .options import integers as _integers

BAD_INPUT, DIFFERENT, INTERRUPTED = 2, 1, 130
MOST_THREADS = 1024  # a typing mistake must not start a million
DTYPES = ("bfloat16", "float32", "float64")

_EXIT_CODES = """\
exit codes: 0 done; 1 `generate` found speculative and plain text to differ or a request of --prompts failed,
`bench-engine` found tokens to differ, `certify` rows to differ, or `doctor` an op that cannot run; 2 the request, the
checkpoint or the installation is at fault (the message says which, and what to do); 130 interrupted."""


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
    parser = _parser()
    args = parser.parse_args(argv)
    module = _module_of_generate(parser, args) if args.command == "generate" else args.command.replace("-", "_")
    if args.command != "doctor":
        _library.require_torch()
    return importlib.import_module(f"{__package__}.{module}").run(args)


def _module_of_generate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Which module serves `generate`; options that belong to the other one are refused."""
    of_batch = ("output", "batch", "max_tokens_in_cache", "steps_per_schedule", "stop")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="longcat_ops",
        description="LongCat-Flash: decode, quantize, size and model a deployment, certify bits, inspect this machine.",
        epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"longcat_ops {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_bench_engine(commands)
    _add_plan(commands)
    conversion_options.add_quantize(commands)
    conversion_options.add_evaluate(commands)
    _add_timeline(commands)
    _add_certify(commands)
    doctor = _command(commands, "doctor", "say, per op, which backend would run here and why; needs no torch")
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "generate", "continue a prompt, or a file of prompts, and report how the decoding went")
    p.add_argument("folder", nargs="?", metavar="DIR", help="checkpoint folder (default: checkpoints/longcat-tiny)")
    p.add_argument("--checkpoint", metavar="DIR", help="the same; wins over DIR")
    prompt = p.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="default: the opening of a psalm")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file; - is stdin")
    prompt.add_argument("--prompts", metavar="FILE", help="many prompts, decoded together (see below)")
    p.add_argument("--max-new-tokens", type=_integer(1), default=128, metavar="N")
    choice = p.add_argument_group("choice of tokens")
    choice.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    choice.add_argument("--top-k", type=int, default=0, metavar="K", help="0 (default) is off")
    choice.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 (default) is off")
    choice.add_argument("--seed", type=int, help="default: a fresh one, which the report shows")
    choice.add_argument(
        "--speculative", action=argparse.BooleanOptionalAction, default=True, help="draft with the MTP head"
    )
    choice.add_argument(
        "--draft", choices=("argmax", "sampled"), default="argmax", help="how the head drafts when sampling"
    )
    _add_many(p)
    _add_loading(p)
    report = p.add_argument_group("report")
    report.add_argument("--report", action=argparse.BooleanOptionalAction, default=True, help="what follows the text")
    compare = "decode plainly too, compare ids and speed (default: when greedy and speculative)"
    report.add_argument("--compare", action=argparse.BooleanOptionalAction, default=None, help=compare)
    forced = "agreement of the MTP head with the target over a given text"
    report.add_argument("--teacher-forced", action=argparse.BooleanOptionalAction, default=True, help=forced)
    report.add_argument(
        "--text", metavar="FILE", help="that text (default: heldout.txt of the checkpoint, else what was generated)"
    )
    report.add_argument("--json", action="store_true", help="one JSON object instead of text and report")


def _add_many(p: argparse.ArgumentParser) -> None:
    text = """a prompt a line; in a file named *.jsonl an object a line: "prompt" or "ids", and, where they differ from
the options, "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop"; "id" is kept. Each text is the one that
the prompt has alone."""
    many = p.add_argument_group("with --prompts", text)
    many.add_argument("--output", metavar="FILE", help="JSON, a line a request; if it is there, the run goes on in it")
    many.add_argument("--batch", type=_integer(1, 4096), metavar="N", help="decoded at once, at most (default: 16)")
    many.add_argument("--stop", action="append", metavar="TEXT", help="ends a text ahead of it; may be repeated")
    default = "of all requests that are decoded at once (default: what the longest ones need)"
    many.add_argument("--max-tokens-in-cache", type=_integer(1, 2**31), metavar="N", help=default)
    steps = "steps between two looks of the host (default: 4)"
    many.add_argument("--steps-per-schedule", type=_integer(1, 64), metavar="N", help=steps)


def _add_loading(p: argparse.ArgumentParser) -> None:
    load = p.add_argument_group("loading")
    load.add_argument("--dtype", choices=DTYPES, help="of activations and unquantised weights (default: as stored)")
    load.add_argument("--precision", metavar="bf16|fp8|FILE", help="of projections (default: as stored)")
    load.add_argument("--device", default="cpu")
    load.add_argument("--threads", type=_integer(1, MOST_THREADS), metavar="N", help="CPU threads of torch")


def _add_bench_engine(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "bench-engine", "time decoding many prompts together beside one by one, on this machine")
    p.add_argument("folder", nargs="?", metavar="CHECKPOINT", help="its folder (default: checkpoints/longcat-tiny)")
    p.add_argument("--checkpoint", metavar="DIR", help="the same; wins over CHECKPOINT")
    many = "at once; several are timed beside each other (default: 1,4,16)"
    p.add_argument("--batch", type=_integers(1, 4096), default=[1, 4, 16], metavar="N,..", help=many)
    steps = "between two looks of the host (default: 1,4)"
    p.add_argument("--steps-per-schedule", type=_integers(1, 64), default=[1, 4], metavar="N,..", help=steps)
    p.add_argument("--prompts", metavar="FILE", help="as for `generate` (default: random ids of mixed lengths)")
    count = "random prompts (default: the largest batch)"
    p.add_argument("--requests", type=_integer(1, 1 << 20), metavar="N", help=count)
    p.add_argument("--max-new-tokens", type=_integer(2), default=64, metavar="N", help="of each prompt (default: 64)")
    p.add_argument("--rounds", type=_integer(1, 1000), default=5, metavar="N", help="of all ways in turns (default: 5)")
    p.add_argument("--seed", type=_integer(0, 2**62 - 1), default=0, help="of random prompts (default: 0)")
    _add_loading(p)
    p.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _add_plan(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "plan", "size one rank from the config and index alone: bytes, KV per token, fit on a card")
    p.add_argument("path", metavar="DIR|config.json", help="a checkpoint folder (weights are not read) or its config")
    p.add_argument("--ep", type=int, default=1, metavar="N", help="split the FFN experts of a layer over N ranks")
    p.add_argument("--tp", type=int, default=1, metavar="N", help="split dense FFNs and vocabulary over N ranks")
    form = "what else they split: nothing, or the attention heads, too (default: token)"
    p.add_argument("--tp-form", choices=("token", "all_reduce"), default="token", help=form)
    p.add_argument(
        "--precision", default="stored", metavar="stored|bf16|fp8|FILE", help="of projections (default: stored)"
    )
    p.add_argument("--mtp", action=argparse.BooleanOptionalAction, default=True, help="count the MTP head")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _add_timeline(commands: argparse._SubParsersAction) -> None:
    text = "show when each stage of a layer of a decode step runs: modelled, or measured on a GPU"
    p = _command(commands, "timeline", text)
    p.add_argument("--sequences", type=_integer(1), default=96, metavar="N", help="of a rank (default: 96)")
    p.add_argument("--rows", type=_integer(1), default=2, metavar="N", help="of each: 1 + drafts (default: 2)")
    p.add_argument("--context", type=_integer(1), default=5000, metavar="N", help="rows of each (default: 5000)")
    p.add_argument("--json", action="store_true", help="one JSON object instead of the picture")
    model = p.add_argument_group("modelled", "what a deployment with experts on several ranks should do")
    model.add_argument("--device", choices=("H800", "H100", "H200"), help="default: H800")
    model.add_argument("--ranks", type=_integer(2), metavar="N", help="that share the experts (default: 128)")
    measure = p.add_argument_group("measured", "what one rank does on the GPU that is here; its rows go nowhere")
    measure.add_argument("--measure", action="store_true", help="by events of CUDA, with random weights")
    measure.add_argument("--layers", type=_integer(1, 28), metavar="N", help="of that network (default: 4)")
    measure.add_argument("--checkpoint", metavar="DIR", help="the network of this folder in its place")


def _add_certify(commands: argparse._SubParsersAction) -> None:
    text = "compare the bits of rows alone and together, on one rank and on several, and print one verdict"
    p = _command(commands, "certify", text)
    p.add_argument("folder", nargs="?", metavar="DIR", help="checkpoint folder (default: checkpoints/longcat-tiny)")
    p.add_argument("--ranks", type=_integers(1, 64), default=[1, 2, 4, 8], metavar="N,..", help="default: 1,2,4,8")
    p.add_argument("--rows", type=_integer(2, 4096), default=33, metavar="N", help="of the largest call (default: 33)")
    p.add_argument("--precision", metavar="bf16|fp8|FILE", help="of projections (default: as stored)")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")
