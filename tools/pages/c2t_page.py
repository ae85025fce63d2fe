"""Renews what C2T gains on longcat-tiny, table in docs/engine.md and plot, from docs/results/longcat-tiny-c2t.json.

python tools/pages/c2t_page.py            # write them; the plot needs matplotlib
python tools/pages/c2t_page.py --check    # exit 1 if a file is not what this would write

The results come from `python -m longcat_ops c2t CHECKPOINT --prompts FILE --json`.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/pages")] if str(ROOT / "tools/pages") not in sys.path else []

from sections import renew, renewed  # noqa: E402

RESULTS, PAGE, PLOT = "docs/results/longcat-tiny-c2t.json", "docs/engine.md", "docs/longcat_tiny_c2t.svg"
SECTION = "C2T on longcat-tiny"


def table(facts: dict[str, Any]) -> str:
    """Markdown: a row for each way."""
    head = ("drafts", "verified", "of these accepted", "rows a token", "verified rows saved", "tokens a step",
            "of them lost", "tokens/s", "speed-up", "by formula")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for way in facts["ways"]:
        name = way["way"] if way["beta"] is None else f"beta {way['beta']:g}"
        shares = (way[key] for key in ("verified", "accepted", "rows_saved", "tokens_lost"))
        verified, accepted, saved, lost = ("-" if share is None else f"{share:.1%}" for share in shares)
        rows.append((
            "none" if name == "plain" else name.removesuffix(" drafts"), verified, accepted,
            f"{way['rows_per_token']:.3f}", saved, f"{way['tokens_per_step']:.3f}", lost,
            f"{way['tokens_per_second'][1]:.0f}", f"{way['speed_up']:.2f}", f"{way['predicted']:.2f}",
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def plot(facts: dict[str, Any]) -> str:
    """SVG: verified rows saved against tokens of a step lost, a point for each beta."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the same results give the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "longcat_ops", "font.size": 8}
    ways = sorted((way for way in facts["ways"] if way["beta"] is not None), key=lambda way: way["beta"])
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.add_subplot()
    saved, lost = ([100 * way[key] for way in [{"rows_saved": 0, "tokens_lost": 0}, *ways]]
                   for key in ("rows_saved", "tokens_lost"))  # fmt: skip
    axes.plot(lost, saved, "o-", color="#0072b2", markersize=4, linewidth=1)
    for way in ways:
        at = 100 * way["tokens_lost"], 100 * way["rows_saved"]
        axes.annotate(f"beta {way['beta']:g}", at, xytext=(6, -8), textcoords="offset points")
    axes.set(xlabel="tokens of a step lost, %", ylabel="verified rows saved, %", title=SECTION)
    axes.grid(linewidth=0.3)
    axes.margins(x=0.2)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def texts(root: Path = ROOT) -> dict[str, str]:
    """The page, as it should be."""
    facts = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    page = (root / PAGE).read_text(encoding="utf-8")
    return {PAGE: renewed(page, {SECTION: lambda: table(facts)}, "measured")}


def plots(root: Path = ROOT) -> dict[str, str]:
    return {PLOT: plot(json.loads((root / RESULTS).read_text(encoding="utf-8")))}


def main(arguments: list[str] | None = None) -> int:
    return renew(__doc__, ROOT, lambda: texts() | plots(), arguments)


if __name__ == "__main__":
    sys.exit(main())
