"""Planted bugs: one piece of a kernel's source is replaced, the kernel is compiled over the host emulator, and tests
call the result instead of the usual library. The production source has no hooks for this.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from longcat_ops.ops import emulated

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emu"  # written by tools/build_emulator.py


class Mutation(NamedTuple):
    """Replaces `old`, which occurs once in cuda/`header`, with `new`. `launcher` is the .cu that includes it. also:
    replacements (header, old, new) in other headers, without which the bug would show nothing."""

    name: str
    launcher: str
    header: str
    old: str
    new: str
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def replacements(self) -> tuple[tuple[str, str, str], ...]:
        return (self.header, self.old, self.new), *self.also


def text_problem(mutation: Mutation) -> str:
    """Why the bug can no longer be planted: a file or its text moved. Empty if it can."""
    headers = [header for header, _, _ in mutation.replacements]
    gone = [path for path in (mutation.launcher, *headers) if not (ROOT / "cuda" / path).is_file()]
    if gone:
        return f"{mutation.name}: cuda/{gone[0]} does not exist"
    for header, old, _ in mutation.replacements:
        count = (ROOT / "cuda" / header).read_text().count(old)
        if count != 1:
            return f"{mutation.name}: cuda/{header} has {count} times `{old}`, expected 1"
    return ""


@contextlib.contextmanager
def planted(mutation: Mutation, folder: Path, whole: bool = False) -> Iterator[None]:
    """In this context, emulator calls reach a library compiled in `folder`. It holds the functions of this launcher
    alone or, if `whole`, of all launchers."""
    emulated.use(_compile(mutation, folder, whole))
    try:
        yield
    finally:
        emulated.use()


def in_tiers(mutations: Sequence[Mutation], quick: int = 5) -> list[Any]:
    """Parameters of a test: every run has the first `quick` bugs of a family, only the long tier has the others."""
    return [*mutations[:quick], *(pytest.param(mutation, marks=pytest.mark.slow) for mutation in mutations[quick:])]


def run_in_every_policy(check: Callable[[], None], **settings: int) -> None:
    for policy in emulated.POLICIES:
        emulated.configure(seed=5, policy=policy, **settings)
        check()


def assert_caught(
    mutation: Mutation, folder: Path, check: Callable[[], None], *, whole: bool = False, **settings: int
) -> None:
    """The planted bug makes `check` fail or the emulator report an error, in every policy."""

    def caught() -> None:
        with pytest.raises((emulated.EmulatorError, AssertionError)):
            check()

    # NOTE: each library keeps its fibers' stacks until the thread that ran them ends; a process has 65530 mappings.
    with planted(mutation, folder, whole), ThreadPoolExecutor(1) as thread:
        thread.submit(run_in_every_policy, caught, **settings).result()


def _compile(mutation: Mutation, folder: Path, whole: bool) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    assert not text_problem(mutation), text_problem(mutation)
    for name, old, new in mutation.replacements:
        header = folder / name  # found before the original header
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text((ROOT / "cuda" / name).read_text().replace(old, new))
    library = folder / f"{Path(mutation.launcher).stem}.so"
    command = [compiler, "-std=c++20", "-O0", "-DLC_EMULATE", "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared"]
    command += [f"-I{path}" for path in (folder, ROOT / "cuda", ROOT / "cpp", ROOT / "cuda" / "include")]
    command += ["-x", "c++", ROOT / "cuda" / mutation.launcher, "-x", "none"]
    objects = BUILD / "CMakeFiles" / "longcat_emu.dir"
    command += sorted(path for part in ("cpp", "cuda") for path in (objects / part).rglob("*.o"))  # for all launchers
    if whole:
        own = f"{Path(mutation.launcher).stem}.cpp.o"
        command += sorted(path for path in (objects / "generated").rglob("*.o") if path.name != own)
    command += [BUILD / "liblongcat_emu_core.a", "-o", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return library
