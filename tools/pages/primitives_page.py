"""Writes the table of primitives in docs/emulator.md: the evidence for each function of cuda/ptx.

python tools/pages/primitives_page.py            # renew the table; builds the emulator's conformance library first
python tools/pages/primitives_page.py --check    # exit 1 if the file is not what this would write
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tools", "python") if str(ROOT / name) not in sys.path]

import build_emulator  # noqa: E402
from conformance import golden, primitives  # noqa: E402
from conformance.library import Library  # noqa: E402

PAGE = ROOT / "docs" / "emulator.md"
BEGIN, END = "<!-- primitives: tools/pages/primitives_page.py -->\n", "<!-- end of primitives -->\n"


def render(rows: list[primitives.Row]) -> str:
    lines = ["| primitive | `cuda/ptx/` | emulated | conformance | hardware |\n", "| --- | --- | --- | --- | --- |\n"]
    for row in rows:
        chapters = ", ".join(dict.fromkeys(case.split("/")[0] for case in row.cases))
        evidence = ", ".join(Path(file).stem for file in row.evidence)
        lines.append(
            f"| `{row.name}` | {Path(row.file).stem} | {'yes' if row.emulated else 'no'} "
            f"| {chapters or 'none: ' + (row.reason or '?')} | {evidence or 'unproven'} |\n"
        )
    return "".join(lines)


def renewed(text: str, rows: list[primitives.Row]) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{render(rows)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    cases = Library(build_emulator.build_tests() / "libemu_conformance.so").cases()
    text = PAGE.read_text(encoding="utf-8")
    wanted = renewed(text, primitives.table(cases, golden.read()))
    if check:
        print("up to date" if text == wanted else f"{PAGE.name} is stale: python tools/pages/primitives_page.py")
        return int(text != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
