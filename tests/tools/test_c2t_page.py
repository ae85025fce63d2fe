"""What docs/engine.md says of C2T on longcat-tiny is what its results say; tools/pages/c2t_page.py writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import c2t_page

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_current() -> None:
    for file, text in c2t_page.texts().items():
        assert (ROOT / file).read_text(encoding="utf-8") == text, f"{file}: run python tools/pages/c2t_page.py"


def test_the_plot_is_current() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is in the extra [bench]")
    for file, text in c2t_page.plots().items():
        on_file = (ROOT / file).read_text(encoding="utf-8")
        (version,) = re.findall(r"Matplotlib v([\d.]+)", on_file)
        if version != matplotlib.__version__:
            pytest.skip(f"{file} was drawn by matplotlib {version}, here is {matplotlib.__version__}")
        assert on_file == text, f"{file}: run python tools/pages/c2t_page.py"


def test_the_text_has_the_numbers_of_the_results() -> None:
    facts = json.loads((ROOT / c2t_page.RESULTS).read_text(encoding="utf-8"))
    page, judged = (ROOT / c2t_page.PAGE).read_text(encoding="utf-8"), facts["judgement"]
    for text in (
        f"{facts['traces']['drafts'][0]:,} drafts of {facts['traces']['texts'][0]} other texts",
        f"Of the {judged['samples']:,} drafts that judged it the target takes {100 * judged['acceptance']:.1f} %",
        f"log loss is {judged['log_loss']:.3f} ({judged['base_log_loss']:.3f} for a score that is always "
        f"{judged['acceptance']:.3f})",
        f"calibration error {judged['calibration_error']:.3f}, its AUC {judged['auc']:.3f}",
        f"a draft costs {facts['costs']['draft']:.2f} of a target pass and its row {facts['costs']['verify'] - 1:.2f}",
    ):  # fmt: skip
        assert text in page, text
    assert all(way["identical"] for way in facts["ways"]) and len(facts["ways"]) == 2 + 5


def test_the_checkpoint_has_that_classifier() -> None:
    facts = json.loads((ROOT / c2t_page.RESULTS).read_text(encoding="utf-8"))
    found = json.loads((ROOT / "checkpoints/longcat-tiny/c2t.json").read_text(encoding="utf-8"))
    assert found["about"]["judgement"] == facts["judgement"] and found["beta"] == facts["classifier"]["beta"]
