"""Turns what tools/gpu_check left into pages: docs/results/<device>-<date>/ and a golden file, and renews the table of
primitives.

    ./tools/gpu_report results                       # a folder that gpu_check wrote

A measurement stands beside the band that was predicted for it before any machine ran, and says whether it fell inside.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("bench", "python") if str(ROOT / name) not in sys.path]

from conformance import golden  # noqa: E402
from device_check.answers import Answers  # noqa: E402
from device_check.findings import QUESTIONS, answered  # noqa: E402
from device_check.predictions import Band, look_up  # noqa: E402

RESULTS = ROOT / "docs" / "results"
PREDICTIONS = RESULTS / "h200-predictions.json"


def read_bands(path: Path = PREDICTIONS) -> list[Band]:
    return [Band(**band) for band in json.loads(path.read_text())["bands"]]


def passed(answers: Answers) -> dict[str, dict[str, Any]]:
    return {name: line["answer"] for name, line in answers.steps.items() if line["status"] == "passed"}


def short_name(device: str) -> str:
    """ "NVIDIA H200" -> "h200"; "NVIDIA H100 80GB HBM3" -> "h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia")).strip("-")


def number(value: float) -> str:
    return f"{value:.4g}"


def compared(answers: Answers, bands: Sequence[Band]) -> list[tuple[Band, float | None]]:
    found = passed(answers)
    return [(band, look_up(found.get(band.step, {}), band.metric)) for band in bands]


def band_rows(rows: Sequence[tuple[Band, float | None]]) -> list[str]:
    lines = ["| step | metric | measured | predicted | unit | |", "| --- " * 6 + "|"]
    for band, value in rows:
        where = "not measured" if value is None else "inside" if band.contains(value) else "**outside**"
        measured = "" if value is None else number(value)
        predicted = f"{number(band.low)} .. {number(band.high)}"
        lines.append(f"| {band.step} | {band.metric} | {measured} | {predicted} | {band.unit} | {where} |")
    return lines


def page(answers: Answers, bands: Sequence[Band], source: str) -> str:
    """The report as Markdown."""
    facts, run = answers.steps["facts"]["answer"], answers.runs[-1]
    rows = compared(answers, bands)
    known = [(band, value) for band, value in rows if value is not None]
    inside = sum(band.contains(value) for band, value in known)
    statuses = Counter(line["status"] for line in answers.steps.values())
    lines = [f"# {facts['device']}, {run['date'][:10]}", ""]
    lines += [f"Made by `tools/gpu_report` of what `tools/gpu_check` wrote ({source}).", ""]
    told = ("driver_version", "torch", "sms", "l2_bytes", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    lines += [f"- {name}: {facts[name]}" for name in told if name in facts]
    lines += [f"- call of {r['date']}: {r['budget_s']:g} s, libraries: {r['libraries']}, sources {r['sources'][:12]}"
              for r in answers.runs]  # fmt: skip
    lines += [f"- steps: {', '.join(f'{count} {status}' for status, count in statuses.most_common())}", ""]
    lines += ["## Questions", ""]
    for question in QUESTIONS:
        lines += [f"**{question.text}** {answered(question, passed(answers))}", ""]
    lines += ["## Measured and predicted", "", f"{inside} of {len(known)} measurements fell inside their bands; "
              f"{len(rows) - len(known)} bands have no measurement.", ""]  # fmt: skip
    lines += band_rows(rows)
    if bad := [line for line in answers.steps.values() if line["status"] != "passed"]:
        lines += ["", "## Not well", ""]
        for line in bad:
            text = " ".join(line.get("text", "").split())[-400:].replace("`", "'")
            lines.append(f"- {line['step']}: {line['status']} after {line['seconds']} s: `{text}`")
    lines += ["", "## Everything", "", "| step | status | s | answer |", "| --- " * 4 + "|"]
    for line in answers.steps.values():
        answer = json.dumps(line.get("answer", {}))[:300].replace("|", "\\|")
        lines.append(f"| {line['step']} | {line['status']} | {line['seconds']} | `{answer}` |")
    return "\n".join(lines) + "\n"


def plot(answers: Answers, path: Path) -> bool:
    """Products: measured beside their bands, by rows of an expert. False where there is nothing to show."""
    found = {name: answer for name, answer in passed(answers).items() if re.match(r"times/(gate_up|down)-", name)}
    if not found:
        return False
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "longcat_ops"
    bands = {band.step: band for band in read_bands() if band.metric == "times.longcat_ops.us"}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, shape in zip(axes, ("gate_up", "down"), strict=True):
        for color, groups in zip(("C0", "C1", "C2", "C3"), (4, 8, 16, 32), strict=True):
            cells = sorted((int(name.split("-m")[1]), name) for name in found if f"/{shape}-G{groups}-" in name)
            if not cells:
                continue
            m, names = zip(*cells, strict=True)
            us = [found[name]["times"]["longcat_ops"]["us"] for name in names]
            axis.plot(m, us, "o-", color=color, label=f"{groups} experts")
            known = [name in bands for name in names]
            if all(known):
                low, high = ([getattr(bands[name], side) for name in names] for side in ("low", "high"))
                axis.fill_between(m, low, high, color=color, alpha=0.15)
        axis.set(
            title=f"{shape}: measured, and predicted bands", xlabel="rows of an expert", xscale="log", yscale="log"
        )
    axes[0].set_ylabel("us")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def write(folder: Path, results: Path, golden_folder: Path) -> Path:
    """The pages of one device and day. Raises ValueError where the answers are no GPU's."""
    answers = Answers(folder)
    facts = answers.steps.get("facts", {}).get("answer", {})
    if not answers.runs or answers.runs[-1]["dry_run"] or "device" not in facts:
        raise ValueError(f"{folder}: no answers of a GPU: run tools/gpu_check --budget SECONDS --out {folder} on one")
    name = short_name(facts["device"])
    target = results / f"{name}-{answers.runs[-1]['date'][:10]}"
    target.mkdir(parents=True, exist_ok=True)
    text = page(answers, read_bands(), "answers.jsonl beside this page")
    if plot(answers, target / "products.svg"):
        text = text.replace("## Measured and predicted\n", "## Measured and predicted\n\n![products](products.svg)\n")
    (target / "README.md").write_text(text, encoding="utf-8")
    shutil.copy2(answers.path, target)
    if (folder / "golden.json").exists():
        golden_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "golden.json", golden_folder / f"{name}.json")
    return target


def renew_primitives() -> None:
    import primitives_page

    primitives_page.main([])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what gpu_check wrote")
    options = parser.parse_args(arguments)
    try:
        print(write(options.folder, RESULTS, golden.FOLDER))
    except ValueError as error:
        parser.error(str(error))
    renew_primitives()
    return 0


if __name__ == "__main__":
    sys.exit(main())
