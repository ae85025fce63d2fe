"""Pages that commands keep current: each made section lies between two marks that name it."""

from __future__ import annotations

import re
from collections.abc import Callable


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
