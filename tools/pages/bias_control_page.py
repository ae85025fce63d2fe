"""Renews docs/bias_control.md: simulates the controller of the router's bias beside DeepSeek-V3's rule, and writes
docs/results/bias-control.json, the tables of the page and its plots. Takes under a minute.

python tools/pages/bias_control_page.py            # write them
python tools/pages/bias_control_page.py --check    # exit 1 if a file is not what this would write
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tools/pages", "python") if str(ROOT / name) not in sys.path]

from bias_simulation import FLOOR, TARGET, Curve, Router, Rule, simulate  # noqa: E402
from sections import renew, renewed  # noqa: E402

PAGE, RECORD = "docs/bias_control.md", "docs/results/bias-control.json"
PLOTS = {"real": "docs/bias_control_real.svg", "load_cv": "docs/bias_control_load.svg"}
LABELS = {"real": "mean FFN experts of a token", "load_cv": "CV of their loads"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "longcat_ops", "font.size": 8}  # the same curves give the same file
STEPS, WINDOW, LATE = 250, 20, 50
ROUTERS = {"skew 0.5": Router(skew=0.5), "skew 2": Router(skew=2.0)}
RATES = (
    Rule("mu 0.03", {"mu": 0.03}),
    Rule("mu 0.1", {"mu": 0.1}),
    Rule("mu 0.3", {"mu": 0.3}),
    Rule("mu 1", {"mu": 1.0}),
    Rule("mu 0.3 to 0.01 in 200 steps", {"mu": 0.3, "mu_final": 0.01, "decay_steps": 200}),
    Rule("sign rule, u 1e-3", u=1e-3),
    Rule("sign rule, u 1e-4", u=1e-4),
)
TERMS = (
    Rule("mu 0.3, kp 0.1", {"mu": 0.3, "kp": 0.1}),
    Rule("mu 0.3, kp 1", {"mu": 0.3, "kp": 1.0}),
    Rule("mu 0.3, kd 0.1", {"mu": 0.3, "kd": 0.1}),
    Rule("mu 0.3, kd 0.3", {"mu": 0.3, "kd": 0.3}),
)
CLOSED = Router(skew=0.5, closed=200)  # for so many steps no zero expert can be chosen
BOUNDS = (
    Rule("mu 0.3", {"mu": 0.3}),
    Rule("mu 0.3, limit 0.1", {"mu": 0.3, "limit": 0.1}),
    Rule("mu 0.3, limit 0.03", {"mu": 0.3, "limit": 0.03}),
)
CLOSED_STEPS = 450
Curves = dict[str, dict[str, dict[str, list[float]]]]  # router -> rule -> real, load_cv -> a value a step


def simulated(steps: int = STEPS, closed_steps: int = CLOSED_STEPS) -> Curves:
    """Every curve of the page, rounded as it is recorded."""
    found = {name: simulate(router, RATES + TERMS, steps) for name, router in ROUTERS.items()}
    found["closed"] = simulate(CLOSED, BOUNDS, closed_steps)

    def rounded(curve: Curve) -> dict[str, list[float]]:
        return {key: [round(value, 4) for value in values] for key, values in vars(curve).items()}

    return {name: {rule: rounded(curve) for rule, curve in of_router.items()} for name, of_router in found.items()}


def settled(real: Sequence[float], after: int = 0) -> int | None:
    """The step from which on the mean of the last WINDOW steps stays within 1 % of the target; None: not for LATE steps
    before the end.
    """
    ends = range(after + WINDOW, len(real) + 1)
    outside = [end for end in ends if abs(sum(real[end - WINDOW : end]) / WINDOW / TARGET - 1) > 0.01]
    step = max(outside, default=after + WINDOW - 1) + 1
    return step if step <= len(real) - LATE else None


def late(values: Sequence[float]) -> float:
    return sum(values[-LATE:]) / LATE


def table(heading: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def rules(curves: Curves, some: Sequence[Rule]) -> str:
    rows = []
    for rule in some:
        cells = [rule.name]
        for name in ROUTERS:
            curve = curves[name][rule.name]
            step, load = settled(curve["real"]), late(curve["load_cv"])
            cells += [step or "-", f"{late(curve['real']):.3f}", f"{load:.3f}", f"{load / FLOOR:.2f}"]
        rows.append(cells)
    heading = ["rule"]
    for name in ROUTERS:
        heading += [f"{name}: from step", "mean FFN experts", "load CV", "CV / floor"]
    return table(heading, rows)


def bounds(curves: Curves) -> str:
    rows = []
    for rule in BOUNDS:
        curve = curves["closed"][rule.name]
        step = settled(curve["real"], CLOSED.closed)
        low = min(curve["real"][CLOSED.closed :])
        rows.append((rule.name, f"{low:.2f}", step - CLOSED.closed if step else "-", f"{late(curve['real']):.3f}"))
    heading = ("rule", "fewest FFN experts after step 200", "on target, steps after 200", "mean FFN experts at the end")
    return table(heading, rows)


def texts(curves: Curves) -> dict[str, str]:
    """Page and record, as they should be."""
    made = {"rates": partial(rules, curves, RATES), "terms": partial(rules, curves, (RATES[2], *TERMS)),
            "bounds": partial(bounds, curves)}  # fmt: skip
    page = renewed((ROOT / PAGE).read_text(encoding="utf-8"), made, "simulation")
    return {PAGE: page, RECORD: record(curves)}


def record(curves: Curves) -> str:
    """JSON with a line for each rule."""
    routers = []
    for name, of_rules in curves.items():
        lines = ",\n".join(f"  {json.dumps(rule)}: {json.dumps(curve)}" for rule, curve in of_rules.items())
        routers.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(routers) + "\n}\n"


def plots(curves: Curves) -> dict[str, str]:
    """Each file with its plot. Needs matplotlib, on whose version the text depends."""
    import matplotlib
    from matplotlib.figure import Figure

    made = {}
    with matplotlib.rc_context(STYLE), tempfile.TemporaryDirectory() as folder:
        for key, file in PLOTS.items():
            drawn = Figure(figsize=(9, 6), layout="constrained")
            panels = drawn.subplots(len(ROUTERS), 2, sharex=True, sharey="row")
            for row, name in zip(panels, ROUTERS, strict=True):
                for panel, some in zip(row, (RATES, (RATES[2], *TERMS)), strict=True):
                    for rule in some:
                        values = curves[name][rule.name][key][::2]  # every second step: the file is half as long
                        panel.plot(range(0, 2 * len(values), 2), values, linewidth=0.8, label=rule.name)
                    panel.axhline({"real": TARGET, "load_cv": FLOOR}[key], color="black", linestyle=":", linewidth=0.8)
                    panel.set(title=name, xlabel="step", ylabel=LABELS[key])
                    if key == "load_cv":
                        panel.set_yscale("log")
            for panel in panels[0]:
                panel.legend(fontsize=6)
            path = Path(folder) / "plot.svg"
            drawn.savefig(path, metadata={"Date": None})
            made[file] = path.read_text(encoding="utf-8")
    return made


def main(arguments: list[str] | None = None) -> int:
    def files() -> dict[str, str]:
        curves = simulated()
        return texts(curves) | plots(curves)

    return renew(__doc__, ROOT, files, arguments)


if __name__ == "__main__":
    sys.exit(main())
