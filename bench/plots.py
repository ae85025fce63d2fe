"""Two plots of each product in a results file of bench_moe_gemm.py or bench_bf16_gemm.py, measured or predicted:
{moe_gemm,bf16_gemm}_{roofline,crossover}.svg.

python bench/plots.py results.json --out docs [--device H100]

Roofline: flops/s of every cell against its flops per byte, under the device's memory and tensor cores. Crossover: time
against tokens, an expert's if there are experts, one panel for each shape and number of experts, the floor dashed, as
far as 4 times the floor. A prediction is the middle of its band, and the band.
Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from tables import PRODUCTS, by_product, cells_of, devices, read_results, timed

# Text stays text, and the same results give the same file.
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "longcat_ops", "font.size": 8}
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # distinct for everyone
MARKERS = "os^vD<>ph"  # of shapes
COLUMNS = 4  # panels in a row
CUT = 4  # a panel ends at so many times the floor: slower points leave it
APART = 1.03


def title(cells: list[dict], what: str, device: str) -> str:
    nothing_ran, product = cells[0]["kind"] == "predicted", PRODUCTS[cells[0]["product"]]
    return f"{product}, {what}: " + (f"prediction for an {device}, nothing ran" if nothing_ran else device)


def even(cells: list[dict], device: str) -> list[tuple[dict, dict]]:
    """(cell, row) of what was timed on, or predicted for, the device."""
    return [(cell, row) for cell in cells if not cell["skewed"] for row in timed(cell) if row["device"] == device]


def colours(cells: list[dict]) -> dict[str, str]:
    names = dict.fromkeys(row["implementation"] for cell in cells for row in timed(cell))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def roofline(cells: list[dict], device: str) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    points = even(cells, device)
    markers = dict(zip(dict.fromkeys(cell["shape"] for cell, _ in points), MARKERS, strict=False))
    for i, (name, colour) in enumerate(colours(cells).items()):
        for cell, row in points:
            if row["implementation"] == name and "low_us" in row:
                rates = [cell["flops"] / row[end] / 1e6 for end in ("high_us", "low_us")]
                axes.plot([APART**i * cell["flops"] / cell["bytes"]] * 2, rates, color=colour, linewidth=0.6, alpha=0.4)
        for shape, marker in markers.items():
            own = [(c, r) for c, r in points if (r["implementation"], c["shape"]) == (name, shape)]
            if not own:
                continue
            x = [APART**i * cell["flops"] / cell["bytes"] for cell, _ in own]
            y = [cell["flops"] / row["us"] / 1e6 for cell, row in own]
            axes.plot(x, y, marker, color=colour, markersize=3, alpha=0.7, label=f"{name}, {shape}")
    ceilings = points[0][0]["ceilings"][device]
    memory, peak = ceilings["bytes_per_s"] / 1e12, (ceilings["flops_per_s"] or float("inf")) / 1e12
    intensities = [cell["flops"] / cell["bytes"] for cell, _ in points]
    x = sorted(
        {min(intensities), min(max(peak / memory, min(intensities)), 2 * max(intensities)), 2 * max(intensities)}
    )
    label = f"{memory:.2f} TB/s" + (f", {peak:.0f} TFLOPS" if peak < float("inf") else "")
    axes.plot(x, [min(memory * at, peak) for at in x], "k--", linewidth=1, label=label)
    axes.set(xscale="log", yscale="log", xlabel="flops per byte (implementations a little apart)", ylabel="TFLOPS")
    axes.set_title(title(cells, "roofline", device))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def panel(axes: Axes, points: list[tuple[dict, dict]], device: str, colour_of: dict[str, str]) -> None:
    lines, bands = defaultdict(list), defaultdict(list)
    floor = {}
    for cell, row in points:
        lines[row["implementation"]].append((cell["tokens"], row["us"]))
        if "low_us" in row:
            bands[row["implementation"]].append((cell["tokens"], row["low_us"], row["high_us"]))
        floor[cell["tokens"]] = cell["floors_us"][device]
    for name, band in bands.items():
        axes.fill_between(*zip(*sorted(band), strict=True), color=colour_of[name], alpha=0.2, linewidth=0)
    for name, line in lines.items():
        axes.plot(*zip(*sorted(line), strict=True), ".-", color=colour_of[name], markersize=3, linewidth=1, label=name)
    axes.plot(*zip(*sorted(floor.items()), strict=True), "k--", linewidth=0.8, label="floor")
    tokens = sorted(floor)
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xticks=tokens[:: max(1, len(tokens) // 5)])
    axes.set_ylim(0.9 * min(floor.values()), min(CUT * max(floor.values()), 1.1 * axes.dataLim.ymax))
    axes.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}")
    axes.tick_params(which="both", labelsize=6)


def crossover(cells: list[dict], device: str) -> Figure:
    points, colour_of = even(cells, device), colours(cells)
    keys = list(dict.fromkeys((cell["shape"], cell["groups"]) for cell, _ in points))
    height = -(-len(keys) // COLUMNS)
    figure = Figure(figsize=(2.4 * COLUMNS, 1.8 * height + 0.6), layout="constrained")
    grid = figure.subplots(height, COLUMNS, squeeze=False).flatten()
    named: dict[str, Artist] = {}
    for axes, key in zip(grid, keys, strict=False):
        panel(axes, [(c, r) for c, r in points if (c["shape"], c["groups"]) == key], device, colour_of)
        axes.set_title(f"{key[0]}, dense" if key[1] is None else f"{key[0]}, G = {key[1]}", fontsize=8)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    for axes in grid[len(keys) :]:
        axes.remove()
    figure.legend(named.values(), named, loc="outside lower center", ncols=4)
    figure.suptitle(title(cells, "us against tokens" + " an expert" * all(groups for _, groups in keys), device))
    return figure


def written(cells: list[dict], device: str, folder: Path) -> list[Path]:
    """Both plots of one product, roofline first."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("roofline", roofline), ("crossover", crossover)):
        paths.append(folder / f"{cells[0]['product']}_{name}.svg")
        draw(cells, device).savefig(paths[-1], metadata={"Date": None})
    return paths


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", help="one of those in the file; the first if not given")
    options = parser.parse_args(arguments)
    cells = cells_of(read_results(options.results))
    known = devices(cells)
    device = options.device or next(iter(known), None)
    if device not in known:
        parser.error(f"{options.results} has no times for {device}, but for {', '.join(known) or 'no device'}")
    for own in by_product(cells).values():
        print("\n".join(str(path) for path in written(own, device, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
