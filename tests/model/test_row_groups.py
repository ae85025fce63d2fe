"""Machines whose matrix products are not row-invariant: it is noticed, and decode = verify holds all the same."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

from longcat_ops import generate
from longcat_ops.model import invariance
from support import models

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def last_bits_differ(monkeypatch, first_of: dict[int, int]) -> None:
    """Products of n rows sum their rows from first_of[n] on in another order, as MKL does without AVX-512; all others
    give a row the bits that it has alone, whatever machine this is."""
    linear, bmm = F.linear, torch.bmm

    def uneven(x, weight, bias=None):
        if x.dim() != 2:
            return linear(x, weight, bias)
        y = torch.cat([linear(row[None].clone(), weight, bias) for row in x])
        if (first := first_of.get(len(x))) is not None:
            y[first:] = torch.nextafter(y[first:], torch.full_like(y[first:], torch.inf))
        return y

    monkeypatch.setattr(F, "linear", uneven)
    monkeypatch.setattr(torch, "bmm", lambda a, b: torch.cat([bmm(row.clone(), b) for row in a.split(1, 1)], 1))


def alone_and_verified(model, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [batch, 2, V] of two tokens a sequence: one a pass, and both in one pass."""
    ids = torch.stack([models.prompt(12, seed=b) for b in range(batch)])
    results = []
    for width in (1, 2):
        cache = model.new_cache(batch, 16)
        model(ids[:, :10], cache)
        results.append(torch.cat([model(ids[:, at : at + width], cache) for at in range(10, 12, width)], 1))
    return results[0], results[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, first, batch, group", [(8, 6, 8, 4), (8, 7, 4, 4), (2, 1, 1, 1), (8, 0, 3, 8)], ids=str)
def test_groups_shrink_until_their_rows_agree(kind, rows, first, batch, group, monkeypatch):
    last_bits_differ(monkeypatch, {rows: first})
    model = models.build(KINDS[kind], num_layers=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert model.row_group(batch) == group
        assert model.row_group(batch) == group
    wanted = 2 if batch == 1 else 8
    texts = [str(w.message) for w in told]
    assert len(texts) == (group < wanted)  # once, and only where it costs something
    assert all(
        f"groups of {group} instead, which read the weights {wanted // group} times as often" in t for t in texts
    )
    plain, verified = alone_and_verified(model, batch)
    assert torch.equal(plain, verified)


def test_several_sizes_of_group_that_do_not_agree(monkeypatch):
    """8 and 4 rows are uneven, 2 are not."""
    last_bits_differ(monkeypatch, {8: 6, 4: 3})
    model = models.build(num_layers=1)
    with pytest.warns(UserWarning, match="decode passes run on groups of 2 instead"):
        assert model.row_group(5) == 2
    plain, verified = alone_and_verified(model, 5)
    assert torch.equal(plain, verified)


def test_without_the_check_the_bits_would_differ(monkeypatch):
    last_bits_differ(monkeypatch, {8: 6})
    monkeypatch.setattr("longcat_ops.model.model.largest_group", lambda run, rows: rows)
    plain, verified = alone_and_verified(models.build(num_layers=1), 8)
    assert not torch.equal(plain, verified)


def test_each_number_of_threads_is_checked(monkeypatch):
    seen = []
    monkeypatch.setattr("longcat_ops.model.model.largest_group", lambda run, rows: seen.append(rows) or rows)
    model, before = models.build(num_layers=1), torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            model.row_group(1), model.row_group(4)
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 8, 2, 8]


def test_a_difference_in_any_result_or_bit_counts(recwarn):
    same = torch.full((8, 3), torch.nan)
    other = same.clone()
    other.view(torch.int32)[5, 2] ^= 1  # another NaN
    assert invariance.largest_group(lambda rows: [same[:rows]], 8) == 8
    assert invariance.largest_group(lambda rows: [same[:rows], other[:rows]], 8) == 4
    assert invariance.largest_group(lambda rows: [torch.arange(rows)[:, None]], 8) == 1


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("batch", [4, 8])
def test_speculation_is_lossless_in_a_batch(kind, batch):
    """On the products of this machine, whatever they are."""
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    model = models.build(dtype, precision="fp8" if kind == "fp8" else None, hidden_size=160, ffn_hidden_size=200)
    for seed in range(3):
        prompts = [models.prompt(1 + (7 * b + seed) % 40, seed=100 * seed + b) for b in range(batch)]
        plain = generate(model, prompts, 20, speculative=False, eos_token_id=-1)
        fast = generate(model, prompts, 20, eos_token_id=-1)
        assert all(torch.equal(a, b) for a, b in zip(fast.sequences, plain.sequences, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(fast.num_real, plain.num_real, strict=True))
