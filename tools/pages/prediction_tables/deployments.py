"""Tables and plots of docs/perf_model.md: deployments, by longcat_ops.perf.deployment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from longcat_ops.cli import perf_model_plot
from longcat_ops.perf.deployment import GPUS, Deployment, evaluate, tables
from longcat_ops.perf.deployment.calibration import measured
from longcat_ops.perf.deployment.hardware import EFFICIENCIES, Efficiency
from longcat_ops.perf.deployment.reported import TABLE_7, achieved
from longcat_ops.perf.deployment.solve import solve, targets
from longcat_ops.perf.deployment.studies import sweep

from .markdown import table

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
TARGET = "tokens/s/user >= 100"
LIMIT = TABLE_7[2].deployment  # LongCat-Flash, attention as printed
SWEEPS = {  # file -> deployment, axes, metric
    "docs/perf_model_batch.svg": (replace(LIMIT, ep=64, efficiency=achieved(), link=None),
                                  {"batch": (4, 8, 16, 32, 64, 128, 256), "gpu": ("H800", "H200", "GB200")}, "dollars"),
    "docs/perf_model_ep.svg": (replace(LIMIT, link=None),
                               {"ep": (8, 16, 32, 64, 128, 256, 512), "batch": (8, 32, 96, 192)}, "tpot"),
}  # fmt: skip


def _markdown(make: Callable[[], tables.Table]) -> str:
    return table(*make())


def worth(batch: int) -> str:
    return table(*tables.worth(evaluate(replace(LIMIT, batch=batch))))


def cheapest() -> str:
    rows = []
    for efficiency in (EFFICIENCIES["report"], achieved()):
        found = solve(Deployment(LIMIT.network, LIMIT.gpu, efficiency=efficiency), targets(TARGET))
        heading, of_one = tables.solved(found)
        rows += [(f"`{efficiency.name}`", *row) for row in of_one]
    return table(("efficiency", *heading), rows)


def batches() -> str:
    axes = {"ep": (8, 32, 128), "batch": (8, 32, 96, 192)}
    return table(*tables.swept(axes, sweep(replace(LIMIT, link=None, efficiency=achieved()), axes)))


def _measured() -> list[Efficiency]:
    """A row for each folder of docs/results/ with answers of a GPU."""
    found = []
    for file in sorted(RESULTS.glob("*/answers.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found.append(measured(lines, f"docs/results/{file.parent.name}"))
    return found


def efficiencies() -> str:
    ours = _measured()
    note = "" if ours else "\nNo row `measured`: docs/results/ has no answers of a GPU yet.\n"
    return table(*tables.efficiencies([*EFFICIENCIES.values(), achieved(), *ours])) + note


SECTIONS = {
    "table 7": partial(_markdown, tables.table_7),
    "operating points": partial(_markdown, tables.table_6),
    "worth at 96": partial(worth, 96),
    "worth at 8": partial(worth, 8),
    "cheapest": cheapest,
    "batches": batches,
    "networks": partial(_markdown, tables.networks),
    "GPUs": partial(_markdown, tables.gpus),
    "sources of GPUs": partial(_markdown, tables.sources),
    "links": partial(_markdown, tables.links),
    "efficiencies": efficiencies,
}


def plots(folder: Path) -> dict[str, str]:
    """Each file with its plot. Needs matplotlib."""
    made = {}
    for file, (deployment, axes, metric) in SWEEPS.items():
        path, what = folder / Path(file).name, f"LongCat-Flash, {deployment.efficiency.name}"
        perf_model_plot.write(str(path), axes, sweep(deployment, axes, GPUS), metric, what)
        made[file] = path.read_text(encoding="utf-8")
    return made
