"""Parses the output of a check's tools into a few facts. `ok` is the verdict; a text without a verdict is not ok."""

from __future__ import annotations

import json
import re

KEPT = 20  # so many names or lines of each kind are kept


def parse_pytest(text: str) -> dict:
    """The last summary line of pytest, and the tests that failed."""
    summaries = re.findall(r"^(?:=+ )?((?:\d+ [a-z]+, )*\d+ [a-z]+) in [\d.]+s", text, re.MULTILINE)
    if not summaries:
        found = re.search(r"^(?:=+ )?no tests ran in", text, re.MULTILINE)
        return {"ok": False, "text": "no tests ran" if found else "pytest printed no summary"}
    counts = {name: int(count) for count, name in re.findall(r"(\d+) ([a-z]+)", summaries[-1])}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    bad = counts.get("failed", 0) + counts.get("errors", 0) + counts.get("error", 0)
    return {"ok": bad == 0 and counts.get("passed", 0) > 0, "counts": counts, "failed": failed[:KEPT]}


def parse_sanitizer(text: str) -> dict:
    """The summary of compute-sanitizer and the first lines of what it reported."""
    lines = [line.removeprefix("=========").strip() for line in text.splitlines() if line.startswith("=========")]
    reported = [
        line for line in lines if re.match(r"(Error|Warning|Invalid|Uninitialized|Barrier|Program hit|Race)", line)
    ]
    found = {"reported": list(dict.fromkeys(reported))[:KEPT]}
    for line in reversed(lines):
        if match := re.match(r"ERROR SUMMARY: (\d+) error", line):
            return found | {"ok": match[1] == "0", "errors": int(match[1])}
        if match := re.match(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", line):
            return found | {"ok": match[1] == "0", "errors": int(match[2]), "warnings": int(match[3])}
    return found | {"ok": False, "text": " ".join(lines[-3:]) or "compute-sanitizer printed no summary"}


def parse_json(text: str) -> dict:
    """The last line that is a JSON object, printed by a program of ours."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return {"ok": True} | json.loads(line)
            except json.JSONDecodeError:
                break
    return {"ok": False, "text": "no JSON object was printed"}


def parse_conformance(text: str) -> dict:
    found = parse_json(text)
    return found | {"ok": found["ok"] and found.get("cases", 0) > 0 and not found.get("bad")}


def parse_benchmark(text: str) -> dict:
    """pytest-benchmark's JSON, which the step prints after pytest's own output: medians and what benches add."""
    found = parse_pytest(text)
    start = text.find('\n{\n    "machine_info"')
    if start >= 0:
        content, _ = json.JSONDecoder().raw_decode(text[start + 1 :])
        found["benchmarks"] = [
            {"name": bench["name"], "median_s": bench["stats"]["median"], **bench.get("extra_info", {})}
            for bench in content["benchmarks"]
        ]
    return found


PARSERS = {
    "pytest": parse_pytest,
    "sanitizer": parse_sanitizer,
    "json": parse_json,
    "conformance": parse_conformance,
    "benchmark": parse_benchmark,
}
