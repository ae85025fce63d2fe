"""moe_combine against fp64 and, where float32 has only one answer, bit for bit."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from longcat_ops import Plan, Routing, moe_combine, moe_plan
from longcat_ops.testing.op_results import bits

OP = torch.ops.longcat_ops.moe_combine.default
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EXPERTS, K = 6, 4


def plan_of(row_of: list[list[int]] | Tensor) -> Plan:
    """Only row_of is read."""
    row_of = torch.as_tensor(row_of, dtype=torch.int32)
    return Plan(torch.zeros(2, dtype=torch.int32), row_of, torch.zeros(1, dtype=torch.int32))


def routing_of(weights: list[list[float]] | Tensor, zero_weight: list[float] | Tensor) -> Routing:
    """Only weights and zero_weight are read."""
    unused = torch.zeros(1, dtype=torch.int32)
    return Routing(unused, torch.as_tensor(weights), torch.as_tensor(zero_weight), unused, unused, unused)


def column(*values: float, dtype: torch.dtype = F32) -> Tensor:
    """[n, 8], each row one value."""
    return torch.tensor(values, dtype=dtype)[:, None].repeat(1, 8)


def case(tokens: int, width: int = 160, y_dtype: torch.dtype = BF16, dtype: torch.dtype = BF16,
         k: int = K) -> tuple[Tensor, Plan, Routing, Tensor, Tensor]:  # fmt: skip
    """(y, plan, routing, x, add): 0 to k rows per token, large and small weights, NaN in unused rows of y."""
    g = torch.Generator().manual_seed(tokens + k)
    ids = torch.rand(tokens, 2 * k, generator=g).argsort(1)[:, :k].to(torch.int32)
    plan = moe_plan(ids.masked_fill(ids >= k + k // 2, -1), 2 * k)
    weights = torch.rand(tokens, k, generator=g) * 4 ** torch.randn(tokens, k, generator=g)
    y, x, add = (
        torch.randn(n, width, generator=g).to(d) for n, d in ((tokens * k, y_dtype), (tokens, dtype), (tokens, dtype))
    )
    y[int(plan.offsets[-1]) :] = torch.nan
    return y, plan, routing_of(weights, torch.rand(tokens, generator=g) * 3), x, add


def terms_of(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None) -> Tensor:
    """fp64 [terms, T, H]."""
    present = (plan.row_of >= 0)[..., None]
    rows = y.double()[plan.row_of.clamp(min=0).long()]
    terms = [*torch.where(present, rows * routing.weights.double()[..., None], 0).unbind(1)]
    terms.append(routing.zero_weight.double()[:, None] * x.double())
    return torch.stack(terms if add is None else [*terms, add.double()])


def assert_rounded_once(got: Tensor, terms: Tensor) -> None:
    """Every element is the rounding of a number that a float32 sum of these terms may have.

    n products, each rounded, and n - 1 additions: the sum is off by no more than n * 2^-24 of the sum of magnitudes,
    1 % more for the higher orders. Rounding is monotone, so the rounded ends of that interval enclose the result.
    """
    slack = 1.01 * len(terms) * 2.0**-24 * terms.abs().sum(0)
    low, high = ((terms.sum(0) + side * slack).float().to(got.dtype) for side in (-1, 1))
    assert ((low <= got) & (got <= high)).all()


@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize(
    ("y_dtype", "dtype"),
    [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F32), (BF16, F16), (F16, BF16)],
    ids=str,
)
@pytest.mark.parametrize(("tokens", "width", "k"), [(1, 8, 1), (2, 576, 4), (7, 160, 12), (33, 128, 32)])
def test_against_fp64(tokens, width, k, y_dtype, dtype, with_add):
    y, plan, routing, x, add = case(tokens, width, y_dtype, dtype, k)
    add = add if with_add else None
    got = moe_combine(y, plan, routing, x, add)
    assert got.dtype == dtype and got.shape == x.shape and got.is_contiguous()
    assert_rounded_once(got, terms_of(y, plan, routing, x, add))


def fold(terms: list[Tensor]) -> Tensor:
    total, *others = terms
    for term in others:
        total = total + term
    return total


def test_sums_in_the_order_of_k():
    """The order is neither that of rows nor that of sizes: 1e8 + 1 is 1e8 in float32."""
    results = set()
    for values in permutations((1e8, 1.0, -1e8)):
        for rows in permutations(range(3)):
            y = torch.zeros(3, 8)
            for value, row in zip(values, rows, strict=True):
                y[row] = value
            got = moe_combine(y, plan_of([list(rows)]), routing_of([[1.0] * 3], [0.0]), torch.zeros(1, 8))
            want = fold([torch.tensor(v) for v in values])
            assert (got == want).all(), (values, rows)
            results.add(want.item())
    assert results == {0.0, 1.0}


def test_zero_experts_and_then_add_come_after_the_rows():
    def sum_of(y: float, x: float, add: float) -> float:
        out = moe_combine(column(y), plan_of([[0]]), routing_of([[1.0]], [1.0]), column(x), column(add))
        return out[0, 0].item()

    assert sum_of(1e8, 1.0, -1e8) == 0  # (y + add) + x is 1
    assert sum_of(1e8, -1e8, 1.0) == 1  # (y + add) + x and y + (x + add) are 0
    assert sum_of(1.0, 1e8, -1e8) == 0  # y + (x + add) is 1


@pytest.mark.parametrize("k", [12, 32])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_bits_are_those_of_the_sum_in_k_order(dtype, k):
    """Weights are powers of two, so products are exact and a fused multiply-add has the same bits."""
    y, plan, routing, x, add = case(40, k=k, y_dtype=F32, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    routing = routing_of(2.0 ** torch.randint(-3, 4, (40, k), generator=g), torch.full((40,), 0.5))
    *rows, zero, last = terms_of(y, plan, routing, x, add).float()
    got = moe_combine(y, plan, routing, x, add)
    assert torch.equal(got, fold([*rows, zero, last]).to(dtype))
    if dtype == F32:
        assert not torch.equal(got, fold([*rows[::-1], zero, last]))  # the order shows
        assert not torch.equal(got, fold([zero, *rows, last]))


# In bfloat16 1 + 2^-8 is a tie and becomes 1: rounding a part of these sums first gives 1 instead of 1 + 2^-7.
@pytest.mark.parametrize(
    ("y", "x", "add"),
    [
        ((1.0, 2.0**-8), 2.0**-8, None),  # real part first
        ((1.0, 2.0**-8), 2.0**-8, 0.0),
        ((1.0, 0.0), 2.0**-8, 2.0**-8),  # real + zero part first
        ((1.0, 2.0**-8), 0.0, 2.0**-8),  # everything but add first
        ((1.0, 2.0**-9), 2.0**-9, 2.0**-8),  # anything
    ],
)
@pytest.mark.parametrize("y_dtype", [F32, BF16])
def test_rounds_once(y, x, add, y_dtype):
    added = None if add is None else column(add, dtype=BF16)
    out = moe_combine(column(*y, dtype=y_dtype), plan_of([[1, 0]]), routing_of([[1.0, 1.0]], [1.0]),
                      column(x, dtype=BF16), added)  # fmt: skip
    assert (out == 1 + 2.0**-7).all()


def test_a_product_is_not_rounded_to_the_dtype_of_y():
    """1.5 * (1 + 2^-7) has one bit more than bfloat16 holds; minus 1.5 it is exact again."""
    y = column(1 + 2.0**-7, -1.0, dtype=BF16)
    out = moe_combine(y, plan_of([[0, 1]]), routing_of([[1.5, 1.5]], [0.0]), column(0.0, dtype=BF16))
    assert (out == 1.5 * 2.0**-7).all()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_rows_that_no_choice_points_to_are_not_read(poison):
    y, plan, routing, x, add = case(33)
    used = int(plan.offsets[-1])
    assert used < len(y)
    y[used:] = 0
    clean = moe_combine(y, plan, routing, x, add)
    y[used:] = poison
    routing.weights[plan.row_of < 0] = poison  # nor is the weight of a choice without a row
    assert bits(moe_combine(y, plan, routing, x, add)) == bits(clean)
    assert clean.isfinite().all()


def test_rows_out_of_range_are_skipped():
    y, plan, routing, x, add = case(20)
    absent = plan.row_of < 0
    assert absent.sum() > 8
    want = moe_combine(y, plan, routing, x, add)
    garbage = torch.tensor([len(y), 2**31 - 1, -2, -(2**31)], dtype=torch.int32).repeat(20 * K)[: int(absent.sum())]
    plan.row_of[absent] = garbage
    assert bits(moe_combine(y, plan, routing, x, add)) == bits(want)


def test_a_nan_reaches_its_own_row_only():
    y, plan, routing, x, add = case(20)
    clean = moe_combine(y, plan, routing, x, add)
    other = [t for t in range(20) if t != 7]
    routing.zero_weight[7] = torch.nan  # what moe_route writes for a bad row
    out = moe_combine(y, plan, routing, x, add)
    assert out[7].isnan().all()
    assert bits(out[other]) == bits(clean[other])
    routing.zero_weight[7] = 1.0
    row = int(plan.row_of[7].max())
    assert row >= 0
    y[row, 5] = torch.nan  # in an expert's output: only that element
    out = moe_combine(y, plan, routing, x, add)
    assert out.isnan().nonzero().tolist() == [[7, 5]]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("rows", [0, 4])
def test_a_token_without_a_row_is_the_scaled_input(rows, dtype):
    x, y = torch.randn(9, 160, generator=torch.Generator().manual_seed(1)).to(dtype), torch.full((rows, 160), torch.nan)
    zero_weight = torch.arange(9) * 0.37
    plan, routing = plan_of([[-1] * K] * 9), routing_of([[0.0] * K] * 9, zero_weight)
    assert torch.equal(moe_combine(y, plan, routing, x), (x.float() * zero_weight[:, None]).to(dtype))
    add = torch.ones_like(x)
    assert torch.equal(moe_combine(y, plan, routing, x, add), (x.float() * zero_weight[:, None] + 1).to(dtype))


@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("tokens", [255, 256, 257, 600])
def test_a_row_does_not_depend_on_its_batch(tokens, with_add):
    """A row's bits are the same alone and in a batch; the reference works in chunks of 256 tokens."""
    y, plan, routing, x, add = case(tokens, width=64)
    add = add if with_add else None
    whole = moe_combine(y, plan, routing, x, add)
    for t in range(tokens):
        row = slice(t, t + 1)
        alone = moe_combine(y, plan_of(plan.row_of[row]), routing_of(routing.weights[row], routing.zero_weight[row]),
                            x[row], add[row] if with_add else None)  # fmt: skip
        assert torch.equal(alone[0], whole[t])


def test_every_element_is_written():
    y, plan, routing, x, _ = case(7)
    out = torch.full_like(x, torch.nan)
    OP(y, plan.row_of, routing.weights, routing.zero_weight, x, None, out)
    assert bits(out) == bits(moe_combine(y, plan, routing, x))
    assert out.isfinite().all()


def test_no_tokens():
    y, plan, routing, x, add = case(0)
    assert moe_combine(y, plan, routing, x, add).shape == (0, 160)
