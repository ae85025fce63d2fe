"""`bench-engine`: every way is there, in JSON and in the table, and one that makes other tokens is found."""

from __future__ import annotations

import json

import longcat_ops
from longcat_ops.cli import bench_engine, main
from support.cli_checkpoint import checkpoint, model, one_thread


def test_ways_and_facts(checkpoint, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("and it came\nking\nthe people\n")
    arguments = ["bench-engine", str(checkpoint), "--batch", "1,2", "--steps-per-schedule", "2", "--max-new-tokens",
                 "4", "--rounds", "1"]  # fmt: skip
    assert main([*arguments, "--json", "--requests", "3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["identical"] and facts["run"]["requests"] == 3 and facts["run"]["prompt_tokens"] == 1 + 7 + 20
    ways = [(way["way"], way["batch"], way["steps_per_schedule"], way["drafts"]) for way in facts["ways"]]
    each = [("one by one", 1, None), ("engine", 1, 2), ("engine", 2, 2)]
    assert ways == [(*way, drafts) for drafts in (False, True) for way in each]
    for way in facts["ways"]:
        low, median, high = way["tokens_per_second"]
        assert 0 < low <= median <= high and way["between_tokens_ms"][0] <= way["between_tokens_ms"][1]
        assert (way["host_ms"] is None) == (way["way"] == "one by one")
        assert (way["acceptance"] is None) == (not way["drafts"]) and way["ratio"] > 0
    keys = {*facts, *facts["run"], *facts["ways"][0]}
    assert [key for key in keys if key not in bench_engine.__doc__] == []
    assert main([*arguments, "--prompts", str(prompts)]) == 0
    assert "3 prompts" in (out := capsys.readouterr().out) and "all ways made the same tokens" in out
    assert main([*arguments, "--max-new-tokens", "128"]) == 2
    assert "argument `--max-new-tokens` is 128, expected at most" in capsys.readouterr().err


def test_the_bench_finds_other_tokens(checkpoint, monkeypatch, capsys):
    def disturbed(*arguments: object, **options: object) -> object:
        made = longcat_ops.generate(*arguments, **options)
        made.sequences[0][-1] += 1
        return made

    monkeypatch.setattr(bench_engine, "generate", disturbed)
    assert main(["bench-engine", str(checkpoint), "--batch", "1", "--steps-per-schedule", "1", "--max-new-tokens", "2",
                 "--rounds", "1"]) == 1  # fmt: skip
    assert "all ways made DIFFERENT tokens" in capsys.readouterr().out
