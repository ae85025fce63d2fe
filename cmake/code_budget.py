"""Prints the machine code and the compile time of each .cu of a kernel library; exit 1 if the library is larger than
it may be.

usage: code_budget.py LIBRARY OBJECTS CODE_BYTES LIBRARY_BYTES

OBJECTS: the folder with what cmake/compile_kernel.py kept beside each object. Run by the build after linking; the two
limits are in CMakeLists.txt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    if len(arguments) != 4:
        raise SystemExit(__doc__)
    library, objects = map(Path, arguments[:2])
    code_limit, library_limit = map(int, arguments[2:])
    total = 0
    for record in sorted(objects.rglob("*.o.code")):
        source = str(record.relative_to(objects)).removesuffix(".o.code")
        if not (ROOT / source).exists():
            continue  # left over from a source that is gone
        found = json.loads(record.read_text())
        code = sum(found["kernels"].values())
        total += code
        print(f"{source:<48}{len(found['kernels']):>3} kernels{code:>10,} bytes{found['seconds']:>7.1f} s")
    size = library.stat().st_size
    print(f"machine code {total:,} bytes (at most {code_limit:,}), {library.name} {size:,} (at most {library_limit:,})")
    for what, found, limit in (("the kernels' machine code", total, code_limit), (library.name, size, library_limit)):
        if found > limit:
            print(f"longcat_ops: {what} has {found:,} bytes, and a budget of {limit:,} (CMakeLists.txt).")
            print("  fix: fewer or smaller kernel instances, or a larger budget with its reason in the commit")
    return int(total > code_limit or size > library_limit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
