"""embed_rows: rows bit for bit, zeros for ids that the table has not."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import embed_rows
from longcat_ops.testing.op_results import bits

RAW = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@pytest.mark.parametrize("dtype", RAW, ids=str)
def test_rows_are_copied_bit_for_bit(dtype: torch.dtype) -> None:
    """NaNs of every payload included; a table whose rows lie apart."""
    info, g = torch.iinfo(RAW[dtype]), torch.Generator().manual_seed(0)
    table = torch.randint(info.min, info.max, (31, 40), generator=g, dtype=RAW[dtype]).view(dtype)[:, 2:35]
    ids = torch.tensor([30, 0, 7, 7, -1, 31, 2**31 - 1, -(2**31)])
    out = embed_rows(table, ids)
    assert out.shape == (8, 33) and out.dtype == dtype and out.is_contiguous()
    assert bits(out[:4]) == bits(torch.stack([table[i] for i in (30, 0, 7, 7)]))
    assert (out[4:].view(RAW[dtype]) == 0).all()


def test_a_large_id_is_not_wrapped() -> None:
    out = embed_rows(torch.ones(3, 4), torch.tensor([2**32, 2**32 + 1, 2]))
    assert out.sum(1).tolist() == [0, 0, 4]


def test_a_table_without_rows() -> None:
    assert (embed_rows(torch.ones(0, 4), torch.tensor([0, 1])) == 0).all()
