"""What cuobjdump says about a compiled library: its kernels, their resources and opcodes, the kinds of code in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cuda_tools import PLACES, find_tool

from .loops import Instruction

_QUALIFIERS = re.compile(r"(?:\w+::|\(anonymous namespace\)::)+")
_SUFFIX = re.compile(r"(?<=\d)(?:ul?l?|ll?)\b")  # of 32u and 8ul
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(?: 0x([0-9a-f]+) ;)?")


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes per thread, spills included
    local: int


def read_resources(library: Path) -> dict[str, Resources]:
    """Of each kernel, by symbol."""
    found = {}
    symbol = ""
    for line in _cuobjdump("--dump-resource-usage", library):
        if function := re.match(r" Function (\S+):", line):
            symbol = function[1]
        elif numbers := re.match(r"  REG:(\d+) STACK:(\d+) .*\bLOCAL:(\d+)", line):
            found[symbol] = Resources(*map(int, numbers.groups()))
    return found


def read_code(library: Path) -> dict[str, list[Instruction]]:
    """The machine code of each kernel, by symbol."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in _cuobjdump("--dump-sass", library):
        if at := _INSTRUCTION.match(line):
            code.append(Instruction(int(at[1], 16), at[2], int(at[3], 16) if at[3] else None))
        elif function := re.match(r"\s+Function : (\S+)", line):
            code = found.setdefault(function[1], [])
    return found


def list_code(library: Path) -> tuple[list[str], list[str]]:
    """Names of the machine code files (name.sm_90a.cubin) and of the PTX files in a library."""
    machine, ptx = (
        [line.split(":", 1)[1].strip() for line in _cuobjdump(option, library) if re.match(r"(ELF|PTX) file", line)]
        for option in ("--list-elf", "--list-ptx")
    )
    return machine, ptx


def short_names(symbols: Iterable[str]) -> dict[str, str]:
    """Symbol -> its demangled name without namespaces, result and parameters: some_kernel<Float16, 8, true>."""
    symbols = list(symbols)
    demangle = shutil.which("c++filt")
    if demangle is None:
        raise FileNotFoundError("c++filt was not found; install binutils")
    done = subprocess.run([demangle], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = dict(zip(symbols, map(_shorten, done.stdout.splitlines()), strict=True))
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise ValueError(f"kernels of different namespaces have the same name: {', '.join(twice)}")
    return names


def _shorten(demangled: str) -> str:
    name = demangled.removeprefix("void ")
    if name.endswith(")"):
        depth, end = 1, len(name) - 1
        while depth:
            end -= 1
            depth += {")": 1, "(": -1}.get(name[end], 0)
        name = name[:end]
    return _SUFFIX.sub("", _QUALIFIERS.sub("", name)).replace("> >", ">>")


def _cuobjdump(option: str, library: Path) -> Iterator[str]:
    """The lines that it prints."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError(f"cuobjdump was not found {PLACES}; pip install nvidia-cuda-cuobjdump")
    command = [tool, "--all-fatbin", option, library]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        yield from running.stdout
        said = running.stderr.read().strip()
    if running.returncode != 0:
        raise RuntimeError(f"cuobjdump {option} failed: {said or running.returncode}")
