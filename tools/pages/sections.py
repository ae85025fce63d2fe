"""Pages that commands keep current: each made section lies between two marks that name it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path


def renewed(page: str, sections: dict[str, Callable[[], str]], kind: str = "predictions") -> str:
    """The page with its sections, between `kind: NAME` and `end of NAME`, made anew. Raises ValueError where it does
    not have each of them, once.
    """
    for name, make in sections.items():
        begin, end = f"<!-- {kind}: {name} -->\n", f"<!-- end of {name} -->\n"
        parts = re.split(f"{re.escape(begin)}.*?{re.escape(end)}", page, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"the page has {len(parts) - 1} sections {name!r}, expected 1")
        page = f"{parts[0]}{begin}\n{make()}\n{end}{parts[1]}"
    return page


def renew(usage: str | None, root: Path, make: Callable[[], dict[str, str]], arguments: Sequence[str] | None) -> int:
    """A command that writes files under `root`, each with its content from `make`; with --check it writes nothing, and
    returns 1 if a file is not current.
    """
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, old = parser.parse_args(arguments).check, []
    for file, text in make().items():
        path = root / file
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        old.append(file)
        if not check:
            path.write_text(text, encoding="utf-8")
    print("\n".join(f"{file}: {'is not current' if check else 'renewed'}" for file in old) or "all current")
    return int(check and bool(old))
