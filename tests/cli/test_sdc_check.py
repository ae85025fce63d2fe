"""`sdc-check`: sound networks, planted faults, what is printed and refused."""

from __future__ import annotations

import json
import random

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError
from longcat_ops.cli import main
from longcat_ops.cli.sdc_check import __doc__ as documented
from longcat_ops.cli.sdc_check import lines
from longcat_ops.engine.sdc import sdc_check
from longcat_ops.training import Checksums, tensors_of
from support import models
from support.cli_checkpoint import TOY, checkpoint, one_thread
from support.flips import Fault, flip


@pytest.fixture
def model():
    return models.build(torch.bfloat16, num_layers=1, mtp=False)


def test_a_sound_network():
    model, seen = models.build(torch.bfloat16, num_layers=1), []
    found = sdc_check(model, models.prompt(6), rounds=2, progress=lambda *done: seen.append(done))
    assert found.holds and found.rounds == 2 and seen == [(1, 2), (2, 2)] and found.changed == []
    assert lines(found, "here", 6)[-1] == "verdict: SOUND. Nothing changed its bits."
    assert found.tensors == len(tensors_of(model)) and found.num_bytes == sum(t.nbytes for t in model.buffers())
    assert found.forward.calls > 200 and found.checksum_seconds > 0 < found.round_seconds


def test_a_weight_that_changed_since_it_was_loaded(model):
    sums = Checksums(tensors_of(model))
    flip(model.norm.weight, random.Random(0))
    found = sdc_check(model, models.prompt(6), rounds=3, sums=sums)
    assert not found.holds and found.changed == ["norm.weight"] and found.rounds == 1
    text = lines(found, "here", 6)
    assert text[1].endswith("CHANGED since they were loaded: norm.weight")
    assert text[3] == "verdict: CORRUPT OR NOT DETERMINISTIC: weights."


def test_an_op_that_errs_once(model):
    counting = Fault(-1, random.Random(0), kinds=("longcat_ops",))
    with counting:
        assert sdc_check(model, models.prompt(6), rounds=1).holds
    a_run = len(counting.calls) // 3  # one makes what is made once
    fault = Fault(2 * a_run + a_run // 2, random.Random(0), kinds=("longcat_ops",))
    with fault:
        found = sdc_check(model, models.prompt(6), rounds=3)
    assert not found.holds and found.rounds == 1 and not found.changed
    assert found.forward.difference.op == fault.op and found.forward.difference.run == 2


def test_refusals(model):
    for ids, options, text in (
        (torch.tensor([1]), {}, r"`ids` is of shape \[1\], expected \[n\], n of 2 or more"),
        (torch.tensor([[1, 2]]), {}, "`ids` is of shape"),
        (torch.tensor([1, 2]), {"rounds": 0}, "`rounds` is 0"),
    ):
        with pytest.raises(LongcatShapeError, match=text):
            sdc_check(model, ids, **options)


def test_command(checkpoint, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text(TOY)
    arguments = ["sdc-check", str(checkpoint), "--rounds", "1", "--tokens", "8", "--text", str(tmp_path / "text.txt")]
    assert main(arguments) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith(f"{checkpoint}, 8 tokens, 1 rounds of ") and text[1].endswith(": unchanged")
    assert text[2].endswith(": the same bits") and text[3] == "verdict: SOUND. Nothing changed its bits."
    real, calls = longcat_ops.LongcatFlashForCausalLM.follow_weights, []

    def corrupt(self):
        calls.append(flip(self.norm.weight, random.Random(1)) if len(calls) == 1 else None)
        real(self)

    monkeypatch.setattr(longcat_ops.LongcatFlashForCausalLM, "follow_weights", corrupt)
    assert main([*arguments, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["weights"]["changed"] == ["norm.weight"] and not facts["holds"] and facts["tokens"] == 8
    keys = {key for value in facts.values() if isinstance(value, dict) for key in value} | facts.keys()
    assert [key for key in keys if key not in documented] == []


def test_texts_that_are_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("")
    assert main(["sdc-check", str(checkpoint), "--text", str(tmp_path / "text.txt")]) == 2
    assert "sdc-check: argument `--text` is " in capsys.readouterr().err
    assert main(["sdc-check", str(checkpoint), "--text", str(tmp_path / "nothing")]) == 2
