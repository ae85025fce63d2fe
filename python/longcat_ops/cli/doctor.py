"""`python -m longcat_ops doctor`: the text of `doctor.report()`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import doctor


def run(args: argparse.Namespace) -> int:
    facts = doctor.report()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(lines(facts)))
    return 0 if facts["ok"] else 1


def lines(facts: dict[str, Any]) -> list[str]:
    """The report, line by line."""
    machine, python, gpus = facts["platform"], facts["python"], facts["gpus"]
    out = [
        f"longcat_ops  {facts['longcat_ops']}",
        f"platform     {machine['os']}",
        f"cpu          {machine['cpu']}, {machine['cores']} cores; {' '.join(machine['isa']) or 'no SIMD flags known'}",
        f"python       {python['version']}, {python['executable']}",
        *_torch_lines(facts["torch"]),
        *_library_lines(facts["library"]),
        f"driver       {gpus['driver'] or 'none'}",
    ]
    out += [f"gpu          {d['name']}, {d['memory']}, sm_{d['capability'].replace('.', '')}" for d in gpus["devices"]]
    out += [] if gpus["devices"] else ["gpu          none"]
    for row in facts["environment"]:
        near = f"; no such variable, did you mean {row['nearest']}?" if row["nearest"] else ""
        out.append(f"environment  {row['name']}={row['value']}{near}")
    for package in facts["packages"]:
        state = package["version"] or f"missing, needed for {package['purpose']}; fix: {package['remedy']}"
        out.append(f"package      {package['name']} {state}")
    out += [_integration_line(row) for row in facts["integrations"]]
    return out + _op_lines(facts["ops"], facts["ok"])


def _torch_lines(torch: dict[str, Any]) -> list[str]:
    if torch["problem"]:
        version = f"{torch['version']}, " if torch["version"] else ""
        return [f"torch        {version}{torch['problem']}", f"             fix: {torch['remedy']}"]
    cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "no CUDA"
    return [f"torch        {torch['version']} ({cuda}); at least {torch['minimum']} is needed"]


def _library_lines(library: dict[str, Any]) -> list[str]:
    missing = f", missing: {', '.join(library['missing'])}" if library["missing"] else ""
    out = [f"library      {library['state']}{missing}, in {library['folder']}"]
    build = library["build"]
    if build:
        kernels = f"CUDA kernels for {build['arch']} (nvcc {build['nvcc']})" if build["cuda"] else "no CUDA kernels"
        out.append(f"             {build['compiler']}, built with torch {build['torch_built_with']}, {kernels}")
    if library["problem"]:
        out.append(f"             {library['problem']}")
        out += [f"             fix: {library['remedy']}"] if library["remedy"] else []
    return out


def _integration_line(row: dict[str, Any]) -> str:
    version = f" {row['version']}" if row["version"] else ""
    state = "fits" if row["fits"] else f"does not fit: {row['reason']}; fix: {row['remedy']}"
    return f"integration  {row['name']}{version}: {state}"


def _op_lines(rows: list[dict[str, Any]], ok: bool) -> list[str]:
    width = max(len(row["name"]) for row in rows) + 2
    out = ["", f"{'op':<{width}}{'CPU tensors':<13}CUDA tensors"]
    out += [f"{row['name']:<{width}}{row['cpu']['backend']:<13}{row['cuda']['backend']}" for row in rows]
    out.append("")
    for key, label in (("cpu", "CPU tensors"), ("cuda", "CUDA tensors")):
        groups: dict[tuple[str, str, str], list[str]] = {}
        for row in rows:
            device = row[key]
            groups.setdefault((device["backend"], device["reason"], device["remedy"]), []).append(row["name"])
        for (backend, reason, remedy), names in groups.items():
            which = "all ops" if len(names) == len(rows) else ", ".join(names)
            out.append(f"{label}, {backend}: {which}: {reason}" + (f"; fix: {remedy}" if remedy else ""))
    return [*out, "", "every op has a backend here" if ok else "some op has no backend here"]
