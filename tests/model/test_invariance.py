"""Products whose rows change bits with their position are detected, and decoding avoids them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

from longcat_ops import generate
from longcat_ops.model.layers import rotate
from longcat_ops.reference import invariance
from longcat_ops.reference.rows import SMALL_T, silu
from support import models
from support.decode_passes import plain, verified

pytestmark = pytest.mark.long

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def no_form_is_known(monkeypatch):
    monkeypatch.setattr(invariance, "_groups", {})


@pytest.fixture(autouse=True)
def threads_are_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spoil(monkeypatch, of: int, rows: list[int], change):
    """Makes products of `of` rows, linear and batched, return `change` of the right values in `rows`."""
    for owner, name in ((F, "linear"), (torch, "bmm")):
        real = getattr(owner, name)

        def product(x, weight, *rest, real=real):
            y = real(x, weight, *rest)
            if x.shape[-2] == of:
                y[..., rows, :] = change(y[..., rows, :])
            return y

        monkeypatch.setattr(owner, name, product)


def take_forms_as_they_are(monkeypatch):
    monkeypatch.setattr(invariance, "_largest_group", lambda run, form, weight: form.rows)
    invariance._groups.clear()


def last_bit(y):
    return torch.nextafter(y, torch.full_like(y, torch.inf))


# Which rows differ on CPUs: with MKL and AVX2 at 8 rows, with MKL and SSE4.2 at 2; last, only single rows are safe.
MACHINES = {
    "rows 6 and 7 of 8": [(8, [6, 7])],
    "row 1 of 2": [(2, [1])],
    "every last row": [(8, [7]), (4, [3]), (2, [1])],
}
GROUPS = {"rows 6 and 7 of 8": {8: 4}, "row 1 of 2": {2: 1}, "every last row": {8: 1, 2: 1}}  # of passes of 2 and 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("machine", MACHINES)
def test_one_bit_is_noticed_and_said_once(machine, dtype, monkeypatch):
    for of, rows in MACHINES[machine]:
        spoil(monkeypatch, of, rows, last_bit)
    draw = torch.Generator().manual_seed(0)
    row, weight, weights = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((1, 48), (5, 48), (3, 48, 7)))
    with pytest.warns(UserWarning, match="gives a row other bits at another place") as told:
        for rows in invariance.PASS_ROWS:
            y = invariance.linear(row.expand(rows, -1).contiguous(), weight)
            z = invariance.heads_product(row.expand(3, rows, -1), weights)
            assert (y.shape, z.shape) == ((rows, 5), (3, rows, 7))
            assert torch.equal(y, y[:1].expand_as(y))
            assert torch.equal(z, z[:, :1].expand_as(z))
    assert len(told) == 1
    found = {(form.rows, form.heads): group for form, group in invariance.small_groups().items()}
    for heads in (1, 3):  # a real CPU may need smaller groups than the spoilt products do
        for rows, group in GROUPS[machine].items():
            assert found[rows, heads] <= group


KINDS = {
    "fp32": dict(dtype=torch.float32),
    "fp64": dict(dtype=torch.float64),
    "bf16": dict(dtype=torch.bfloat16),
    "fp8": dict(dtype=torch.bfloat16, precision="fp8"),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", KINDS)
def test_decode_equals_verify_on_such_a_machine(kind, machine, monkeypatch):
    model = models.build(**KINDS[kind])
    for of, rows in MACHINES[machine]:
        spoil(monkeypatch, of, rows, last_bit)

    def agree(batch, seed):
        starts = [5, 1, 64, 9, 2, 30, 7, 3][:batch]
        ids = torch.stack([models.prompt(80, seed=b) for b in range(batch)])
        return torch.equal(verified(model, ids, starts, seed), plain(model, ids, starts))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(agree(batch, seed) for batch in (1, 8) for seed in range(2))
        assert model.small_groups
        take_forms_as_they_are(monkeypatch)
        assert not all(agree(batch, seed) for batch in (1, 8) for seed in range(2))


def test_generation_on_such_a_machine(monkeypatch):
    """Even errors large enough to change tokens do not make speculative and plain decoding differ."""
    model = models.build()
    prompts = [models.prompt(n, seed=n) for n in (5, 1, 61, 9, 3, 30, 2, 17)]
    spoil(monkeypatch, 8, [6, 7], lambda y: y * 1.05)

    def differing():
        runs = (generate(model, prompts, 20, speculative=on, eos_token_id=-1).sequences for on in (False, True))
        return sum(not torch.equal(a, b) for a, b in zip(*runs, strict=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert differing() == 0
        take_forms_as_they_are(monkeypatch)
        assert differing() > 0


SIZES = [(61, 64), (160, 200), (9, 160), (72, 160), (1024, 256), (200, 33), (7, 2), (3, 1)]  # odd ones too


@pytest.mark.parametrize("large", [1, invariance._LARGE])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_this_machine(dtype, threads, large, monkeypatch):
    """Fresh values, not the trial's, give equal bits in every row of a pass, for weights at any alignment."""
    torch.set_num_threads(threads)
    monkeypatch.setattr(invariance, "_LARGE", large)
    draw = torch.Generator().manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in invariance.PASS_ROWS:
            for outer, inner in [size for size in SIZES if large > 1 or size[0] > 60]:
                for skip in (0, 1):
                    row = torch.randn(1, inner, generator=draw).to(dtype)
                    weight = torch.randn(skip + outer * inner, generator=draw).to(dtype)[skip:].view(outer, inner)
                    y = invariance.linear(row.repeat(rows, 1), weight)
                    assert torch.equal(y, y[:1].expand_as(y)), (rows, outer, inner, skip)
                    z = invariance.heads_product(row.repeat(4, rows, 1), weight.t().repeat(4, 1, 1))
                    assert torch.equal(z, z[:, :1].expand_as(z)), (rows, outer, inner)
                    wanted = row.double() @ weight.double().t()
                    torch.testing.assert_close(y[:1].double(), wanted, rtol=2e-2, atol=2e-2 * inner**0.5)


@pytest.mark.parametrize("heads", [0, 2])
def test_a_large_weight_of_which_one_column_shows_it_in_one_of_four_sums(heads, monkeypatch):
    """Eight draws find a fault in a quarter of one column's sums. Torch without vector instructions has it in the last
    column of a float64 batched product."""

    def rarely(y):
        last = y[..., -1].view(torch.int64)
        shows = (last >> 3) % 4 == 0
        return torch.cat([y[..., :-1], (last ^ shows).view(torch.float64)[..., None]], -1)

    for owner, name in ((F, "linear"), (torch, "bmm")):  # a row alone has the same bits on every machine
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda x, w, real=real: real(x[..., :1, :], w).repeat_interleave(2, -2))
    spoil(monkeypatch, 2, [1], rarely)
    monkeypatch.setattr(invariance, "_LARGE", 1)
    missed = []
    for draws in (1, invariance._DRAWS):
        monkeypatch.setattr(invariance, "_DRAWS", draws)
        groups = []
        for seed in range(24):
            weight = torch.randn(61, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            monkeypatch.setattr(invariance, "_groups", {})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if heads:
                    invariance.heads_product(torch.ones(heads, 2, 64).double(), weight.t().repeat(heads, 1, 1))
                else:
                    invariance.linear(torch.ones(2, 64).double(), weight)
            groups += [group for form, group in invariance._groups.items() if form.rows == 2]
        missed.append(groups.count(2))
    assert missed[0] > 12 and missed[1] < 6  # expected: 0.75 and 0.75 ** 8 of 24


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_of_a_pass(dtype):
    """Rows get equal bits at any width, so wherever the tensor's vector tail falls in the last row."""
    draw = torch.Generator().manual_seed(2)
    for width in [*range(1, 70), 96, 200, 4096, 4099]:
        row = torch.randn(1, width, generator=draw).mul(4).to(dtype)
        y = silu(row.repeat(SMALL_T, 1))
        assert torch.equal(y, y[:1].expand_as(y)), width


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotation_of_a_pass(dtype):
    draw = torch.Generator().manual_seed(3)
    for rows in invariance.PASS_ROWS:
        for heads in (1, 2, 3, 5, 65):
            for width in (2, 4, 6, 8, 10, 64):
                x = torch.randn(1, heads, width, generator=draw).to(dtype)
                angle = torch.randn(1, width // 2, generator=draw, dtype=torch.promote_types(dtype, torch.float32))
                rope = torch.polar(torch.ones_like(angle), angle)
                y = rotate(x.repeat(rows, 1, 1), rope.repeat(rows, 1))
                assert torch.equal(y, y[:1].expand_as(y)), (rows, heads, width)


def test_a_form_is_tried_once_for_each_number_of_threads(monkeypatch):
    tried = []
    real = invariance._largest_group
    monkeypatch.setattr(invariance, "_largest_group", lambda *call: tried.append(call[1]) or real(*call))
    x, weight = torch.ones(8, 6), torch.ones(4, 6)
    for threads in (1, 2, 1, 2):
        torch.set_num_threads(threads)
        invariance.linear(x, weight)
        invariance.linear(x[:2], weight)
    assert [(form.rows, form.threads) for form in tried] == [(8, 1), (2, 1), (8, 2), (2, 2)]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("zeros", [False, True])
def test_large_weights(zeros, dtype, monkeypatch):
    """A large weight serves as its own trial, but not while it is all zeros, since it may hold values later."""
    spoil(monkeypatch, 8, [7], last_bit)
    monkeypatch.setattr(invariance, "_LARGE", 1)
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(1, 200, generator=draw, dtype=dtype), torch.randn(300, 200, generator=draw, dtype=dtype))
    with pytest.warns(UserWarning, match="gives a row other bits"):
        invariance.linear(x.repeat(8, 1), weight * (not zeros))
    y = invariance.linear(x.repeat(8, 1), weight)
    assert torch.equal(y, y[:1].expand_as(y))
    z = invariance.heads_product(x.repeat(2, 8, 1), weight.t().repeat(2, 1, 1))
    assert torch.equal(z, z[:, :1].expand_as(z))


def test_other_numbers_of_rows_and_empty_products_are_left_alone():
    for rows, inner, outer in ((1, 6, 4), (3, 6, 4), (9, 6, 4), (0, 6, 4), (8, 0, 4), (8, 6, 0)):
        x, weight = torch.ones(rows, inner), torch.ones(outer, inner)
        assert torch.equal(invariance.linear(x, weight), F.linear(x, weight))
    assert invariance.linear(torch.ones(8, 6, device="meta"), torch.ones(4, 6, device="meta")).is_meta
    assert not invariance.small_groups()


def test_the_trial_leaves_the_global_random_stream_and_defaults_alone():
    state = torch.random.get_rng_state()
    with torch.device("meta"):
        x, weight = torch.ones(8, 6, device="cpu"), torch.ones(4, 6, device="cpu")
        assert torch.equal(invariance.linear(x, weight), torch.full((8, 4), 6.0, device="cpu"))
    assert torch.equal(torch.random.get_rng_state(), state)
