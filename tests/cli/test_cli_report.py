"""The pieces of `generate`'s report: streamed text, time by part on a fake clock, terminals."""

from __future__ import annotations

import io
import sys
from collections import Counter

import pytest
import torch

import longcat_ops
from longcat_ops.cli import report, terminal
from longcat_ops.engine import measure
from longcat_ops.engine.text import TextStream
from longcat_ops.model.layers import FFN, MLA
from longcat_ops.model.mtp import MTP
from longcat_ops.model.scmoe import MoE
from support.cli_checkpoint import VOCAB, checkpoint, model, one_thread, train_tokenizer


def test_split_characters_wait_for_their_last_byte():
    tokenizer = train_tokenizer(VOCAB)
    text = "the king — 王 🙂 naïve\n"
    ids = tokenizer.encode(text).ids
    stream = TextStream(lambda ids: tokenizer.decode(ids))
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == text
    assert all("\ufffd" not in piece for piece in pieces) and "" in pieces and "🙂" in pieces
    broken = TextStream(lambda ids: tokenizer.decode(ids))
    assert [broken.push(token) for token in tokenizer.encode("🙂").ids[:-1]] == ["", "", ""]
    assert broken.finish() == "\ufffd" and broken.finish() == ""


@pytest.fixture
def clock(monkeypatch) -> Counter:
    """A clock that only calls advance: MLA 1 s, dense FFN 10 s, MoE 100 s each. Returns the call counts."""
    calls: Counter[str] = Counter()
    prices = {MLA: 1, FFN: 10, MoE: 100, MTP: 0}
    methods = {MLA: "attend", FFN: "forward", MoE: "experts", MTP: "forward"}

    def priced(kind: type, name: str):
        method = getattr(kind, name)

        def run(self, *args):
            calls[kind.__name__] += 1
            return method(self, *args)

        return run

    for kind, name in methods.items():
        monkeypatch.setattr(kind, name, priced(kind, name))
    monkeypatch.setattr(measure, "_now", lambda model: float(sum(n * calls[k.__name__] for k, n in prices.items())))
    return calls


def test_parts_are_attributed_and_hooks_leave(model, clock):
    ids = torch.tensor([1, 5, 6])
    steps = longcat_ops.generate(model, [ids], 12).steps[0]
    clock.clear()
    seconds, timing = measure.time_by_part(model, ids, 12)
    drafts = clock["MTP"] - 1  # one call belongs to the prompt
    assert drafts > 0 and clock["MoE"] == 2 * (steps + 1)
    assert seconds == {"attention": 4 * steps, "dense FFN": 40 * steps, "MoE": 200 * steps, "MTP": 11 * drafts,
                       "head and rest": 0}  # fmt: skip
    assert timing == measure.Timing(prompt_seconds=244 + 11, decode_seconds=244 * steps + 11 * drafts, tokens=11)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_prompt_time_is_kept_apart(model, clock):
    result, timing = measure.timed_generate(model, torch.tensor([1, 5, 6]), 12)
    assert timing.prompt_seconds == 244 + 11
    assert timing.decode_seconds == 244 * result.steps[0] + 11 * (clock["MTP"] - 1)
    assert timing.tokens_per_second == 11 / timing.decode_seconds


def test_reports_fit_streams_without_block_characters():
    use = {"top_k": 3, "mean": 1.5, "min": 0, "max": 3, "zero_share": 0.5, "by_layer": [1.5], "target": None}
    use["histogram"] = [1, 100, 0, 50]
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    bars = report._BLOCKS if report.can_encode(ascii_stream, report._BLOCKS) else report._ASCII
    chart = report._expert_lines(use, bars)[1].split("|")[1]
    assert chart.isascii() and chart[2] == " " and chart[0] != " " and chart[1] == "@"
    assert report.can_encode(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), report._BLOCKS)


def test_accepted_drafts_are_coloured_on_a_terminal(checkpoint, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    write = terminal.writer()
    write("plain [b]", False)
    write("draft", True)
    assert screen.getvalue() == "plain [b]\x1b[32mdraft\x1b[0m"
    monkeypatch.setitem(sys.modules, "rich.console", None)
    screen.truncate(0), screen.seek(0)
    terminal.writer()("draft", True)
    assert screen.getvalue() == "draft"
