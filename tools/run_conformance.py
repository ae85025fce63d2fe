"""Runs the conformance cases of a library in child processes, so that a crash or a hang costs one case.

    python tools/run_conformance.py LIBRARY RESULTS.jsonl [--only thread/,mbarrier/] [--limit SECONDS]

RESULTS gets a line per case as soon as it is known, and cases that are in it already are not run again. Exit status 0:
every case gave what the ISA says; 1: some did not.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from conformance import golden
from conformance.library import Case, Library, first_difference
from device_check.answers import read_lines

CASE_LIMIT = 30.0  # seconds; the first case of a child also waits for the GPU to start


def outcome(library: Library, case: Case) -> dict:
    result = library.run(case)
    line = {"case": case.name, "primitives": list(case.primitives)}
    if result.error:
        return line | {"status": "error", "text": result.error}
    difference = first_difference(result.actual, result.expected)
    return line | {"status": "differs" if difference else "ok", "text": difference, "bytes": golden.pack(result.actual)}


def child(library_path: str) -> None:
    """Takes case names from stdin, one a line; writes `start` and one JSON line for each."""
    library = Library(Path(library_path))
    cases = {case.name: case for case in library.cases()}
    for line in sys.stdin:
        print("start", flush=True)
        result = outcome(library, cases[line.strip()])
        print(json.dumps(result), flush=True)
        if result["status"] == "error":
            break  # a CUDA error may outlast its case; the parent starts another child


class Child:
    """A child process and its lines, with a deadline on each."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def ask(self, name: str, limit: float) -> dict:
        """The result of one case; `status` says so if the child crashed or the time was over."""
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            while line := self.lines.get(timeout=limit):
                if line.startswith("{"):
                    return json.loads(line)
        except queue.Empty:
            self.stop()
            return {"case": name, "status": "hung", "text": f"no result in {limit:g} s"}
        except BrokenPipeError:
            pass
        code = self.process.wait()
        text = f"the process ended with status {code}: {self.process.stderr.read()[-1000:]}"
        return {"case": name, "status": "crashed", "text": text}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def run_all(names: list[str], command: list[str], report: Callable[[dict], None], limit: float) -> None:
    """Every case by a child that `command` starts, which is replaced whenever a case leaves it unusable."""
    current = None
    for name in names:
        current = current or Child(command)
        result = current.ask(name, limit)
        report(result)
        if result["status"] not in ("ok", "differs"):
            current.stop()
            current = None
    if current:
        current.stop()


def read_results(path: Path) -> dict[str, dict]:
    """Those of an earlier run."""
    return {result["case"]: result for result in read_lines(path)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="beginnings of names, with commas between")
    parser.add_argument("--limit", type=float, default=CASE_LIMIT)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true", help="no children: for tools that watch this process")
    options = parser.parse_args()
    if options.child:
        child(options.library)
        return 0
    library = Library(Path(options.library))
    wanted = [case for case in library.cases() if case.name.startswith(tuple(options.only.split(",")))]
    if options.in_process:
        results = {case.name: outcome(library, case) for case in wanted}
    else:
        results = read_results(options.results)
        left = [case.name for case in wanted if case.name not in results]
        with options.results.open("a") as file:

            def report(result: dict) -> None:
                results[result["case"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                os.fsync(file.fileno())

            run_all(left, [sys.executable, __file__, options.library, "--child"], report, options.limit)
    bad = [result for result in results.values() if result["status"] != "ok"]
    for result in bad:
        print(f"{result['case']}: {result['status']}: {result['text']}")
    print(json.dumps({"cases": len(results), "ok": len(results) - len(bad), "bad": [r["case"] for r in bad]}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
