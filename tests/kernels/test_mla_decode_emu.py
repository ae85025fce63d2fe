"""mla_decode in the host emulator: values, and bits that no schedule, deal, neighbour, page order or head changes."""

from __future__ import annotations

import itertools

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import mla_calls, mla_oracle
from support.emulated_kernels import library, one_thread, run, schedule  # noqa: F401  (fixtures)

LENGTHS = [300, 65, 1, 700, 128]
# Whole pages and parts of one, one split and many, two tokens of one sequence, padding, and no place at all.
TOKENS = [(0, 299), (1, 63), (2, 0), (0, -1), (3, 699), (7, 3), (1, 64), (4, 127), (-1, 0), (0, 800)]
PAIRS = [(0, 298), (0, 299), (1, 63), (1, 64), (2, 0), (2, 0), (3, 698), (3, 699), (4, 63), (4, 64)]


def configure(sms: int = 2, mma: str = "exact", seed: int = 1, policy: str = "random") -> None:
    emulated.configure(seed, policy, detectors=True, mma=mma, sms=sms)


# Widths of one box and several, values of one box, two, four and eight; heads of part of a tile and several tiles.
@pytest.mark.parametrize("mma", emulated.MMA_MODES)
@pytest.mark.parametrize(("heads", "width", "latent"), [(1, 16, 16), (5, 48, 32), (64, 160, 128), (65, 80, 64),
                                                        (8, 272, 256), (3, 576, 512), (130, 96, 96)])  # fmt: skip
def test_values(heads: int, width: int, latent: int, mma: str) -> None:
    configure(3, mma)
    mla_calls.decode(LENGTHS[:3], TOKENS[:4], heads, width, latent, gap=6)
    mla_calls.decode(LENGTHS[:3], TOKENS[:4], heads, width, latent, 128, scale=-0.7)


@pytest.mark.parametrize("split_rows", [64, 128, 192, 512, 8192])
def test_splits(split_rows: int) -> None:
    for mma in emulated.MMA_MODES:
        configure(3, mma)
        mla_calls.decode(LENGTHS, TOKENS, 2, 32, 16, split_rows)


@pytest.mark.parametrize(("tokens", "heads"), [(TOKENS, 3), (PAIRS, 3), (TOKENS[4:5], 70), ([], 3)],
                         ids=["ragged", "pairs", "one", "none"])  # fmt: skip
@pytest.mark.parametrize("split_rows", [64, pytest.param(192, marks=pytest.mark.slow)])
def test_bits_in_any_deal(tokens: list[tuple[int, int]], heads: int, split_rows: int) -> None:
    """From one block for all rows to a block for each split. In the emulator a block keeps three splits unmerged, so
    some cuts move. Two tiles of one token's heads are a pair, too."""
    found = set()
    for sms in (1, 2, 3, 4, 7, 32):
        configure(sms)
        found.add(str(bits(mla_calls.decode(LENGTHS, tokens, heads, 32, 16, split_rows))))
    assert len(found) == 1


def test_bits_in_any_company() -> None:
    """Alone, with other heads, in another order, with other pages."""
    configure(3)
    together = mla_calls.decode(LENGTHS, TOKENS, 70, 32, 16)
    assert bits(mla_calls.decode(LENGTHS, TOKENS, 70, 32, 16, order=3)) == bits(together)
    assert bits(mla_calls.decode(LENGTHS, TOKENS[::-1], 70, 32, 16).flip(0)) == bits(together)
    assert bits(mla_calls.decode(LENGTHS, TOKENS, 5, 32, 16, first_head=63)) == bits(together[:, 63:68])
    for t in (0, 1, 4):
        assert bits(mla_calls.decode(LENGTHS, TOKENS[t : t + 1], 70, 32, 16)) == bits(together[t : t + 1])


def test_bits_in_every_schedule() -> None:
    for tokens in (TOKENS, PAIRS):
        found = set()
        for policy, seed in itertools.product(emulated.POLICIES, (2, 3, 4)):
            configure(3, "exact", seed, policy)
            found.add(str(bits(mla_calls.decode(LENGTHS[:3], tokens[:6], 3, 96, 80))))
        assert len(found) == 1


def test_scores_far_apart() -> None:
    """Weights down to nothing, in rising and falling order: what is merged keeps its place beside a larger score."""
    configure(3)
    for scale in (3.0, -3.0, 0.0):
        mla_calls.decode(LENGTHS, TOKENS, 4, 32, 16, scale=scale)


def call(rows: torch.Tensor, table: list[list[int]], tokens: list[tuple[int, int]], latent: int = 16) -> torch.Tensor:
    sequence, position = (torch.tensor(at, dtype=torch.int32) for at in zip(*tokens, strict=True))
    q = torch.stack([mla_oracle.drawn(2, rows.shape[2], seed=p, dtype=torch.bfloat16) for _, p in tokens]).abs()
    out = torch.empty(len(tokens), 2, latent, dtype=torch.bfloat16)
    run("mla_decode", q, rows, torch.tensor(table, dtype=torch.int32), sequence, position, latent, 0.3, 64, out)
    return out


def test_pages_that_do_not_exist() -> None:
    """NaN for tokens that would see one, in any split; their neighbours do not notice."""
    rows = mla_oracle.drawn(4, 64, 32, seed=2, dtype=torch.bfloat16)
    good = call(rows, [[3, 1, 2]], [(0, 191), (0, 63), (0, 130)])
    for at, page in itertools.product(range(3), (-1, 4)):
        broken = [3, 1, 2]
        broken[at] = page
        for sms in (2, 5):
            configure(sms)
            out = call(rows, [[3, 1, 2], broken], [(0, 191), (1, 191), (0, 63), (1, 63), (1, 130), (0, 130)])
            assert bits(out[[0, 2, 5]]) == bits(good)
            assert out[[1, 4]].isnan().all() and out[3].isnan().all() == (at == 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf(bad: float) -> None:
    """A bad row reaches the tokens that see it and no other; a score of -inf weighs nothing, also in a whole split."""
    rows = mla_oracle.drawn(3, 64, 32, seed=3, dtype=torch.bfloat16).abs()
    rows[1, 5, 31] = bad  # row 69, in no value
    tokens = [(0, 68), (0, 69), (0, 191), (0, 63)]
    out = call(rows, [[0, 1, 2]], tokens)
    assert out[1:3].isfinite().all() if bad == -torch.inf else out[1:3].isnan().all()
    rows[1, 5, 31] = 1.0
    assert bits(out[[0, 3]]) == bits(call(rows, [[0, 1, 2]], tokens)[[0, 3]])
    rows[0, :, 31] = -torch.inf  # the first split weighs nothing: what is left is as if it began behind it
    found = call(rows, [[0, 1, 2]], tokens)
    q = mla_oracle.drawn(2, 32, seed=191, dtype=torch.bfloat16).abs().double()
    past = rows[1:].flatten(0, 1).double()
    want = (0.3 * q @ past.T).softmax(-1) @ past[:, :16]
    assert found[3].isnan().all()  # only -inf: 0 / 0
    torch.testing.assert_close(found[2].double(), want, rtol=2**-6, atol=2**-8)


def test_wrong_calls_are_reported() -> None:
    rows = mla_oracle.drawn(3, 64, 32, seed=4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="multiples of 16"):
        call(rows[..., :24].contiguous(), [[0, 1, 2]], [(0, 63)], 8)
    with pytest.raises(RuntimeError, match="begin on 16 bytes"):
        call(torch.empty(3, 64, 36, dtype=torch.bfloat16)[..., 2:34], [[0, 1, 2]], [(0, 63)])
    with pytest.raises(RuntimeError, match="bf16"):
        run("mla_decode", torch.ones(1, 1, 16), torch.ones(1, 64, 16), *(torch.zeros(1, 1, dtype=torch.int32),),
            *2 * (torch.zeros(1, dtype=torch.int32),), 16, 1.0, 64, torch.ones(1, 1, 16))  # fmt: skip
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):  # a result of fewer tokens than the query
        at = torch.zeros(2, dtype=torch.int32)
        run("mla_decode", rows[:2, :1], rows, torch.zeros(1, 3, dtype=torch.int32), at, at, 16, 1.0, 64,
            torch.empty(1, 1, 16, dtype=torch.bfloat16))  # fmt: skip
