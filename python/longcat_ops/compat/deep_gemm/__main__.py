"""`python -m longcat_ops.compat.deep_gemm`: the calls of DeepGEMM's tests, run on the CPU backend; which pass, which
are refused, and why."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..._environment import backend
from ...errors import LongcatUnsupportedError
from . import _runs
from ._forms import Form, forms

HEADER = """\
Call forms of the tests of DeepGEMM 2.6.1 on SM90, run on CPU tensors (backend: {backend}).
diff is calc_diff to the float64 product of the same FP8 operands, in units of its limit: 3e-6 for bf16, 5e-8 for fp16,
1e-11 for fp32. DeepGEMM's tests ask for 1e-3 to the product before quantisation, which here holds for casts alone.
Sizes are smaller, for a CPU's sake; DeepGEMM's are beside them. N is divided by {n}, K by {k}, up to a multiple of 8.
Left out: test_sanitizer.py and test_lazy_init.py, which call no op of their own, and test_legacy.py, Triton on A100.
"""


@dataclass(frozen=True)
class Result:
    """verdict: passes, refused or FAILS. diff: in units of the limit, if the form computes. why: if it did not pass."""

    form: Form
    verdict: str
    diff: float | None = None
    why: str = ""


def run(form: Form) -> Result:
    try:
        diff = form.run()
    except LongcatUnsupportedError as error:
        why = " ".join(str(error).split())
        return Result(form, "refused" if form.refused else "FAILS", why=why)
    except Exception as error:
        return Result(form, "FAILS", why=f"{type(error).__name__}: {' '.join(str(error).split())}")
    if form.refused:
        return Result(form, "FAILS", why="it was to be refused")
    return (
        Result(form, "passes", diff) if diff < 1 else Result(form, "FAILS", diff, f"a difference of {diff:.2f} limits")
    )


def lines(results: Iterable[Result]) -> list[str]:
    """The table: one line a form under the name of its file, and one with the reason where there is one."""
    out, file = [], None
    for result in results:
        form = result.form
        if form.file != file:
            file = form.file
            out += ["", file]
        diff = "" if result.diff is None else f"{result.diff:.2f}"
        row = f"  {result.verdict:<8}{diff:>5}  {form.call:<36}  {form.theirs:<36}  {form.here}"
        out.append(row.rstrip())
        if result.why:
            out += textwrap.wrap(result.why, 118, initial_indent=" " * 17, subsequent_indent=" " * 17)
    return out


def main(arguments: list[str] | None = None) -> int:
    """1 if a form that should pass does not, or one that should be refused is not; else 0."""
    argparse.ArgumentParser(prog="python -m longcat_ops.compat.deep_gemm", description=__doc__).parse_args(arguments)
    print(HEADER.format(backend=backend(), n=_runs.BY[0], k=_runs.BY[1]))
    print(f"  {'verdict':<8}{'diff':>5}  {'call':<36}  {'sizes of DeepGEMM':<36}  sizes here")
    results = [run(form) for form in forms()]
    print("\n".join(lines(results)))
    tally = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("passes", "refused", "FAILS")}
    print(f"\n{len(results)} forms: {tally['passes']} pass, {tally['refused']} refused, {tally['FAILS']} fail")
    return 1 if tally["FAILS"] else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the products are too small to share
    sys.exit(main())
