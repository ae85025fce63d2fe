"""Runs nvcc as CMake does, and keeps what tools/check_kernels.py looks at: OBJECT.ptx and OBJECT.notes.

usage: compile_kernel.py nvcc ... -o OBJECT ...

The PTX is the one the object was made from, the notes are what the compiler said; both are written only when it
succeeded, so they always belong to the newest object.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def main(command: list[str]) -> int:
    target = Path(command[command.index("-o") + 1])
    with tempfile.TemporaryDirectory(dir=target.parent) as kept:
        command = [*command, "--keep", "--keep-dir", kept]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        sys.stdout.buffer.write(done.stdout)
        if done.returncode == 0:
            (ptx,) = Path(kept).glob("*.ptx")  # one architecture: cmake/Cuda.cmake
            ptx.replace(f"{target}.ptx")
            Path(f"{target}.notes").write_bytes(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
