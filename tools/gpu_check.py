"""Checks longcat_ops on one H100 or H200, in parts of at most nine minutes. Downloads nothing, changes no setting.

    ./tools/gpu_check --part 1 --out results     # device probe, conformance of every primitive
    ./tools/gpu_check --part 2 --out results     # the tests on the CUDA backend
    ./tools/gpu_check --part 3 --out results     # compute-sanitizer
    ./tools/gpu_check --part 4 --out results     # benches
    ./tools/gpu_check --part 1 --dry-run         # all of the control flow, none of the commands

A part that is run again goes on where it stopped: what is finished in the output folder is skipped. It uses the
libraries in .device (tools/device_bundle.py) if they fit, else it builds them here. docs/hardware.md has the rest.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from conformance import golden
from device_check import environment as environments
from device_check.environment import ROOT, Environment
from device_check.runner import Report, Step, run_part
from device_check.steps import PART_BUDGET_S, PARTS, steps_of
from run_conformance import read_results

DRY = (sys.executable, "-c", "import sys; print(sys.argv[1])")
# What each kind of step prints in a dry run.
DRY_OUTPUT = {
    "pytest": "1 passed in 0.01s",
    "benchmark": "1 passed in 0.01s",
    "sanitizer": "========= ERROR SUMMARY: 0 errors",
    "json": "{}",
    "conformance": '{"cases": 1, "ok": 1, "bad": []}',
}


def dry(step: Step) -> Step:
    return replace(step, command=(*DRY, DRY_OUTPUT[step.parser], *step.command))


def gather_facts(dry_run: bool) -> dict:
    """Of the machine; the conformance probe adds more."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    facts = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "dry_run": dry_run}
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        fields = [field.strip() for field in done.stdout.splitlines()[0].split(",")]
        facts |= dict(zip(("device", "driver", "sm_clock", "memory_clock"), fields, strict=True))
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        facts["nvidia_smi"] = f"{type(error).__name__}: {error}"
    return facts


def choose_environment(report: Report, dry_run: bool, bundle: Path) -> Environment | None:
    """The bundle, or what is built here first; None if there is neither."""
    if not (problem := environments.bundle_problem(bundle)):
        report.content["facts"]["libraries"] = "bundle"
        return environments.bundle(bundle)
    print(f"the bundle is not used: {problem}")
    built = environments.built()
    report.content["facts"]["libraries"] = f"built here; the bundle: {problem}"
    step = Step("build", environments.build_command(), 420, "json")
    if dry_run or environments.built_problem():
        report.steps(0).pop("build", None)
        if not run_part(report, 0, [dry(step) if dry_run else step], step.limit_s + 10):
            return None
        if report.steps(0)["build"]["status"] != "passed":
            return None
    return built


def write_golden(report: Report, out: Path) -> None:
    """golden.json, in the form of tests/conformance/golden: what the device gave, right or wrong."""
    results = read_results(out / "conformance.jsonl")
    probe = report.steps(1).get("probe_device", {}).get("result", {})
    given = {name: golden.unpack(line["bytes"]) for name, line in results.items() if "bytes" in line}
    facts = report.content["facts"]
    if given and probe.get("device") and facts.get("driver"):
        cuda = f"{probe['runtime_cuda'] // 1000}.{probe['runtime_cuda'] % 1000 // 10}"
        facts = {"device": probe["device"], "driver": facts["driver"], "cuda": cuda, "date": facts["date"]}
        golden.write(out / "golden.json", facts, given)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_check")
    parser.add_argument("--bundle", type=Path, default=environments.BUNDLE)
    parser.add_argument("--again", metavar="STEP", nargs="+", default=[], help="run these though they are finished")
    parser.add_argument("--dry-run", action="store_true", help="replace every command by one that only prints")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    out, bundle = options.out.resolve(), options.bundle.resolve()
    os.chdir(ROOT)
    report = Report(out)
    if report.content["facts"].get("dry_run", options.dry_run) != options.dry_run:
        parser.error(f"{out} has the results of a {'real' if options.dry_run else 'dry'} run: give another --out")
    for name in options.again:
        if not (entry := report.steps(options.part).pop(name, None)):
            parser.error(f"--again {name}: part {options.part} has not run such a step")
        if name == "conformance" and entry["status"] != "timed out":
            (out / "conformance.jsonl").unlink(missing_ok=True)  # or its cases would count as done
    report.content["facts"] |= gather_facts(options.dry_run)
    report.save()
    print(f"part {options.part}: {PARTS[options.part]}")
    environment = choose_environment(report, options.dry_run, bundle)
    if environment is None:
        print("no libraries: neither a bundle nor a build; see report.json")
        return 1
    steps = steps_of(options.part, environment, out)
    if options.dry_run:
        steps = [dry(step) for step in steps]
    complete = run_part(report, options.part, steps, PART_BUDGET_S - (time.monotonic() - start))
    if options.part == 1:
        write_golden(report, out)
    done = report.steps(options.part)
    bad = [name for name, entry in done.items() if entry["status"] != "passed"]
    print(f"{len(done) - len(bad)} of {len(steps)} steps passed" + (f"; not: {', '.join(bad)}" if bad else ""))
    if not complete:
        print("the part is not finished: run it again")
    return 0 if complete and not bad else 1


def stop_on_sigterm() -> None:
    """By an exception, so that the running step is stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
