"""generate accepts or refuses, by name, arguments of every type and value."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM, LongcatShapeError, generate
from longcat_ops.engine.observer import Unobserved
from support import models


@pytest.fixture(scope="module")
def small():
    return models.build(num_layers=1)


OK = torch.tensor([[1, 2]])


@pytest.mark.parametrize(
    ("ids", "options", "text"),
    [
        (OK, dict(max_new_tokens=-1), r"`max_new_tokens` is -1, expected an integer >= 0"),
        (OK, dict(max_new_tokens=1.5), r"`max_new_tokens` is 1.5, expected an integer >= 0"),
        (OK[0], {}, r"`input_ids` is \[2\], expected \[B,S\] or a list of 1-D prompts.\n  fix: input_ids\[None\]"),
        ([], {}, r"`input_ids` is no prompt, expected at least one"),
        (OK[:0], {}, r"`input_ids` is no prompt, expected at least one"),
        ([OK], {}, r"`input_ids\[0\]` is torch.int64 \[1, 2\], expected 1-D int64"),
        ([OK[0], OK[0].float()], {}, r"`input_ids\[1\]` is torch.float32 \[2\], expected 1-D int64"),
        ([OK[0] > 1], {}, r"`input_ids\[0\]` is torch.bool \[2\], expected 1-D int64"),
        (
            [OK[0][:0]],
            {},
            r"`input_ids\[0\]` is an empty prompt, expected at least one token.\n  fix: start with",
        ),
        ([torch.tensor([0, 61])], {}, r"`input_ids\[0\]` is ids 0 .. 61, expected 0 .. 60"),
        ([torch.tensor([-1, 60])], {}, r"`input_ids\[0\]` is ids -1 .. 60, expected 0 .. 60"),
        (OK, dict(temperature=-0.1), r"`temperature` is -0.1, expected 0 \(greedy\) or a positive number"),
        (OK, dict(temperature=float("nan")), r"`temperature` is nan, expected"),
        (OK, dict(temperature=float("inf")), r"`temperature` is inf, expected"),
        (OK, dict(top_k=-1), r"`top_k` is -1, expected 0 \(off\) or a positive integer"),
        (OK, dict(top_k=2.5), r"`top_k` is 2.5, expected"),
        (OK, dict(top_k=float("inf")), r"`top_k` is inf, expected"),
        (OK, dict(top_p=0.0), r"`top_p` is 0.0, expected in \(0, 1\]"),
        (OK, dict(top_p=1.1), r"`top_p` is 1.1, expected in \(0, 1\]"),
        (OK, dict(draft="greedy"), r"`draft` is 'greedy', expected 'argmax' or 'sampled'"),
        (OK, dict(seed=-1), r"`seed` is -1, expected None or 0 .. 2\^62 - 1"),
        (OK, dict(seed=2**62), rf"`seed` is {2**62}, expected"),
        (OK, dict(seed=1.5), r"`seed` is 1.5, expected"),
        (OK, dict(seed="x"), r"`seed` is 'x', expected"),
        (OK, dict(seed=True), r"`seed` is True, expected"),
        (OK, dict(seed=torch.tensor(3)), r"`seed` is torch.int64 \[\], expected"),
        (None, {}, r"`input_ids` is None, expected \[B,S\] or a list of 1-D prompts"),
        ("text", {}, r"`input_ids` is 'text', expected \[B,S\] or .*\n  fix: encode the text with the tokenizer"),
        (b"text", {}, r"`input_ids` is b'text', expected"),
        (7, {}, r"`input_ids` is 7, expected"),
        ({1: OK}, {}, r"`input_ids` is \{1: .*\}, expected"),
        ({1, 2}, {}, r"`input_ids` is \{1, 2\}, expected"),
        ([1, 2], {}, r"`input_ids` is \[1, 2\], expected .*\n  fix: \[input_ids\]: a list of one prompt"),
        (["text"], {}, r"`input_ids\[0\]` is 'text', expected 1-D int64"),
        ([None], {}, r"`input_ids\[0\]` is None, expected 1-D int64"),
        ([[[1, 2], [3]]], {}, r"`input_ids\[0\]` is \[\[1, 2\], \[3\]\], expected 1-D int64"),
        ([[[1, 2], [3, 4]]], {}, r"`input_ids\[0\]` is torch.int64 \[2, 2\], expected 1-D int64"),
        ([[1, None]], {}, r"`input_ids\[0\]` is \[1, None\], expected 1-D int64"),
        ([[1, 10**30]], {}, r"`input_ids\[0\]` is \[1, 10*\], expected 1-D int64"),
        ([[1.0, 2.0]], {}, r"`input_ids\[0\]` is torch.float32 \[2\], expected 1-D int64"),
        ([[]], {}, r"`input_ids\[0\]` is an empty prompt, expected at least one token"),
        (torch.tensor(3), {}, r"`input_ids` is \[\], expected"),
        (OK.float(), {}, r"`input_ids\[0\]` is torch.float32 \[2\], expected 1-D int64"),
        (OK.to("meta"), {}, r"`input_ids\[0\]` is torch.int64 \[2\] on meta, expected a dense tensor on the CPU"),
        ([OK[0].to("meta")], {}, r"`input_ids\[0\]` is torch.int64 \[2\] on meta, expected a dense tensor on the CPU"),
        (OK.to_sparse(), {}, r"`input_ids` is torch.int64 \[1, 2\], torch.sparse_coo, expected"),
        (OK, dict(max_new_tokens=True), r"`max_new_tokens` is True, expected an integer >= 0"),
        (OK, dict(max_new_tokens=None), r"`max_new_tokens` is None, expected an integer >= 0"),
        (OK, dict(max_new_tokens="4"), r"`max_new_tokens` is '4', expected an integer >= 0"),
        (OK, dict(temperature=None), r"`temperature` is None, expected 0 \(greedy\) or a positive number"),
        (OK, dict(temperature="1"), r"`temperature` is '1', expected"),
        (OK, dict(temperature=True), r"`temperature` is True, expected"),
        (OK, dict(temperature=10**400), r"`temperature` is a int, expected"),
        (OK, dict(temperature=1j), r"`temperature` is 1j, expected"),
        (OK, dict(temperature=torch.tensor(1.0)), r"`temperature` is torch.float32 \[\], expected"),
        (OK, dict(top_k=None), r"`top_k` is None, expected"),
        (OK, dict(top_k=True), r"`top_k` is True, expected"),
        (OK, dict(top_k="5"), r"`top_k` is '5', expected"),
        (OK, dict(top_p=None), r"`top_p` is None, expected in \(0, 1\]"),
        (OK, dict(top_p="0.5"), r"`top_p` is '0.5', expected"),
        (OK, dict(top_p=float("nan")), r"`top_p` is nan, expected"),
        (OK, dict(top_p=True), r"`top_p` is True, expected"),
        (OK, dict(draft=None), r"`draft` is None, expected 'argmax' or 'sampled'"),
        (OK, dict(draft=["argmax"]), r"`draft` is \['argmax'\], expected"),
        (OK, dict(speculative="yes"), r"`speculative` is 'yes', expected True or False"),
        (OK, dict(speculative=None), r"`speculative` is None, expected True or False"),
        (OK, dict(on_token="print"), r"`on_token` is 'print', expected None or something to call"),
        (OK, dict(observer=print), r"`observer` is .*, expected None or an object with a method around\(work, rows\)"),
        (OK, dict(observer=Unobserved), r"`observer` is .*, expected None or an object"),
        (OK, dict(eos_token_id="</s>"), r"`eos_token_id` is '</s>', expected"),
    ],
)
def test_bad_arguments(small, ids, options, text):
    with pytest.raises(LongcatShapeError, match=f"generate: argument {text}"):
        generate(small, ids, **({"max_new_tokens": 4} | options))


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2), LongcatFlashForCausalLM])
def test_what_is_no_model(model):
    with pytest.raises(
        LongcatShapeError, match=r"generate: argument `model` is \w+, expected a LongcatFlashForCausalLM"
    ):
        generate(model, OK, 1)


def test_numbers_of_numpy_are_numbers(small):
    numpy = pytest.importorskip("numpy")
    want = generate(small, OK, 5, temperature=0.5, top_k=3, seed=7, eos_token_id=-1)
    got = generate(small, OK, numpy.int64(5), temperature=numpy.float64(0.5), top_k=numpy.int32(3), seed=numpy.int64(7),
                   eos_token_id=-1)  # fmt: skip
    assert torch.equal(got.sequences[0], want.sequences[0])
