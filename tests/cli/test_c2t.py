"""`c2t`: the file, the facts and the table; and `generate --beta`, which reads the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longcat_ops import DraftFilter
from longcat_ops.cli import c2t, main
from longcat_ops.engine.c2t_training import Traces
from support.cli_checkpoint import checkpoint, model, one_thread  # noqa: F401

WORDS = ("and it", "came", "to pass", "in those", "days", "that", "the king", "went", "up and", "people", "with", "him")


@pytest.fixture
def arguments(checkpoint, tmp_path: Path) -> list[str]:  # noqa: F811
    (tmp_path / "prompts.txt").write_text("\n".join(WORDS) + "\n")
    return ["c2t", str(checkpoint), "--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "16", "--rounds",
            "1", "--steps", "20", "--units", "3", "--betas", "0,0.9,1.5", "--batch", "4"]  # fmt: skip


def test_it_trains_judges_and_compares(arguments: list[str], checkpoint: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    output = tmp_path / "own.json"
    assert main([*arguments, "--output", str(output), "--beta", "0.25", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = DraftFilter.load(output)
    assert facts["classifier"] == {"units": 3, "top": 1000, "beta": 0.25} and found.beta == 0.25
    assert facts["traces"]["texts"] == [10, 1, 1] and facts["traces"]["drafts"] == [160, 16, 16]
    assert found.about["drafts"] == [160, 16, 16] and found.about["judgement"] == facts["judgement"]
    plain, every, zero, _, none = facts["ways"]
    assert [way["beta"] for way in facts["ways"]] == [None, None, 0.0, 0.9, 1.5]
    assert plain["rows_per_token"] == 1 and plain["verified"] is None and plain["tokens_per_step"] == 1
    assert zero["verified"] == every["verified"] and (zero["rows_saved"], zero["tokens_lost"]) == pytest.approx((0, 0))
    assert (none["verified"], none["rows_saved"], none["rows_per_token"]) == (0, 1, 1) and none["accepted"] is None
    assert none["tokens_lost"] == pytest.approx(1 - 1 / every["tokens_per_step"])
    assert all(way["identical"] for way in facts["ways"]) and facts["costs"]["verify"] > 0
    names = {*facts, *facts["run"], *facts["judgement"], *facts["costs"], *facts["best"], *plain}
    assert [name for name in names if name not in c2t.__doc__] == []


def test_generate_reads_the_file(arguments: list[str], checkpoint: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    generate = ["generate", str(checkpoint), "--prompt", "the king", "--max-new-tokens", "20", "--json"]
    assert main([*generate, "--beta", "0.5"]) == 2
    assert "c2t.json does not exist" in (text := capsys.readouterr().err) and "--prompts FILE" in text
    try:
        assert main(arguments) == 0
        assert "all ways made the same tokens" in capsys.readouterr().out
        seen = []
        for options in ([], ["--beta", "0"], ["--beta", "2"]):
            assert main([*generate, *options]) == 0
            seen.append(json.loads(capsys.readouterr().out))
        assert [one["run"]["beta"] for one in seen] == [None, 0, 2]
        assert seen[0]["ids"] == seen[1]["ids"] == seen[2]["ids"] and seen[2]["plain"]["identical"]
        assert seen[0]["decode"]["drafted"] == seen[1]["decode"]["drafted"] > seen[2]["decode"]["drafted"] == 0
        many = ["generate", str(checkpoint), "--prompts", arguments[3], "--max-new-tokens", "9", "--beta", "2",
                "--output", str(tmp_path / "out.jsonl")]  # fmt: skip
        assert main(many) == 0
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
        assert len(lines) == len(WORDS) and all(line["drafted"] == 0 for line in lines)
        assert "1.00 rows of the target a token" in capsys.readouterr().err
    finally:
        (checkpoint / "c2t.json").unlink(missing_ok=True)


def test_refusals(arguments: list[str], checkpoint: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert main(arguments) == 2
    assert "`--prompts` is 2 prompts, expected at least 10" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", str(checkpoint), "--no-speculative", "--beta", "0.5"])
    assert "--beta does not go with --no-speculative" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--betas", "0.5,half"])
    assert "invalid" in capsys.readouterr().err


def test_texts_that_end_at_once(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    nothing = Traces(torch.zeros((0, 3), dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    monkeypatch.setattr(c2t, "trace", lambda *_: nothing)
    assert main(arguments) == 2
    assert "a last tenth whose texts all end at once, expected texts to judge by" in capsys.readouterr().err
