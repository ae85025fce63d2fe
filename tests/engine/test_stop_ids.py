"""Decoding stops at any stop id of the config, or of those that the call names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longcat_ops import LongcatShapeError, generate
from support import models

PROMPT = models.prompt(5)[None]
NEW = 24


@pytest.fixture(scope="module")
def small():
    return models.build(num_layers=1)


@pytest.fixture(scope="module")
def plain(small) -> list[int]:
    return generate(small, PROMPT, NEW, speculative=False, eos_token_id=-1).sequences[0][5:].tolist()


def until(new: list[int], *stops: int) -> list[int]:
    """The tokens up to and including the first one in `stops`."""
    return new[: next((i + 1 for i, token in enumerate(new) if token in stops), len(new))]


@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize("at", [(3,), (7, 3), (3, 7), (NEW - 1, 5), (0, 9)])
def test_any_of_several_ids_stops(small, plain, at, speculative):
    stops = [plain[i] for i in at]
    forms = [stops, tuple(stops), [*stops, 60, 60]]
    for form in forms + ([stops[0]] if len(stops) == 1 else []):
        out = generate(small, PROMPT, NEW, speculative=speculative, eos_token_id=form)
        assert out.sequences[0][5:].tolist() == until(plain, *(form if isinstance(form, list | tuple) else [form]))


def test_those_of_the_config_stop_and_minus_one_does_not(plain):
    stops = [plain[9], plain[4]]
    stopping = models.build(num_layers=1, eos_token_id=stops)
    assert stopping.config.stop_ids == set(stops)
    assert generate(stopping, PROMPT, NEW).sequences[0][5:].tolist() == until(plain, *stops)
    assert generate(stopping, PROMPT, NEW, eos_token_id=-1).sequences[0][5:].tolist() == plain
    other = plain[12]
    assert generate(stopping, PROMPT, NEW, eos_token_id=other).sequences[0][5:].tolist() == until(plain, other)


@pytest.mark.parametrize(
    "value",
    [[], (), "2", b"2", "", [2, "3"], [2, -1], [-1], -2, 61, [2, 61], 2.0, [2.0], True, [True], {2}, {2: 3}, [[2]],
     [None], object(), torch.tensor(2), torch.tensor([2]), np.array([2]), [torch.tensor(2)], 10**30, range(60, 62)],
    ids=lambda value: "object()" if type(value) is object else repr(value),
)  # fmt: skip
def test_anything_else_is_refused(small, value):
    with pytest.raises(
        LongcatShapeError, match=r"generate: argument `eos_token_id` is (.|\n)*expected an id in 0 .. 60"
    ):
        generate(small, PROMPT, 2, eos_token_id=value)
