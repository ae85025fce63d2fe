"""Runs nvcc as CMake does, and keeps what tools/check_kernels.py and cmake/code_budget.py look at.

usage: compile_kernel.py nvcc ... -o OBJECT ...

OBJECT.ptx is the PTX the object was made from, OBJECT.notes what the compiler said, OBJECT.code its seconds and the
bytes of machine code of each kernel (JSON). All are written only when it succeeded, so they always belong to the newest
object.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(command: list[str]) -> int:
    target = Path(command[command.index("-o") + 1])
    with tempfile.TemporaryDirectory(dir=target.parent) as kept:
        command = [*command, "--keep", "--keep-dir", kept]
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seconds = round(time.monotonic() - started, 1)
        sys.stdout.buffer.write(done.stdout)
        if done.returncode == 0:
            (ptx,) = Path(kept).glob("*.ptx")  # one architecture: cmake/Cuda.cmake
            ptx.replace(f"{target}.ptx")
            Path(f"{target}.notes").write_bytes(done.stdout)
            cubins = [target] if target.suffix == ".cubin" else Path(kept).glob("*.cubin")
            (kernels,) = (code_bytes(cubin.read_bytes()) for cubin in cubins)
            Path(f"{target}.code").write_text(json.dumps({"seconds": seconds, "kernels": kernels}))
    return done.returncode


def code_bytes(cubin: bytes) -> dict[str, int]:
    """Size of each section .text.<symbol> of an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(count)]
    names = headers[names_index][4]
    found = {}
    for name, _, _, _, _, size in headers:
        start = names + name
        text = cubin[start : cubin.index(b"\0", start)].decode()
        if text.startswith(".text."):
            found[text.removeprefix(".text.")] = size
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
