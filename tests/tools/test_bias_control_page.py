"""docs/bias_control.md is what its record makes, and the record what the simulation gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import bias_control_page as page

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / page.RECORD).read_text(encoding="utf-8"))


def test_the_page_is_what_the_record_makes() -> None:
    for file, text in page.texts(RECORD).items():
        assert (ROOT / file).read_text(encoding="utf-8") == text, f"{file}: run python tools/pages/bias_control_page.py"


def test_the_plots_are_what_the_record_makes() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is in the extra [bench]")
    for file, text in page.plots(RECORD).items():
        on_file = (ROOT / file).read_text(encoding="utf-8")
        (version,) = re.findall(r"Matplotlib v([\d.]+)", on_file)
        if version != matplotlib.__version__:
            pytest.skip(f"{file} was drawn by matplotlib {version}, here is {matplotlib.__version__}")
        assert on_file == text, f"{file}: run python tools/pages/bias_control_page.py"


def test_the_record_begins_as_the_simulation_does() -> None:
    begin = page.simulated(12, 2)
    for router, rules in RECORD.items():
        steps = 2 if router == "closed" else 12
        assert {rule: {key: v[:steps] for key, v in curve.items()} for rule, curve in rules.items()} == begin[router]


@pytest.mark.slow
def test_the_record_is_what_the_simulation_gives() -> None:
    assert page.record(page.simulated()) == (ROOT / page.RECORD).read_text(encoding="utf-8")


def test_the_step_of_settling_is_that_of_a_search() -> None:
    """The 20 steps up to step 50 are the first without one of the 30 that are off."""
    assert page.settled([5.0] * 30 + [4.0] * 100) == 50
    assert page.settled([5.0] * 30 + [4.0] * 69) is None  # step 50 is not 50 steps before the end
    assert page.settled([5.0] * 30 + [4.0] * 100, after=25) == 50
    assert page.settled([5.0] * 30 + [4.0] * 100, after=40) == 60
    assert page.settled([4.0 * 1.0099] * 100) == 20 and page.settled([4.0 * 1.0101] * 100) is None


def test_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "simulated", dict)
    monkeypatch.setattr(page, "texts", lambda curves: {"page": "text\n"})
    monkeypatch.setattr(page, "plots", dict)
    assert page.main(["--check"]) == 1 and not (tmp_path / "page").exists()
    assert page.main([]) == 0 and (tmp_path / "page").read_text() == "text\n"
    assert page.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == ["page: is not current", "page: renewed", "all current"]
