"""Checks longcat_ops on one H100 or H200 within a budget: the most valuable questions first, each answer on disk as
soon as it is known. Downloads nothing, changes no setting of the device.

    ./tools/gpu_check --budget 360 --out results                   # on the machine with the GPU
    ./tools/gpu_check --budget 240 --out more --from results       # goes on where `results` stopped
    ./tools/gpu_check --budget 360 --dry-run                       # anywhere: the plan, and a rehearsal in the emulator

If a step crashes or outlives its limit, only that step is lost. The check uses the libraries in .device
(tools/device_bundle.py) if they fit, else it builds them here. --again repeats finished steps: names, beginnings of
names, or `failed` for all that did not pass. docs/hardware.md has the rest; tools/gpu_report makes pages of results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from conformance import golden
from device_check import environment as environments
from device_check.answers import Answers
from device_check.environment import ROOT, Environment
from device_check.plan import PLAN
from device_check.runner import Run, execute
from device_check.steps import Step
from run_conformance import read_results

BUILD_LIMIT_S = 400.0
RESERVE_S = 3.0  # for what follows the last step


def chosen(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    return [step for step in steps if not only or step.name.startswith(tuple(only))]


def plan_lines(steps: Sequence[Step], budget_s: float) -> list[str]:
    """The steps in order, with the seconds that each should take, and where the budget ends."""
    lines, at = [], 0.0
    for step in steps:
        mark = "" if at + step.seconds <= budget_s else "   (beyond the budget)"
        lines.append(f"{at:7.1f} s  +{step.seconds:5.1f}  limit {step.limit_s:4.0f}  {step.name}{mark}")
        at += step.seconds
    return [*lines, f"{at:7.1f} s  for all {len(steps)} steps; starting the worker comes on top, about 10 s"]


def find_environment(dry_run: bool, bundle: Path, budget_s: float) -> tuple[Environment | None, str]:
    """The bundle or a build made here, with a line on which was chosen and why."""
    if dry_run:
        return environments.rehearsal(), "the emulator"
    if not (problem := environments.bundle_problem(bundle)):
        return environments.bundle(bundle), "bundle"
    print(f"the bundle is not used: {problem}", flush=True)
    if environments.built_problem():
        status, output = execute(environments.build_command(), {}, min(BUILD_LIMIT_S, budget_s))
        if status != 0:
            return None, f"the bundle: {problem}; the build:\n{output[-2000:]}"
    return environments.built(), f"built here; the bundle: {problem}"


def forget(answers: Answers, steps: Sequence[Step], again: Sequence[str], out: Path) -> None:
    """Lets these steps run again: `failed`, or beginnings of names."""
    beginnings = tuple(name for name in again if name != "failed")
    for step in steps:
        status = answers.status(step.name)
        unwell = "failed" in again and status not in ("", "passed")
        if status and (unwell or step.name.startswith(beginnings)):
            del answers.steps[step.name]
            if step.name == "conformance":  # or its cases would count as done
                (out / "conformance.jsonl").unlink(missing_ok=True)


def write_golden(answers: Answers, out: Path) -> None:
    """Writes golden.json, in the form of tests/conformance/golden: the device's results, right or wrong."""
    results = read_results(out / "conformance.jsonl")
    given = {name: golden.unpack(line["bytes"]) for name, line in results.items() if "bytes" in line}
    facts = answers.steps.get("facts", {}).get("answer", {})
    if given and facts.get("device") and facts.get("driver_version"):
        runtime = facts["runtime_cuda"]
        origin = {"device": facts["device"], "driver": facts["driver_version"], "date": answers.runs[-1]["date"][:10],
                  "cuda": f"{runtime // 1000}.{runtime % 1000 // 10}"}  # fmt: skip
        golden.write(out / "golden.json", origin, given)


def summary(answers: Answers, steps: Sequence[Step], left: Sequence[str]) -> tuple[list[str], bool]:
    """What to print last, and whether all is well."""
    counts = Counter(answers.status(step.name) or "not run" for step in steps)
    bad = [step.name for step in steps if answers.is_finished(step.name) and answers.status(step.name) != "passed"]
    lines = [", ".join(f"{count} {status}" for status, count in counts.most_common())]
    lines += [f"not well: {name}: {answers.steps[name].get('text', '')[-300:]}" for name in bad]
    if left:
        lines.append(f"left for another call: {len(left)} steps, the first {left[0]}")
    return lines, not bad and not left


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, required=True, metavar="SECONDS", help="the call ends after them")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_check")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="DIR", help="answers of an earlier call, to go on")
    parser.add_argument("--bundle", type=Path, default=environments.BUNDLE)
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="beginnings of names: no other steps")
    parser.add_argument("--again", nargs="+", default=[], metavar="STEP", help="run these though they are finished")
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and run every step on this CPU")
    options = parser.parse_args(arguments)
    if not options.budget > 0:
        parser.error(f"--budget {options.budget:g}, expected more than 0 seconds")
    start = time.monotonic()
    steps = chosen(PLAN, options.only)
    if not steps:
        parser.error(f"--only {' '.join(options.only)}: no step's name begins so; --plan lists them")
    if options.plan or options.dry_run:
        print("\n".join(plan_lines(steps, options.budget)), flush=True)
    if options.plan:
        return 0
    out = options.out.resolve()
    if options.earlier and not (out / "answers.jsonl").exists():
        shutil.copytree(options.earlier, out, dirs_exist_ok=True)
    answers = Answers(out)
    if answers.runs and answers.runs[-1]["dry_run"] != options.dry_run:
        parser.error(f"{out} has the results of a {'real' if options.dry_run else 'dry'} run: give another --out")
    forget(answers, steps, options.again, out)
    os.chdir(ROOT)
    environment, libraries = find_environment(options.dry_run, options.bundle.resolve(), options.budget)
    answers.add({"run": {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "budget_s": options.budget, "libraries": libraries,
                         "dry_run": options.dry_run, "sources": environments.source_hash()}})  # fmt: skip
    if environment is None:
        print(f"no libraries: neither a bundle nor a build. {libraries}")
        return 1
    # A rehearsal's seconds are not those of a GPU, so it has no budget.
    budget = 3600.0 if options.dry_run else options.budget - (time.monotonic() - start) - RESERVE_S
    left = Run(answers, environment, out, budget, lambda line: print(line, flush=True)).steps(steps)
    write_golden(answers, out)
    lines, well = summary(answers, steps, left)
    print("\n".join(lines))
    return 0 if well else 1


def stop_on_sigterm() -> None:
    """Raises an exception, so that the running step is stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
