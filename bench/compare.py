"""Two results files of bench_moe_gemm.py or bench_bf16_gemm.py side by side: new / old for every time. It refuses
files of different devices.

python bench/compare.py OLD.json NEW.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from report.devices import differences
from tables import PRODUCTS, cells_of, read_results, timed

Key = tuple[str, str, str, str]  # product, cell, implementation, device


def times(results: dict) -> dict[Key, float]:
    return {
        (cell["product"], cell["cell"], row["implementation"], row["device"]): row["us"]
        for cell in cells_of(results)
        for row in timed(cell)
    }


def refusal(old: dict, new: dict) -> str | None:
    """Why the two runs must not be compared."""
    found = differences(old["machine_info"], new["machine_info"])
    kinds = [{cell["kind"] for cell in cells_of(results)} for results in (old, new)]
    if kinds[0] != kinds[1]:
        found.append(f"kind: {' and '.join('/'.join(sorted(kind)) for kind in kinds)}")
    if not found:
        return None
    return "these runs are of different devices and are not compared: " + "; ".join(found)


def ratios(old: dict, new: dict) -> dict[Key, tuple[float, float]]:
    """(old, new) in us of what both files have."""
    before, after = times(old), times(new)
    return {key: (before[key], after[key]) for key in before if key in after}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    old, new = read_results(options.old), read_results(options.new)
    if reason := refusal(old, new):
        print(f"compare.py: {reason}", file=sys.stderr)
        return 2
    for (product, cell, implementation, device), (before, after) in ratios(old, new).items():
        ratio = f"{before:10.2f} us{after:10.2f} us{after / before:8.3f} x"
        print(f"{PRODUCTS[product]:18s}{cell:22s}{implementation:28s}{device:24s}{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
