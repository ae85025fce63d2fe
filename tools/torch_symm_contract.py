"""Does a torch still have what the adapter to its symmetric memory uses? Reads files of torch and imports none of them.

python tools/torch_symm_contract.py                          # the installed torch
python tools/torch_symm_contract.py torch-2.11.0-*.whl DIR   # wheels, or folders that hold torch/
python tools/torch_symm_contract.py --download 2.11.0 newest # wheels from the package index, by pip, for this machine
    [--platform macosx_14_0_arm64]                           # for another one: those of macOS are the smallest

What the adapter uses stands in longcat_ops/comm/providers/torch_symm.py. Exit 1 if something of it is missing.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from longcat_ops.comm.providers.torch_symm import FLOOR, FUNCTIONS, HANDLE

MODULE = "torch/distributed/_symmetric_memory/__init__.py"
STUB = "torch/_C/_distributed_c10d.pyi"
VERSION = "torch/version.py"
# torch writes its stubs by hand. 2.11.0 and 2.13.0 have `offset` when they are imported, and not in their stubs.
IN_STUB_SINCE = {"offset": (2, 14)}
# How the adapter calls each function: names of its parameters, "*" for any number of positional ones.
CALLS = {"empty": ("*", "dtype", "device"), "rendezvous": ("tensor", "group"), "get_backend": ("device",)}


@dataclass
class Finding:
    """About one torch. problems: what is missing; notes: what these files cannot tell."""

    source: str
    version: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        first = f"{'FAIL' if self.problems else 'ok  '}  torch {self.version} ({self.source})"
        names = f"{len(FUNCTIONS)} functions, {len(HANDLE)} attributes of the handle"
        lines = [f"MISSING  {text}" for text in self.problems] + [f"note     {text}" for text in self.notes]
        return "\n".join([f"{first}: {names}", *(f"        {line}" for line in lines)])


Reader = Callable[[str], bytes | None]


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """What reads a file of a wheel or of a folder by its name; None for a file that is not there."""
    if path.is_dir():
        yield lambda name: (path / name).read_bytes() if (path / name).is_file() else None
        return
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        yield lambda name: wheel.read(name) if name in names else None


def check(path: Path) -> Finding:
    """Looks for everything that the adapter uses. path: a wheel, or a folder that holds torch/."""
    with opened(path) as read:
        version = re.search(rb"__version__ = ['\"]([^'\"]+)", read(VERSION) or b"")
        if version is None:
            return Finding(path.name, "of an unknown version", [f"{VERSION}: no version"])
        finding = Finding(path.name, version[1].decode())
        if _number(finding.version) < FLOOR:
            finding.notes.append(f"below the floor {FLOOR[0]}.{FLOOR[1]}: the adapter refuses it")
        _check_functions(read(MODULE), finding)
        _check_handle(read(STUB), finding)
    return finding


def _check_functions(source: bytes | None, finding: Finding) -> None:
    if source is None:
        finding.problems.append(f"{MODULE}: no such file")
        return
    # The last definition counts: those before it are overloads for type checkers.
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    for name in FUNCTIONS:
        if name not in functions:
            finding.problems.append(f"{MODULE}: no function {name}")
            continue
        given = functions[name].args
        names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)] + ["*"] * bool(given.vararg)
        for parameter in CALLS[name]:
            if parameter not in names:
                finding.problems.append(f"{MODULE}: {name} has no parameter {parameter}: it has {', '.join(names)}")
        required = [one.arg for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if not default]
        required += [one.arg for one in given.args[: len(given.args) - len(given.defaults)]]
        for parameter in required:
            if parameter not in CALLS[name]:
                finding.problems.append(f"{MODULE}: {name} needs a parameter {parameter}, which is not given")


def _check_handle(source: bytes | None, finding: Finding) -> None:
    if source is None:
        finding.problems.append(f"{STUB}: no such file")
        return
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    handle = next((node for node in classes if node.name == "_SymmetricMemory"), None)
    if handle is None:
        finding.problems.append(f"{STUB}: no class _SymmetricMemory")
        return
    properties = {
        node.name
        for node in handle.body
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(one) == "property" for one in node.decorator_list)
    }
    properties |= {node.target.id for node in handle.body if isinstance(node, ast.AnnAssign)}
    for name in HANDLE:
        if name in properties:
            continue
        since = IN_STUB_SINCE.get(name)
        if since and _number(finding.version) < since:
            text = f"{name} is in no stub before {since[0]}.{since[1]}: only importing this torch can tell"
            finding.notes.append(text)
        else:
            finding.problems.append(f"{STUB}: _SymmetricMemory has no property {name}")


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def download(version: str, platform: str | None, folder: Path) -> Path:
    """The wheel of a version, or of the newest one that fits this Python, from the package index."""
    into = folder / version
    wanted = "torch" if version == "newest" else f"torch=={version}"
    only = ["--platform", platform] if platform else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, *only, "--dest", str(into), wanted], check=True)
    (wheel,) = into.glob("*.whl")
    return wheel


def installed() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not installed: name a wheel")
    return Path(spec.origin).parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="wheels of torch, or folders that hold torch/")
    parser.add_argument("--download", nargs="+", metavar="VERSION", default=[], help="versions, or 'newest'")
    parser.add_argument("--platform", help="of the wheels to download; default: this machine's")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        wheels = [download(version, given.platform, Path(folder)) for version in given.download]
        paths = [*given.paths, *wheels] or [installed()]
        findings = [check(path) for path in paths]
    print("\n".join(map(str, findings)))
    return int(any(finding.problems for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
