"""What cmake/compile_kernel.py left beside each object: the PTX it was made from and what the compiler said."""

from __future__ import annotations

import filecmp
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# (C7508): setmaxnreg ignored; (C7510) to (C7519): wgmma serialised, waits or arrives injected. warning #: nvcc's own,
# which the emulator's compiler may not have.
NOTE = re.compile(r".*(?:\(C75\d\d\)|\bwarning #).*")


@dataclass(frozen=True)
class Compilation:
    source: str
    ptx: str
    said: str

    @property
    def notes(self) -> list[str]:
        return NOTE.findall(self.said)

    @property
    def nvcc(self) -> str:
        version = re.search(r"Cuda compilation tools, release [\d.]+, V([\d.]+)", self.ptx)
        return version[1] if version else "of an unknown version"


def find_objects(library: Path) -> Path | None:
    """The folder of objects in the build tree that made a library: the one that holds the same bytes."""
    for built in sorted(ROOT.glob(f"build/*/{library.name}")):
        if filecmp.cmp(built, library, shallow=False):
            return built.parent / "CMakeFiles" / f"{library.name.removeprefix('lib').removesuffix('.so')}.dir"
    return None


def read_compilations(objects: Path) -> list[Compilation]:
    """Of each object, which lies in its folder where the source lies in the project."""
    found = []
    for ptx in sorted(objects.rglob("*.o.ptx")):
        source = str(ptx.relative_to(objects)).removesuffix(".o.ptx")
        if (ROOT / source).exists():  # else the object is left over from a deleted source
            found.append(Compilation(source, ptx.read_text(), ptx.with_suffix(".notes").read_text()))
    return found
