"""Every prediction in docs/ equals what longcat_ops.perf computes now; tools/pages/predictions_page.py writes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import predictions_page
from prediction_tables import chains, experts, markdown, model, products

ROOT = Path(__file__).resolve().parents[2]


def test_pages_and_results_are_current() -> None:
    for file, text in predictions_page.texts().items():
        assert (ROOT / file).read_text(encoding="utf-8") == text, f"{file}: run python tools/pages/predictions_page.py"


def test_plots_are_current() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is in the extra [bench]")
    for file, text in predictions_page.plots().items():
        on_file = (ROOT / file).read_text(encoding="utf-8")
        (version,) = re.findall(r"Matplotlib v([\d.]+)", on_file)
        if version != matplotlib.__version__:
            pytest.skip(f"{file} was drawn by matplotlib {version}, here is {matplotlib.__version__}")
        assert on_file == text, f"{file}: run python tools/pages/predictions_page.py"


def test_no_mark_of_a_section_is_left_over() -> None:
    """Every marked section has a generator, so that each is renewed."""
    for page in (ROOT / "docs").glob("*.md"):
        made = predictions_page.SECTIONS.get(f"docs/{page.name}", {})
        found = re.findall(r"<!-- predictions: (.+) -->", page.read_text(encoding="utf-8"))
        assert sorted(found) == sorted(made), page.name


def test_a_page_is_renewed_between_its_marks() -> None:
    page = "before\n<!-- predictions: a -->\nold\n<!-- end of a -->\nafter\n"
    new = predictions_page.renewed(page, {"a": lambda: "new \\1\n"})
    assert new == "before\n<!-- predictions: a -->\n\nnew \\1\n\n<!-- end of a -->\nafter\n"
    assert predictions_page.renewed(new, {"a": lambda: "new \\1\n"}) == new
    for wrong in ("no mark\n", page + page):
        with pytest.raises(ValueError, match="expected 1"):
            predictions_page.renewed(wrong, {"a": str})


def test_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(predictions_page, "ROOT", tmp_path)
    monkeypatch.setattr(predictions_page, "texts", lambda: {"page": "text\n"})
    monkeypatch.setattr(predictions_page, "plots", dict)
    assert predictions_page.main(["--check"]) == 1 and not (tmp_path / "page").exists()
    assert predictions_page.main([]) == 0 and (tmp_path / "page").read_text() == "text\n"
    assert predictions_page.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == ["page: is not current", "page: renewed", "all current"]


def test_tables_hold_bands() -> None:
    for make in (
        products.pairs,
        products.swiglu,
        products.few_experts,
        chains.layer,
        chains.dispatch_ops,
        experts.times,
    ):
        rows = make().splitlines()[2:]
        assert rows and all(re.search(r"\d \.\. \d", cell) for row in rows for cell in row.split(" | ")[3:-1]), make
    assert all(" .. " in row for row in model.published_times().splitlines()[2:])
    assert markdown.table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"
