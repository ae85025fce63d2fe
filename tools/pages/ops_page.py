"""Writes docs/ops.md from the list of ops, their docstrings and schemas.

python tools/pages/ops_page.py            # write docs/ops.md
python tools/pages/ops_page.py --check    # exit 1 if the file is not what this would write
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path

import torch

import longcat_ops
from longcat_ops.ops import registration
from longcat_ops.ops.registry import OPS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ops.md"
INTRO = """# Ops

Made by `tools/pages/ops_page.py` from the docstrings; a test compares. Each op is a Python function of `longcat_ops`,
an op of `torch.ops.longcat_ops` that writes into outputs it is given, and a plain-torch reference of the same name in
`longcat_ops.reference`.

T tokens, H hidden width, E = N FFN experts + Z zero experts, K choices per token, G local experts, I expert width, R
permuted rows. e4m3 is `torch.float8_e4m3fn`. Widths are multiples of 8; blocks of 128 at an edge may be smaller. Every
op takes 0 tokens, copies no argument, and refuses bad arguments before it writes (docs/errors.md). None has a gradient
formula: where grad mode is on, a tensor that requires a gradient is refused, and so is one under `torch.func`'s grad,
vjp, jvp or vmap; docs/training_gradients.md lists functions that have one. Tensors are dense: no sparse, nested, mkldnn
or quantised one, no subclass with operations of its own. `longcat_ops.supports(op, ...)` asks without running;
`longcat_ops.explain(op, ...)` adds bytes, flops, the floor of the time and a band that predicts it.
"""
SECTIONS = ("Args", "Returns", "Raises")


def page() -> str:
    parts = [INTRO, _table(), *(_section(op) for op in OPS)]
    return "\n".join(parts)


def _table() -> str:
    rows = ["| op | what it does | CPU tensors | CUDA tensors |", "| --- | --- | --- | --- |"]
    launchers = "".join(
        path.read_text(encoding="utf-8") for path in sorted((PAGE.parent.parent / "cuda").glob("*/*.cu"))
    )
    launched = set(re.findall(r"\bint lc_(\w+)\(", launchers))
    for op in OPS:
        cpu = _backend(op, registration.CPU_KERNELS, "C++")
        rows.append(f"| [`{op}`](#{op}) | {_summary(op)} | {cpu} | {_backend(op, launched, 'sm_90a')} |")
    return "\n".join(rows) + "\n"


def _backend(op: str, kernels: set[str], name: str) -> str:
    chain = OPS[op].chain
    if chain and kernels.issuperset(chain):
        return f"{name}, a chain of others"
    return name if op in kernels else "reference"


def _summary(op: str) -> str:
    """The first sentence; the two dots of a range do not end one."""
    text = " ".join(_doc(op).split("\n\n", 1)[0].split())
    return re.split(r"(?<=[^.][.:]) ", text)[0].rstrip(":.").replace("|", "\\|")


def _doc(op: str) -> str:
    return inspect.getdoc(getattr(longcat_ops, op))


def _section(op: str) -> str:
    """One op: signature, text, sections as lists, schema."""
    signature = str(inspect.signature(getattr(longcat_ops, op))).replace("'", "")
    body, current = [], []
    lines = _doc(op).splitlines()
    for line in lines:
        name = line.rstrip(":")
        if name in SECTIONS and line.endswith(":"):
            body.append("\n".join(current).strip())
            current = [f"**{name}**", ""]
        elif current[:1] and current[0].startswith("**"):
            current += _entry(line)
        else:
            current.append(line)
    body.append("\n".join(current).strip())
    schema = str(getattr(torch.ops.longcat_ops, op).default._schema)
    text = "\n\n".join(part for part in body if part)
    return f"## {op}\n\n```\n{op}{signature}\n```\n\n{text}\n\nSchema: `{schema}`\n"


def _entry(line: str) -> list[str]:
    """A line of a section: entries start at indent 4, their continuations further in."""
    if line.startswith("        "):
        return ["  " + line.strip()]
    return ["- " + line.strip()] if line.strip() else []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args(arguments)
    longcat_ops._library.load()
    text = page()
    if args.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.name} is up to date" if same else f"{PAGE.name} differs: run python tools/pages/ops_page.py")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.name}: {len(OPS)} ops")
    return 0


if __name__ == "__main__":
    sys.exit(main())
