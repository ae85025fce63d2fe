"""The kernel of mla_query in the host emulator: values, nothing written elsewhere, bits that no schedule, neighbour,
alignment or width changes, and accesses outside the arguments are reported.
"""

from __future__ import annotations

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import mla_oracle
from support.emulated_kernels import run
from support.mla_query_calls import ALIGNED, ANGLES, BF16, LAYOUTS, check_order_of_sums, checked, operands, query

# Tokens, heads, nope, latent and R. Every width, one and several chunks of tokens; weights that stay and weights that
# are read again; blocks of 1, 2 and 4 warpgroups, also with rows to no use; tokens in turns among a head's blocks.
SHAPES = [
    (1, 2, 8, 8, 8),
    (8, 3, 136, 200, 16),
    (9, 9, 72, 264, 8),
    (17, 5, 64, 136, 72),
    (33, 2, 128, 512, 64),
    (65, 1, 64, 72, 64),
    (130, 2, 200, 40, 24),
]


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, ...], mma: str) -> None:
    emulated.configure(mma=mma)
    assert bits(checked(*shape, LAYOUTS[1])) == bits(checked(*shape))


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_the_bits_do_not_depend_on_the_layout(layout: tuple) -> None:
    assert bits(checked(37, 3, 136, 136, 16, layout)) == bits(checked(37, 3, 136, 136, 16))


@pytest.mark.parametrize("width", [2, 6, 10, 66])
def test_pairs_that_are_no_whole_chunks(width: int) -> None:
    checked(5, 2, 24, 40, width)


def test_without_tokens() -> None:
    assert checked(0, 2, 16, 24, 8).shape == (0, 2, 32)


def test_without_angles() -> None:
    q, w_k, _, position = operands(4, 2, 16, 24, 8)
    out = query(q, w_k, torch.empty(0, 8), position)
    assert out[[0, 1, 3], :, 24:].isnan().all() and out[[0, 1, 3], :, :24].isfinite().all() and (out[2] == 0).all()


@pytest.mark.parametrize("layout", [ALIGNED, LAYOUTS[-1]], ids=["mapped", "copied"])
@pytest.mark.parametrize("mma", emulated.MMA_MODES)
def test_the_bits_of_a_token_are_its_own(mma: str, layout: tuple) -> None:
    """In every width, at every place, beside NaN and infinity."""
    emulated.configure(mma=mma)
    q, w_k, rope, _ = operands(70, 2, 136, 72, 8)
    q = mla_oracle.drawn(*q.shape, seed=9, dtype=BF16)
    position = torch.arange(70, dtype=torch.int32)
    expected = query(q, w_k, rope, position, layout)
    for first, count in ((0, 1), (3, 8), (9, 16), (30, 31), (5, 64)):
        part = slice(first, first + count)
        assert bits(query(q[part], w_k, rope, position[part], layout)) == bits(expected[part])
    q[1], q[7], position[3] = torch.nan, torch.inf, -1
    kept = [0, 2, 4, 5, 6, 8]
    assert bits(query(q[:9], w_k, rope, position[:9], layout)[kept]) == bits(expected[:9][kept])


def test_inf_and_nan_show() -> None:
    q, w_k = torch.ones(4, 2, 72, dtype=BF16), torch.ones(2, 24, 64, dtype=BF16)
    q[1, :, 3], q[2, :, 5] = torch.inf, torch.nan
    out = query(q, w_k, mla_oracle.rope(ANGLES, 8), torch.arange(4, dtype=torch.int32))
    assert (out[1, :, :24] == torch.inf).all() and out[2, :, :24].isnan().all() and out[[0, 3]].isfinite().all()


def test_the_order_of_sums() -> None:
    check_order_of_sums()


@pytest.mark.parametrize("layout", [ALIGNED, LAYOUTS[-1]], ids=["mapped", "copied"])
def test_in_every_schedule(layout: tuple) -> None:
    shape = 70, 2, 136, 136, 8
    want = bits(checked(*shape))
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            assert bits(checked(*shape, layout)) == want


@pytest.mark.parametrize("width", [8, 10], ids=["mapped", "copied"])
def test_an_access_outside_the_arguments_is_reported(width: int) -> None:
    """An `out` with a token less than q has, and one whose rows are a pair short."""
    q, w_k, rope, position = operands(5, 2, 16, 24, width)
    for sizes in ((4, 2, 24 + width), (5, 2, 22 + width)):
        with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
            run("mla_query", q, w_k, rope, position, torch.empty(sizes, dtype=BF16))


def test_float32_is_refused() -> None:
    q, w_k, rope, position = operands(3, 2, 16, 24, 8)
    with pytest.raises(RuntimeError, match="mla_query: dtype 0, expected LC_BF16"):
        run("mla_query", q.float(), w_k.float(), rope, position, torch.empty(3, 2, 32))
