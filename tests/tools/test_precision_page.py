"""The table of docs/precision.md is that of the record, which is of this checkpoint, and its figures come again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import precision_page

RECORD = json.loads(precision_page.RECORD.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_page_is_current(capsys: pytest.CaptureFixture) -> None:
    assert precision_page.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = precision_page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(precision_page, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(text.replace("| all | 228 |", "| all | 227 |"), encoding="utf-8")
    assert precision_page.main(["--check"]) == 1
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert precision_page.main(["--check"]) == 0
    monkeypatch.setattr(precision_page, "sources", lambda: RECORD["sources"] | {"model.safetensors": "another"})
    assert precision_page.main(["--check"]) == 1


def test_the_figures_come_again(tmp_path: Path) -> None:
    """Of the sample. Sums in another order, as on another machine, move a value by a rounding to bf16, 2^-9 of it; FP8
    moves them by 3 % and more, which must show all the same.
    """
    found, old = precision_page.sample(tmp_path), RECORD["sample"]
    assert abs(found.checkpoint.nats_per_token - old["nats_per_token"]) <= 0.01
    assert abs(found.difference.agreement - old["agreement"]) <= 0.02
    assert found.difference.layers == pytest.approx(old["layers"], rel=0.1)
    assert found.difference.kl == pytest.approx(old["kl"], rel=0.5)


def test_what_the_page_says_of_it() -> None:
    rows = RECORD["policies"]
    assert rows["auto"] == rows["all"] and (rows["none"]["agreement"], rows["none"]["kl"]) == (1.0, 0.0)
    assert RECORD["largest_input"] < 28672 / 100 and RECORD["largest_error"] < 2**-5 / 5
    assert abs(rows["all"]["bits_per_byte"] - rows["none"]["bits_per_byte"]) < 0.005
