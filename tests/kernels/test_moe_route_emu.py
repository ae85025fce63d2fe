"""The kernel of moe_route in the host emulator, with its detectors on, against fp64 over sizes and kinds of rows. The
op's own tests run on it too (tests/kernels/test_emu_backend.py).
"""

from __future__ import annotations

import itertools

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.emulated_kernels import copied
from support.route_calls import SCALE, check, route
from support.route_oracle import BAD, EXPERTS, TOKENS, TOP_K, assert_routed, batch, biases

# (tokens, experts, zero experts, top_k): every number of chunks per lane, whole and partial; one block, several
# that wait for the first one (9, 31, 33), and so many that a launch zeroes the counts (133).
CASES = [(1, 768, 256, 12), (7, 8, 2, 8), (8, 24, 8, 4), (9, 48, 0, 12), (2, 384, 128, 8), (31, 96, 32, 32),
         (9, 1000, 300, 12), (33, 13, 13, 5), (2, 1024, 24, 32), (133, 40, 8, 4)]  # fmt: skip
MANY = [(192, 768, 256, 12), (1000, 24, 8, 4)]


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_fp64(case: tuple[int, ...], policy: str) -> None:
    for seed in (1, 2):
        emulated.configure(seed=seed, policy=policy)
        check(*case, seed=seed + 2 * list(emulated.POLICIES).index(policy))


@pytest.mark.parametrize("case", MANY, ids=str)
def test_many_tokens_against_fp64(case: tuple[int, ...]) -> None:
    check(*case, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("experts", EXPERTS)
def test_all_sizes_against_fp64(experts: int) -> None:
    for seed, (tokens, top_k) in enumerate(itertools.product(TOKENS, TOP_K)):
        if top_k <= experts:
            emulated.configure(seed=seed, policy=list(emulated.POLICIES)[seed % 3])
            check(tokens, experts, experts // 3, top_k, seed)


@pytest.mark.parametrize("num_valid", [-1, 0, 1, 8, 20, 21, 99])
def test_rows_from_num_valid_on(num_valid: int) -> None:
    """The kernel drops rows from num_valid on, which it reads on the device; `errors` adds to its old value."""
    logits, _ = batch(21, 96, 32)
    bias = biases("small", 96)
    got = route(logits, bias, 8, 32, num_valid, errors=5)
    assert_routed(got, logits, bias, top_k=8, zero=32, scale=SCALE, num_valid=num_valid, errors=5)


def test_equal_logits_go_to_the_lowest_ids() -> None:
    """Ties across lanes, chunks and slots go to the lowest ids, with and without zero experts among them."""
    for experts, zero, top_k in ((8, 0, 8), (768, 0, 12), (1000, 996, 12), (1024, 0, 32)):
        got = route(torch.full((3, experts), -2.5), torch.zeros(experts), top_k, zero)
        assert got.ids.tolist() == [[i if i < experts - zero else -1 for i in range(top_k)]] * 3
    tied = torch.zeros(1, 768)
    tied[0, [700, 5, 300, 301, 13]] = 1.0
    assert route(tied, torch.zeros(768), 8, 0).ids.tolist() == [[5, 13, 300, 301, 700, 0, 1, 2]]


def test_ids_of_short_scores_are_exact() -> None:
    """On a grid of logits, scores are equal or differ by more than float32 loses: ids equal a stable fp64 sort."""
    for experts, top_k in ((24, 12), (768, 32), (1000, 12)):
        g = torch.Generator().manual_seed(experts)
        logits = torch.randint(-6, 7, (9, experts), generator=g) / 2
        got = route(logits, torch.zeros(experts), top_k, 0)
        expected = torch.sort(logits.double().softmax(-1), descending=True, stable=True).indices[:, :top_k]
        assert torch.equal(got.ids.long(), expected)


@pytest.mark.parametrize("experts", [24, 136, 768, 1000])
def test_the_bits_of_a_row_do_not_depend_on_layout_batch_or_place(experts: int) -> None:
    """Same bits with gaps, off 16 bytes, in bf16 (other kernel instances), alone, in other batches and places."""
    zero, top_k = experts // 3, 8
    logits, kinds = batch(137, experts, zero, seed=3)
    bias = biases("small", experts)
    whole = route(logits, bias, top_k, zero)
    narrow = logits.bfloat16()
    for other in (copied(logits, 8, 0), copied(logits, 3, 1), narrow, copied(narrow, 5, 3)):
        rows = slice(0, 12)
        got = route(other[rows], bias if other is narrow else copied(bias[None], 0, 1)[0], top_k, zero)
        assert bits(got[:4]) == bits([t[rows] for t in whole[:4]])
    for first, last in ((0, 1), (5, 13), (3, 12), (100, 137)):
        got = route(logits[first:last], bias, top_k, zero)
        assert bits(got[:4]) == bits([t[first:last] for t in whole[:4]])
        assert int(got.errors) == sum(kind in BAD for kind in kinds[first:last])
    turned = route(logits.roll(1, 0), bias, top_k, zero)
    assert bits(turned[:4]) == bits([t.roll(1, 0) for t in whole[:4]])
    assert bits(turned[4:]) == bits(whole[4:])


def test_the_same_bits_on_50_runs() -> None:
    logits, _ = batch(17, 96, 32)
    bias = biases("small", 96)
    first = bits(route(logits, bias, 8, 32))
    for seed in range(50):
        emulated.configure(seed=seed, policy=list(emulated.POLICIES)[seed % 3])
        assert bits(route(logits, bias, 8, 32)) == first
