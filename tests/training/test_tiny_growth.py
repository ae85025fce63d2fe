"""tools/tiny/train_tiny.py in two phases and watched: what grows, what goes on, the same bytes from the same seed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny_corpus
import tiny_trainer
import train_tiny
from longcat_ops import LongcatCorruptionError
from support.flips import flip
from support.tiny_toy import CHAPTERS, SMALL, same, trainer

TWO_PHASES = ("--grow-at", "2", "--batch-tokens", "512", "--threads", "1")


@pytest.fixture(autouse=True)
def small_recipe(monkeypatch):
    monkeypatch.setattr(tiny_trainer, "TARGET_REAL", 2.0)
    monkeypatch.setattr(train_tiny, "TINY_CONFIG", SMALL)
    monkeypatch.setattr(tiny_corpus, "read_chapters", lambda: CHAPTERS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # the recipe turns it on


@pytest.fixture(scope="module")
def stream():
    return tiny_corpus.encode_chapters(tiny_corpus.train_tokenizer(CHAPTERS, SMALL["vocab_size"]), CHAPTERS)


def begun(tmp_path, stream, *more):
    """A trainer of the first phase, and its arguments."""
    args = trainer(tmp_path, stream, 4, *TWO_PHASES, *more).args
    return train_tiny.begin(args, dict(SMALL), stream)


def test_growth_stacks_layers_and_goes_on(tmp_path, stream):
    run = begun(tmp_path, stream)
    assert run.config["num_layers"] == 1 and train_tiny.train(run, until=2)
    before, sampled = run.optimizer.masters, run.sampler.state_dict()
    deep = tiny_trainer.grown(run, stream)
    assert deep.config == SMALL and deep.step == 2 and same(deep.sampler.state_dict(), sampled)
    after = deep.optimizer.masters
    for name, value in after.items():
        old = before[name.replace("layers.1.mlp", "layers.0.mlp").replace("model.layers.1.", "model.layers.0.")]
        assert value.dtype == torch.float32 and torch.equal(value, old), name
    assert len(after) == len(before) + sum(name.startswith("model.layers.0.") for name in before)
    for layer, controller in enumerate(deep.controllers):
        assert same(controller.state_dict(), run.controllers[0].state_dict()) and controller.step == 2
        bias = after[f"model.layers.{layer}.mlp.router.e_score_correction_bias"]
        assert torch.equal(controller.bias, bias) and bias.any()
    assert not any(m.any() for m in deep.optimizer.momentum.values())
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.pt"]  # and nothing temporary
    assert train_tiny.train(deep) and deep.step == 4
    assert not torch.equal(*(deep.optimizer.masters[f"model.layers.{i}.mlps.0.up_proj.weight"] for i in (0, 1)))


def test_depths_that_do_not_come_from_stacking():
    with pytest.raises(ValueError, match="3 layers do not come from stacking some 2 times"):
        tiny_trainer.shallow(SMALL | {"num_layers": 3})
    for step in ("4", "-1"):
        with pytest.raises(SystemExit):
            train_tiny.parse(["--out", "x", "--steps", "4", "--grow-at", step])


def recipe(folder: Path, *more: str) -> dict[str, bytes]:
    """The files of a whole run; metrics.json has times."""
    command = ["--out", str(folder / "out"), "--state", str(folder / "state"), "--steps", "4", "--settle", "2"]
    assert train_tiny.main([*command, *TWO_PHASES, *more]) == 0
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.name != "metrics.json"}


def test_the_same_seed_gives_the_same_bytes(tmp_path, capsys):
    """Watched or not, in one go or interrupted in either phase."""
    want = recipe(tmp_path / "plain")
    assert {"model.safetensors", "config.json", "tokenizer.json", "heldout.txt"} <= want.keys()
    assert recipe(tmp_path / "watched", "--watch-every", "1", "--watch-tensors", "3") == want
    real, stops = tiny_trainer.Trainer.train_step, [1, 3]

    def stopping(self):
        if stops and self.step == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        return real(self)

    tiny_trainer.Trainer.train_step = stopping
    try:
        for more in ((), ("--resume",)):
            command = ["--out", str(tmp_path / "broken" / "out"), "--state", str(tmp_path / "broken" / "state")]
            assert train_tiny.main([*command, "--steps", "4", "--settle", "2", *TWO_PHASES, *more]) == 3
        assert recipe(tmp_path / "broken", "--resume") == want
    finally:
        tiny_trainer.Trainer.train_step = real
    assert "grown to 2 layers at step 2" in capsys.readouterr().out


_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import tiny_corpus, tiny_trainer, train_tiny
from support.tiny_toy import CHAPTERS, SMALL
tiny_trainer.TARGET_REAL, train_tiny.TINY_CONFIG, tiny_corpus.read_chapters = 2.0, SMALL, lambda: CHAPTERS
sys.exit(train_tiny.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_other_processes(tmp_path):
    want = recipe(tmp_path / "here")
    for seed in ("1", "2"):
        folder = tmp_path / seed
        command = ["--out", str(folder / "out"), "--state", str(folder / "state"), "--steps", "4", "--settle", "2"]
        code = _PROCESS.format(path=sys.path)
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, *command, *TWO_PHASES], check=True, env=environment)
        found = {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.name != "metrics.json"}
        assert found == want


def test_a_watched_trainer_stops_before_the_update_that_would_spread_a_flip(tmp_path, stream):
    run = trainer(tmp_path, stream, 6, "--watch-every", "2", "--watch-tensors", "1000")
    run.train_step()
    run.train_step()  # behind it all tensors have their checksums
    name = "model.layers.1.mlp.experts.down_proj"
    flip(run.optimizer.momentum[name], random.Random(0))
    with pytest.raises(LongcatCorruptionError, match=f"the bits of momentum {name} changed between two updates"):
        run.train_step()
    assert run.step == 2
