"""mla_decode against fp64 with a bound for every element, and bits that depend on a token's own past alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import mla_decode
from support import mla_oracle
from support.bf16_grouped import BACKEND
from support.grouped import assert_close
from support.mla_oracle import Cache, cache, drawn

DTYPES = (torch.float32, torch.bfloat16)
on_kernel = pytest.mark.skipif(BACKEND != "cpu", reason="no kernel but the CPU's fixes the order of sums yet")


def i32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def run(q: Tensor, c: Cache, sequence: list[int], position: list[int], latent: int, scale: float = 0.1,
        split_rows: int = 512) -> Tensor:  # fmt: skip
    return mla_decode(q, *c, i32(sequence), i32(position), latent=latent, scale=scale, split_rows=split_rows)


def check(q: Tensor, c: Cache, sequence: list[int], position: list[int], latent: int, **options) -> Tensor:
    out = run(q, c, sequence, position, latent, **options)
    assert out.shape == (*q.shape[:2], latent) and out.dtype == q.dtype
    for t, (s, p) in enumerate(zip(sequence, position, strict=True)):
        assert_close(out[t], *mla_oracle.decode(q[t], c, s, p, latent, options.get("scale", 0.1)))
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "width", "latent"), [(1, 40, 32), (5, 33, 31), (8, 576, 512), (64, 160, 128),
                                                        (128, 72, 64), (3, 1, 1), (17, 24, 24)])  # fmt: skip
def test_against_fp64(heads: int, width: int, latent: int, dtype: torch.dtype) -> None:
    """Lengths 1, 63, 64, 65 and several pages, in any order; rows past the position are NaN."""
    lengths = [1, 63, 64, 65, 200]
    c = cache(lengths, width, dtype)
    sequence, position = [4, 0, 2, 1, 3, 4], [199, 0, 63, 62, 64, 7]
    q = drawn(len(sequence), heads, width, seed=1, dtype=dtype)
    check(q, c, sequence, position, latent, scale=width**-0.5)
    check(q, c, sequence, position, latent, scale=-1.5, split_rows=64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("split_rows", [64, 512, 8192])
def test_many_rows(split_rows: int, dtype: torch.dtype) -> None:
    c = cache([5000, 4096], 48, dtype)
    check(drawn(2, 2, 48, seed=2, dtype=dtype), c, [0, 1], [4999, 4095], 40, split_rows=split_rows)


@pytest.mark.long
def test_as_many_rows_as_the_model_has_positions() -> None:
    c = cache([130_000], 24, torch.bfloat16)
    check(drawn(1, 1, 24, seed=3, dtype=torch.bfloat16), c, [0], [129_999], 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_far_apart_and_alike(dtype: torch.dtype) -> None:
    """One row that outweighs all, in any page; and rows that all weigh the same."""
    c = cache([200], 16, dtype)
    q = drawn(1, 2, 16, seed=4, dtype=dtype)
    for row in (0, 63, 64, 199):
        page, at = c.page_table[0, row // 64], row % 64
        kept = c.rows[page, at].clone()
        c.rows[page, at] = q[0, 0] * 40
        out = check(q, c, [0], [199], 16, scale=1.0)
        torch.testing.assert_close(out[0, 0], c.rows[page, at], rtol=1e-2, atol=0)
        c.rows[page, at] = kept
    check(torch.zeros_like(q), c, [0], [199], 16)


def test_what_is_padding_and_what_is_unknown() -> None:
    """Position -1 gives 0; a sequence, position or page that does not exist NaN; neighbours do not notice."""
    c = cache([70, 70], 16, torch.float32)
    q, last = drawn(7, 2, 16, seed=5), c.page_table.clone()
    last[1, 1] = 99
    out = mla_decode(
        q, c.rows, last, i32([0, 0, 2, -1, 0, 1, 1]), i32([69, -1, 0, 5, 128, 64, 63]), latent=8, scale=0.1
    )
    assert (out[1] == 0).all()
    assert all(out[t].isnan().all() for t in (2, 3, 4, 5))
    for t, (s, p) in {0: (0, 69), 6: (1, 63)}.items():
        assert_close(out[t], *mla_oracle.decode(q[t], c, s, p, 8, 0.1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf(bad: float) -> None:
    """A NaN or inf in a row reaches tokens that see it, and no other; -inf scores weigh nothing."""
    c = cache([130], 8, torch.float32)
    q = drawn(3, 1, 8, seed=6).abs()
    c.rows[c.page_table[0, 1], 3, 7] = bad  # row 67, in no value
    out = run(q, c, [0, 0, 0], [66, 67, 129], 4)
    assert out[0].isfinite().all()
    if bad == -torch.inf:
        rows = torch.cat([mla_oracle.past_of(c, 0, 66), mla_oracle.past_of(c, 0, 129)[68:]])
        weights = (0.1 * q[2].double() @ rows.T).softmax(-1)
        torch.testing.assert_close(out[2].double(), weights @ rows[:, :4], rtol=0, atol=1e-5)
    else:
        assert out[1:].isnan().all()


def test_a_first_page_of_minus_inf_scores() -> None:
    c = cache([128], 8, torch.float32)
    c.rows[c.page_table[0, 0], :, 7] = -torch.inf
    q = drawn(1, 1, 8, seed=7).abs()
    weights = (0.1 * q[0].double() @ mla_oracle.past_of(c, 0, 127)[64:].T).softmax(-1)
    want = weights @ mla_oracle.past_of(c, 0, 127)[64:, :4]
    for split_rows in (64, 512):
        torch.testing.assert_close(run(q, c, [0], [127], 4, split_rows=split_rows)[0].double(), want, rtol=0, atol=1e-5)


@on_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_its_bits_in_any_company(dtype: torch.dtype) -> None:
    """Alone, beside others, beside the next token of its sequence, with pages in another order, on 1 and 2 threads, any
    number of heads."""
    lengths, width, latent = [300, 65, 1, 129], 40, 32
    c = cache(lengths, width, dtype)
    sequence, position = [0, 1, 2, 3, 0, 3], [299, 64, 0, 128, 298, 63]
    q = drawn(len(sequence), 20, width, seed=8, dtype=dtype)
    together = run(q, c, sequence, position, latent)
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            assert torch.equal(run(q, cache(lengths, width, dtype, order=count), sequence, position, latent), together)
        finally:
            torch.set_num_threads(threads)
    for t, (s, p) in enumerate(zip(sequence, position, strict=True)):
        assert torch.equal(run(q[t : t + 1], c, [s], [p], latent)[0], together[t])
        assert torch.equal(run(q[t : t + 1, 3:9], c, [s], [p], latent)[0], together[t, 3:9])
    if dtype == torch.float32:  # where no rounding hides it, split_rows counts, as it is said to
        assert not torch.equal(run(q, c, sequence, position, latent, split_rows=64)[0], together[0])


@on_kernel
def test_instruction_sets_agree_bit_for_bit() -> None:
    outputs = set()
    for isa in longcat_ops._library.load().build_info()["cpu_isas"]:
        environment = os.environ | {"LONGCAT_OPS_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1 and len(set(outputs.pop().split())) == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views(dtype: torch.dtype) -> None:
    """q and out may be parts of larger tensors, rows one slot of several."""
    c = cache([90], 24, dtype)
    q, slots = drawn(2, 6, 30, seed=9, dtype=dtype), c.rows.new_full((3, *c.rows.shape), torch.nan)
    slots[1] = c.rows
    want = run(q[:, ::2, 3:27].contiguous(), c, [0, 0], [89, 88], 16)
    out = want.new_full((2, 3, 20), 7.0)
    arguments = slots[1], c.page_table, i32([0, 0]), i32([89, 88]), 16, 0.1, 512, out[..., 2:18]
    torch.ops.longcat_ops.mla_decode(q[:, ::2, 3:27], *arguments)
    assert torch.equal(out[..., 2:18], want) and (out[..., :2] == 7).all() and (out[..., 18:] == 7).all()


if __name__ == "__main__":
    for dtype in DTYPES:
        for heads, width, latent in ((5, 33, 31), (16, 72, 64), (3, 160, 128)):
            c = cache([1, 150, 700], width, dtype)
            out = run(drawn(3, heads, width, seed=10, dtype=dtype), c, [0, 1, 2], [0, 149, 699], latent)
            print(hashlib.sha256(out.float().numpy().tobytes()).hexdigest())
