"""mla_write: each latent row in its page and nothing else, against fp64 and the bits of rms_norm."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import _environment, mla_write, rms_norm
from longcat_ops.testing.op_results import bits
from support import mla_oracle
from support.grouped import ROUNDING
from support.mla_oracle import drawn
from support.norm_oracle import assert_normed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNSET = 0.25


def problem(latent: int, width: int, dtype: torch.dtype, tokens: int):
    kv, weight = drawn(tokens, latent + width, seed=latent, dtype=dtype), drawn(latent, seed=1).abs() + 0.5
    rows = torch.full((6, 64, latent + width), UNSET, dtype=dtype)
    return kv, weight, mla_oracle.rope(192, width), torch.tensor([[4, 0, 2], [1, 5, 3]], dtype=torch.int32), rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("latent", "width"), [(24, 8), (512, 64), (9, 2), (1, 6), (128, 32)])
def test_each_row_lies_in_its_page(latent: int, width: int, dtype: torch.dtype) -> None:
    places = [(0, 0), (0, 63), (1, 64), (0, 191), (1, 65)]
    kv, weight, rope, table, rows = problem(latent, width, dtype, len(places))
    sequence, position = torch.tensor(places, dtype=torch.int32).unbind(1)
    out = mla_write(kv, weight, 1e-6, rope, table, sequence.contiguous(), position.contiguous(), rows)
    assert out is rows
    normed = rms_norm(kv[:, :latent].contiguous(), weight, 1e-6)
    want = torch.full_like(rows, UNSET)
    for t, (s, p) in enumerate(places):
        row = rows[table[s, p // 64], p % 64]
        assert_normed(row[None, :latent], kv[t : t + 1, :latent], weight, 1e-6)
        if _environment.backend() == "cpu":
            assert bits(row[:latent]) == bits(normed[t])
        truth = mla_oracle.turned(kv[t, latent:], rope[p])
        bound = (ROUNDING[dtype] + 2**-22) * kv[t, latent:].double().abs().max() * 2
        assert ((row[latent:].double() - truth).abs() <= bound).all()
        want[table[s, p // 64], p % 64] = row
    assert bits(rows) == bits(want)


def test_tokens_without_a_place_write_nothing() -> None:
    """Padding, sequences and positions that the table has not, pages that do not exist."""
    places = [(0, -1), (2, 0), (-1, 3), (1, 192), (0, 70), (1, 5)]
    kv, weight, rope, table, rows = problem(16, 4, torch.float32, len(places))
    table[0, 1], table[1, 0] = 6, -1
    sequence, position = torch.tensor(places, dtype=torch.int32).unbind(1)
    mla_write(kv, weight, 1e-6, rope, table, sequence.contiguous(), position.contiguous(), rows)
    assert (rows == UNSET).all()


def test_a_position_past_the_table_of_angles_turns_into_nan() -> None:
    kv, weight, rope, table, rows = problem(16, 4, torch.float32, 1)
    at = torch.tensor([70], dtype=torch.int32)
    mla_write(kv, weight, 1e-6, rope[:70], table, torch.zeros_like(at), at, rows)
    assert rows[0, 6, :16].isfinite().all() and rows[0, 6, 16:].isnan().all()


def test_a_slot_of_several_and_rows_apart() -> None:
    kv, weight, rope, table, rows = problem(16, 4, torch.bfloat16, 3)
    wide = torch.cat([kv, kv], -1)[:, 3:]
    slots = torch.full((3, *rows.shape), UNSET, dtype=rows.dtype)
    sequence, position = torch.tensor([0, 1, 0], dtype=torch.int32), torch.tensor([5, 64, 6], dtype=torch.int32)
    mla_write(wide[:, :20].contiguous(), weight, 1e-6, rope, table, sequence, position, rows)
    mla_write(wide[:, :20], weight, 1e-6, rope, table, sequence, position, slots[1])
    assert bits(slots[1]) == bits(rows) and (slots[::2] == UNSET).all()
