"""Kernels of rows in the host emulator: values, nothing written elsewhere, bits that no schedule, neighbour or
alignment changes, and accesses outside the arguments are reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import mla_oracle, rows_calls
from support.emulated_kernels import DTYPES, library, one_thread, run, schedule  # noqa: F401  (fixtures)
from support.mla_oracle import drawn

# Rows as they lie in a model; rows apart; inputs off 16 bytes; outputs off 16 bytes; everything odd.
LAYOUTS = [(0, 0, 0, 0), (8, 0, 16, 8), (0, 1, 0, 0), (0, 0, 0, 3), (3, 5, 1, 7)]
# One element, partial chunks, one block's chunks and more, what a norm holds in registers and more.
WIDTHS = [1, 8, 97, 1024, 1032, 6144, 6152]
CALLS = {
    "norm": rows_calls.norm,
    "norm_of_a_sum": partial(rows_calls.norm, residual=True),
    "add": rows_calls.add,
    "silu": rows_calls.silu,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CALLS)
def test_values_in_every_layout(name: str, width: int, dtype: torch.dtype) -> None:
    call, rows = CALLS[name], 3 if width > 1000 else 19
    assert len({str(bits(call(rows, width, dtype, layout))) for layout in LAYOUTS}) == 1
    for few in (0, 1):
        call(few, width, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 4, 8, 97, 1028, 6144])
def test_embedding_in_every_layout(width: int, dtype: torch.dtype) -> None:
    assert len({str(bits(rows_calls.embed(width, dtype, layout))) for layout in LAYOUTS}) == 1
    rows_calls.embed(width, dtype, ids=[])
    rows_calls.embed(width, dtype, ids=[3])


def test_rows_without_columns() -> None:
    rows_calls.add(3, 0, torch.bfloat16)
    rows_calls.silu(3, 0, torch.float32)
    rows_calls.embed(0, torch.float16)


def test_a_table_without_rows() -> None:
    out = torch.ones(2, 9)
    run("embed_rows", torch.ones(0, 9), torch.tensor([0, -1]), out)
    assert (out == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 264, 4104, 9000])
def test_a_norm_has_the_bits_of_other_norms(width: int, dtype: torch.dtype) -> None:
    """Of the norm with quantisation and, for widths that it refuses, of the latent row of a token."""
    x, other, weight = drawn(3, width, seed=1).to(dtype), drawn(3, width, seed=2).to(dtype), rows_calls.weight_of(width)
    y, theirs, total, out = (torch.empty_like(x) for _ in range(4))
    run("rms_norm", x, weight, 1e-5, other, y, total)
    q, s = torch.empty(3, width, dtype=torch.float8_e4m3fn), torch.empty(3, -(-width // 128))
    run("rms_norm_quant_fp8", x, weight, 1e-5, other, q, s, theirs, out)
    assert bits([y, total]) == bits([theirs, out])

    narrow = width - 3
    x, weight, y = x[:, :narrow], weight[:narrow], torch.empty(3, narrow, dtype=dtype)
    rows, index = torch.zeros(1, 64, narrow + 2, dtype=dtype), torch.arange(3, dtype=torch.int32)
    run("rms_norm", x, weight, 1e-5, None, y, None)
    kv = torch.cat([x, torch.zeros(3, 2, dtype=dtype)], 1)
    table = torch.zeros(1, 1, dtype=torch.int32)
    run("mla_write", kv, weight, 1e-5, mla_oracle.rope(4, 2), table, torch.zeros_like(index), index, rows)
    assert bits(y) == bits(rows[0, :3, :narrow])


def test_a_weight_off_16_bytes() -> None:
    one, other = (rows_calls.norm(3, 264, torch.bfloat16, weight_offset=offset) for offset in (0, 1))
    assert bits(one) == bits(other)


@pytest.mark.parametrize("width", [97, 264, 6152])
def test_a_nan_stays_in_its_row(width: int) -> None:
    x, y = torch.ones(3, width, dtype=torch.bfloat16), torch.empty(3, width, dtype=torch.bfloat16)
    x[1, -1] = torch.nan
    run("rms_norm", x, torch.ones(width), 0.0, None, y, None)
    assert y.isnan().all(1).tolist() == [False, True, False] and (y[::2] == 1).all()


@pytest.mark.parametrize("width", [97, 1032])
@pytest.mark.parametrize("name", ["norm_of_a_sum", "silu"])
def test_a_row_alone(name: str, width: int) -> None:
    """The bits of a row do not depend on how many others there are, nor on its place among them."""
    x, other = drawn(19, 2 * width, seed=3).bfloat16(), drawn(19, width, seed=4).bfloat16()

    def results(rows: slice) -> list[Tensor]:
        y, total = (torch.empty_like(other[rows]) for _ in range(2))
        if name == "silu":
            run("silu_and_mul", x[rows], y)
            return [y]
        run("rms_norm", x[rows, :width], torch.ones(width), 1e-5, other[rows], y, total)
        return [y, total]

    together = results(slice(None))
    for row in (0, 7, 18):
        assert bits(results(slice(row, row + 1))) == bits([t[row : row + 1] for t in together])


SCHEDULED = {
    "rms_norm": partial(rows_calls.norm, 3, 2072, torch.bfloat16, residual=True),
    "embed_rows": partial(rows_calls.embed, 97, torch.float16),
    "add_rows": partial(rows_calls.add, 5, 1032, torch.bfloat16),
    "silu_and_mul": partial(rows_calls.silu, 5, 97, torch.float32),
}


@pytest.mark.parametrize("call", SCHEDULED.values(), ids=SCHEDULED)
def test_in_every_schedule(call: Callable[[], Tensor]) -> None:
    want = bits(call())
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            assert bits(call()) == want


OUTSIDE = {  # one argument ends before the others do
    "rms_norm of residual": lambda: (torch.ones(2, 97), torch.ones(97), 1e-5, torch.ones(1, 97), *torch.ones(2, 2, 97)),
    "rms_norm into": lambda: (torch.ones(1, 40), torch.ones(40), 1e-5, None, torch.ones(1, 32), None),
    "embed_rows into": lambda: (torch.ones(5, 40), torch.tensor([7]), torch.ones(1, 32)),
    "add_rows of y": lambda: (torch.ones(3, 97), torch.ones(2, 97), torch.ones(3, 97)),
    "add_rows of x": lambda: (torch.ones(3, 32), torch.ones(3, 40), torch.ones(3, 40)),
    "silu_and_mul of up": lambda: (torch.ones(3, 64), torch.ones(3, 40)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_access_outside_the_arguments_is_reported(name: str) -> None:
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
        run(name.split()[0], *OUTSIDE[name]())
