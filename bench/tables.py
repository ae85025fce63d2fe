"""The results of bench_moe_gemm.py and bench_bf16_gemm.py as text: at the end of a run, and as tables.

python -m pytest bench/products/bench_moe_gemm.py --benchmark-json=results.json      # on a GPU
python -m pytest bench/products/bench_moe_gemm.py --predictions-json=results.json    # without one
python bench/tables.py results.json                # tables of each product, device and implementation
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from longcat_ops.perf import Band

PRODUCTS = {"moe_gemm": "Grouped FP8 GEMM", "bf16_gemm": "bf16 products"}  # titles, by what a cell says it is of
COLUMNS, DENSE_COLUMNS = [1, 8, 32, 64, 128, 256], [1, 2, 4, 8, 64, 256]  # tokens
BETTER = 0.97  # another tile is reported below this share of the middle of the chosen tile's band
SHORT = {"tensor cores": "TC", "loads of an SM": "SM", "shared memory": "smem"}  # what binds, in a table


def cells_of(results: dict) -> list[dict]:
    """The cells, as products/measuring.py describes them, from the JSON of pytest-benchmark or of predictions."""
    entries = [*results.get("benchmarks", []), *results.get("predictions", [])]
    infos = [entry.get("extra_info", {}) for entry in entries]
    return [info for info in infos if "rows" in info]


def read_results(path: Path) -> dict:
    results = json.loads(path.read_text(encoding="utf-8") or "{}")  # pytest-benchmark leaves it empty if nothing ran
    if not cells_of(results):
        raise SystemExit(f"{path} has no cell of bench_moe_gemm.py or bench_bf16_gemm.py")
    return results


def by_product(cells: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for cell in cells:
        found.setdefault(cell["product"], []).append(cell)
    return found


def timed(cell: dict) -> list[dict]:
    return [row for row in cell["rows"] if "us" in row]


def terminal_lines(cells: list[dict]) -> list[str]:
    return [line for product, own in by_product(cells).items() for line in lines_of(own, PRODUCTS[product])]


def lines_of(cells: list[dict], title: str) -> list[str]:
    if cells[0]["kind"] == "predicted":
        lines = [f"{title}: predictions, nothing ran; in brackets what binds"]
        for cell in cells:
            floors = cell["floors_us"]
            texts = [
                f"{row['device']} {time_text(row)} us ({row['bound']}), floor {floors[row['device']]:.1f}"
                + f", another tile {row['best_us']:.1f}" * (row["best_us"] < BETTER * row["us"])
                for row in timed(cell)
            ]
            if texts:
                lines.append(f"  {cell['cell']:20s} {cell['bytes'] / 1e6:9.1f} MB  {'; '.join(texts)}")
    else:
        ((device, ceilings),) = cells[0]["ceilings"].items()
        lines = [f"{title} on {device}, which reads {ceilings['bytes_per_s'] / 1e12:.2f} TB/s"]
        lines.append(f"  {'':50s}{'us':>9s}{'p10':>9s}{'p90':>9s}{'% read':>8s}{'% peak':>7s}{'ratio':>7s}")
        for cell in cells:
            for row in timed(cell):
                peak = "" if row["flops_share"] is None else f"{100 * row['flops_share']:.1f}"
                ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
                lines.append(
                    f"  {cell['cell']:22s}{row['implementation']:28s}{row['us']:9.2f}{row['p10_us']:9.2f}"
                    f"{row['p90_us']:9.2f}{100 * row['read_share']:8.1f}{peak:>7s}{ratio:>7s}"
                )
    reasons = Counter(
        (row["implementation"], row["reason"]) for cell in cells for row in cell["rows"] if "reason" in row
    )
    return lines + [f"  no time in {n} cells: {name}: {reason}" for (name, reason), n in reasons.items()]


def time_text(row: dict) -> str:
    """us; for a prediction, its band."""
    return str(Band(row["low_us"], row["high_us"])) if "low_us" in row else f"{row['us']:.1f}"


def short_bound(bound: str) -> str:
    """The limit in brackets; nothing where memory is the limit at both ends."""
    names = [SHORT.get(name, name) for name in bound.split(" or ")]
    return "" if names == ["memory"] else f" ({' or '.join(names)})"


def markdown(cells: list[dict], device: str, implementation: str) -> str:
    """us of the even cells, a row for each shape and number of experts; dense products have a table of their own. A
    prediction has its limit in brackets."""
    found: dict[tuple[str, int | None], dict[int, str]] = {}
    for cell in cells:
        for row in timed(cell):
            if not cell["skewed"] and (row["device"], row["implementation"]) == (device, implementation):
                text = time_text(row) + short_bound(row.get("bound", "memory"))
                found.setdefault((cell["shape"], cell["groups"]), {})[cell["tokens"]] = text
    heading = device if implementation == "longcat_ops" else f"{device}, {implementation}"
    dense = {(shape,): texts for (shape, groups), texts in found.items() if groups is None}
    grouped = {key: texts for key, texts in found.items() if key[1] is not None}
    tables = [one_table([heading, "G"], COLUMNS, grouped), one_table([heading], DENSE_COLUMNS, dense)]
    return "\n".join(table for table in tables if table)


def one_table(heading: list[str], columns: list[int], rows: dict[tuple, dict[int, str]]) -> str:
    if not rows:
        return ""
    lines = [[*heading, *(f"m = {m}" for m in columns)], ["---"] * (len(heading) + len(columns))]
    lines += [[*map(str, key), *(texts.get(m, "") for m in columns)] for key, texts in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def devices(cells: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["device"] for cell in cells for row in timed(cell)))


def all_tables(cells: list[dict]) -> str:
    keys = dict.fromkeys((row["device"], row["implementation"]) for cell in cells for row in timed(cell))
    return "\n".join(markdown(cells, *key) for key in keys)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    options = parser.parse_args(arguments)
    for product, cells in by_product(cells_of(read_results(options.results))).items():
        print(f"{PRODUCTS[product]}\n\n{all_tables(cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
