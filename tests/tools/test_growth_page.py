"""docs/growth.md has the losses of its record, and the record is of what the page says."""

from __future__ import annotations

import json

import pytest
import torch

import growth_page as page
import tiny_corpus
import tiny_trainer
from sections import renewed
from support.tiny_toy import CHAPTERS, SMALL

RECORD = json.loads(page.RECORD.read_text(encoding="utf-8"))


def test_the_table_is_what_the_record_makes():
    text = page.PAGE.read_text(encoding="utf-8")
    assert renewed(text, {"growth": lambda: page.table(RECORD)}, "losses") == text, "run growth_page.py --table"
    assert set(RECORD["losses"]) == set(RECORD["cpu_seconds"]) == set(page.KINDS)


def test_what_is_trained(monkeypatch):
    """With a few weights: who begins where, and that all see the same batches at the same steps."""
    monkeypatch.setattr(tiny_trainer, "TARGET_REAL", 2.0)
    monkeypatch.setattr(tiny_corpus, "read_chapters", lambda: CHAPTERS)
    real, seen = tiny_trainer.Trainer.train_step, []

    def watched(self):
        drawn = self.sampler.generator.get_state().sum().item(), len(self.sampler.queue)
        seen.append((self.step, self.config["num_layers"], drawn))
        return real(self)

    monkeypatch.setattr(tiny_trainer.Trainer, "train_step", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = page.trained(first=2, after=1, config=SMALL, batch=512, schedule=10)
    finally:
        torch.set_num_threads(before)
    assert [(step, layers) for step, layers, _ in seen] == [
        (0, 1), (1, 1), (2, 2), (2, 1), (2, 2), (0, 2), (1, 2), (2, 2)
    ]  # fmt: skip
    assert len({(step, drawn) for step, _, drawn in seen}) == 3
    losses = found["losses"]
    assert {name: list(values) for name, values in losses.items()} == {
        "grown": [0, 2, 3], "shallow": [0, 2, 3], "random": [2, 3], "scratch": [0, 2, 3],
    }  # fmt: skip
    assert losses["grown"][0] == losses["shallow"][0] and losses["random"][2] == losses["scratch"][0]
    assert losses["grown"][2] < losses["random"][2] and losses["scratch"][2] < losses["scratch"][0]
    assert page.table(found | {"command": "x", "seconds": 60, "date": "d", "torch": "t", "machine": "m", "threads": 1,
                               "amx": False}).count("\n|") == 6  # fmt: skip
    assert losses["grown"][2] == pytest.approx(losses["shallow"][2], abs=0.5)
