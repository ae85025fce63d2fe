"""The arguments of every command. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .. import __version__
from . import perf_model_arguments

MOST_THREADS = 1024  # a typing mistake must not start a million
DTYPES = ("bfloat16", "float32", "float64")

_EXIT_CODES = """\
exit codes: 0 done; 1 `generate` found speculative and plain text to differ or a request of --prompts failed,
`bench-engine` or `c2t` tokens to differ, `certify` or `sdc-check` bits to differ, or `doctor` an op that cannot run;
2 the request, the checkpoint or the installation is at fault (the message says which, and what to do); 130
interrupted."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="longcat_ops",
        description="LongCat-Flash: decode, quantize, size and model a deployment, certify bits, inspect this machine.",
        epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--version", action="version", version=f"longcat_ops {__version__}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_bench_engine(commands)
    _add_c2t(commands)
    _add_plan(commands)
    _add_quantize(commands)
    _add_grow(commands)
    _add_evaluate(commands)
    _add_timeline(commands)
    text = "what a deployment on many GPUs should reach and cost, by the report's analysis; solve, sweep, plot"
    perf_model_arguments.add(_command(commands, "perf-model", text))
    _add_certify(commands)
    _add_sdc_check(commands)
    doctor = _command(commands, "doctor", "say, per op, which backend would run here and why; needs no torch")
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return p


def _command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


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
    beta = "verify only drafts that c2t.json of the checkpoint scores so high, 0 .. 1 (default: all drafts)"
    choice.add_argument("--beta", type=float, metavar="B", help=beta)
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


def _add_c2t(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "c2t", "train the classifier that says which drafts of the MTP head are worth verifying")
    p.add_argument("folder", nargs="?", metavar="CHECKPOINT", help="its folder (default: checkpoints/longcat-tiny)")
    p.add_argument("--checkpoint", metavar="DIR", help="the same; wins over CHECKPOINT")
    p.add_argument("--prompts", metavar="FILE", required=True, help="as for `generate`: a prompt a line, 10 at least")
    p.add_argument("--output", metavar="FILE", help="default: c2t.json in the checkpoint's folder")
    p.add_argument("--beta", type=float, metavar="B", help="that the file says (default: the best one here)")
    p.add_argument("--max-new-tokens", type=_integer(2), default=64, metavar="N", help="of each prompt (default: 64)")
    p.add_argument("--batch", type=_integer(1, 4096), default=16, metavar="N", help="decoded at once (default: 16)")
    p.add_argument("--units", type=_integer(1, 256), default=48, metavar="N", help="of the hidden layer (default: 48)")
    p.add_argument("--steps", type=_integer(1), default=3000, metavar="N", help="of the training (default: 3000)")
    p.add_argument("--seed", type=_integer(0, 2**62 - 1), default=0, help="of the training (default: 0)")
    betas = "that the texts which judge are decoded with (default: 0.3,0.5,0.6,0.7,0.8)"
    p.add_argument("--betas", type=_numbers, default=[0.3, 0.5, 0.6, 0.7, 0.8], metavar="B,..", help=betas)
    p.add_argument("--rounds", type=_integer(1, 1000), default=5, metavar="N", help="of all ways in turns (default: 5)")
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


def _add_quantize(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "quantize", "write the block FP8 form of a checkpoint, or the bf16 form of an FP8 one")
    p.add_argument("source", metavar="SOURCE", help="checkpoint folder; it stays as it is")
    p.add_argument("dest", metavar="DEST", help="new or empty folder; an interrupted run goes on in it")
    p.add_argument("--to", choices=("fp8", "bf16"), default="fp8", help="default: fp8")
    which = (
        "which projections are FP8: all that can be, none, as --calibrate finds, as a JSON policy says (default: all)"
    )
    p.add_argument("--policy", default="all", metavar="all|none|auto|FILE", help=which)
    p.add_argument("--shard-mb", type=_integer(1, 10**6), default=5000, metavar="N", help="of a file (default: 5000)")
    p.add_argument("--threads", type=_integer(1, MOST_THREADS), metavar="N", help="CPU threads of torch")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")
    text = "a projection stays bf16 if its inputs and its errors are large; the report of it lies in DEST"
    auto = p.add_argument_group("with --policy auto", text)
    auto.add_argument("--calibrate", metavar="FILE", help="the text that the network reads for it")
    _add_window(auto)
    auto.add_argument("--max-input", type=float, metavar="X", help="inputs above are large (default: 28672)")
    relative = "and errors are large where a block's relative error is above it (default: 0.03125)"
    auto.add_argument("--max-relative", type=float, metavar="X", help=relative)
    absolute = "and its absolute one above this one (default: 0.0625 / sqrt(hidden_size))"
    auto.add_argument("--max-absolute", type=float, metavar="X", help=absolute)


def _add_grow(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "grow", "stack the layers of a checkpoint into a deeper one, for training to go on with")
    p.add_argument("source", metavar="SOURCE", help="checkpoint folder; it stays as it is")
    p.add_argument("dest", metavar="DEST", help="new or empty folder; an interrupted run goes on in it")
    p.add_argument("--factor", type=_integer(2), default=2, metavar="R", help="how often they are stacked (default: 2)")
    p.add_argument("--shard-mb", type=_integer(1, 10**6), default=5000, metavar="N", help="of a file (default: 5000)")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    p = _command(commands, "evaluate", "judge a checkpoint by a text, alone or beside another form of it")
    p.add_argument("folder", metavar="CHECKPOINT", help="its folder")
    p.add_argument("--text", metavar="FILE", required=True, help="the text, which it was not trained on; - is stdin")
    p.add_argument("--against", metavar="OTHER", help="a folder with the same shapes, such as what was quantized")
    _add_window(p)
    p.add_argument("--dtype", choices=DTYPES, help="of activations and what is not FP8")
    p.add_argument("--precision", metavar="bf16|fp8|FILE", help="of CHECKPOINT's projections (default: as stored)")
    p.add_argument("--threads", type=_integer(1, MOST_THREADS), metavar="N", help="CPU threads of torch")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _add_window(p: argparse._ActionsContainer) -> None:
    window = "the text is cut into pieces of so many tokens, which begin anew (default: 1024)"
    p.add_argument("--window", type=_integer(2), metavar="N", help=window)


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


def _add_sdc_check(commands: argparse._SubParsersAction) -> None:
    text = "look for silent data corruption: weights that change at rest, a forward whose bits differ from run to run"
    p = _command(commands, "sdc-check", text)
    p.add_argument("folder", nargs="?", metavar="CHECKPOINT", help="its folder (default: checkpoints/longcat-tiny)")
    p.add_argument("--rounds", type=_integer(1), default=2, metavar="N", help="of two forwards each (default: 2)")
    p.add_argument("--tokens", type=_integer(2, 1 << 20), default=64, metavar="N", help="of a forward (default: 64)")
    p.add_argument("--text", metavar="FILE", help="the tokens are the first of this text (default: random ones)")
    p.add_argument("--seed", type=_integer(0, 2**62 - 1), default=0, help="of random tokens (default: 0)")
    _add_loading(p)
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _integers(least: int, most: int) -> Callable[[str], list[int]]:
    one = _integer(least, most)
    return lambda text: [one(part) for part in text.split(",")]


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
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
