"""A row of a decode pass has the same bits in any company: products, SiLU and RoPE, and passes of one row where no
kernel promises that."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from longcat_ops import _environment, generate
from longcat_ops.model import products
from longcat_ops.model.rotary import rotate
from longcat_ops.reference.sums import silu
from support import models
from support.decode_passes import plain, verified

pytestmark = pytest.mark.long

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
KERNELS = (torch.float32, torch.bfloat16)
ON_KERNELS = _environment.backend() == "cpu"
ROWS = (1, 2, 3, 8, 17)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.skipif(not ON_KERNELS, reason="this backend has no kernels that keep rows apart")
@pytest.mark.parametrize("dtype", KERNELS, ids=str)
@pytest.mark.parametrize("size", [(61, 64), (160, 200), (9, 160), (8, 8), (15, 24), (1031, 256)])
def test_rows_and_columns_of_a_product(size, dtype, threads):
    """Any number of columns from 8 on; each column and row as in the product of it alone."""
    outer, inner = size
    x, weight = drawn(max(ROWS), inner, dtype=dtype), drawn(outer, inner, dtype=dtype, seed=1)
    assert products.on_kernels(dtype, "cpu", outer, inner)

    def run(x, weight, out=torch.float32):
        return products.linear(x, weight, torch.empty(len(x), len(weight), dtype=out))

    whole = run(x, weight)
    for rows in ROWS:
        assert torch.equal(run(x[-rows:], weight), whole[-rows:]), rows
    for first in (0, outer - 8):
        assert torch.equal(run(x, weight[first : first + 8]), whole[:, first : first + 8])
    truth = x.double() @ weight.double().T
    torch.testing.assert_close(whole.double(), truth, rtol=0, atol=1e-5 * inner**0.5)
    assert torch.equal(products.linear(x, weight), whole.to(dtype))


@pytest.mark.skipif(not ON_KERNELS, reason="this backend has no kernels that keep rows apart")
@pytest.mark.parametrize("dtype", KERNELS, ids=str)
@pytest.mark.parametrize("value", [8, 20, 24])
def test_rows_of_a_product_for_each_head(value, dtype, threads):
    """Operands and result are views, as those of attention; heads have weights of their own."""
    heads, latent = 3, 24
    x = drawn(max(ROWS), heads, latent, dtype=dtype).transpose(0, 1)
    weight = drawn(heads, 5 + value, latent, dtype=dtype, seed=1)[:, 5:]

    def run(rows):
        out = torch.full((rows, heads, value + 2), 7.0)
        counts = torch.full((heads,), rows, dtype=torch.int32)
        products.per_head(x[:, -rows:], weight, out[..., :value].transpose(0, 1), counts)
        assert (out[..., value:] == 7).all()
        return out[..., :value]

    whole = run(max(ROWS))
    for rows in ROWS:
        assert torch.equal(run(rows), whole[-rows:])
    truth = torch.einsum("htk,hnk->thn", x.double(), weight.double())
    torch.testing.assert_close(whole.double(), truth, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_that_no_kernel_takes(dtype):
    for outer, inner in ((7, 16), (16, 12), (1, 1), (3, 0)):
        assert not products.on_kernels(dtype, "cpu", outer, inner)
        x, weight = drawn(5, inner, dtype=dtype), drawn(outer, inner, dtype=dtype)
        truth = x.double() @ weight.double().T
        out = products.linear(x, weight, torch.empty(5, outer, dtype=torch.float64))
        torch.testing.assert_close(out, truth, rtol=0, atol=1e-5)
    assert not products.on_kernels(torch.float64, "cpu", 16, 16)
    assert products.on_kernels(torch.bfloat16, "cpu", 16, 16) == ON_KERNELS
    assert not products.on_kernels(torch.float32, "cuda", 16, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_of_a_pass(dtype):
    """Rows get equal bits at any width, so wherever the tensor's vector tail falls in the last row."""
    for width in [*range(1, 70), 96, 200, 4096, 4099]:
        row = drawn(1, width, dtype=dtype, seed=2) * 4
        for rows in ROWS:
            y = silu(row.repeat(rows, 1))
            assert torch.equal(y, silu(row).expand_as(y)), (width, rows)
        torch.testing.assert_close(silu(row).double(), F.silu(row.double()), rtol=8e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotation_of_a_pass(dtype):
    for rows in ROWS:
        for heads in (1, 2, 3, 5, 65):
            for width in (2, 4, 6, 8, 10, 64):
                x = drawn(1, heads, width, dtype=dtype, seed=3)
                angle = drawn(1, width // 2, dtype=torch.promote_types(dtype, torch.float32))
                rope = torch.stack([angle.cos(), angle.sin()], -1).flatten(1)
                y = rotate(x.repeat(rows, 1, 1), rope.repeat(rows, 1))
                assert torch.equal(y, y[:1].expand_as(y)), (rows, heads, width)


KINDS = {
    "fp32": dict(dtype=torch.float32),
    "fp64": dict(dtype=torch.float64),
    "bf16": dict(dtype=torch.bfloat16),
    "fp8": dict(dtype=torch.bfloat16, precision="fp8"),
    "odd_value_heads": dict(dtype=torch.float32, v_head_dim=6, num_attention_heads=2),
    "odd_ranks": dict(dtype=torch.bfloat16, q_lora_rank=20, kv_lora_rank=12),
}


def spoil(monkeypatch):
    """Products of several rows in torch get another last row, except in the chunks of a prompt, which are the same in
    every way of decoding."""
    for owner, name in ((F, "linear"), (torch, "bmm"), (torch, "matmul")):
        real = getattr(owner, name)

        def product(x, weight, *rest, real=real):
            y = real(x, weight, *rest)
            if x.shape[-2] in (2, 3, 8, 16):
                y[..., -1:, :] *= 1.05
            return y

        monkeypatch.setattr(owner, name, product)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_equals_verify_where_libraries_treat_rows_unlike(kind, monkeypatch):
    model = models.build(**KINDS[kind])
    assert model.row_by_row == (not ON_KERNELS or kind not in ("fp32", "bf16", "fp8"))
    spoil(monkeypatch)
    for batch in (1, 3, 8):
        starts = [5, 1, 64, 9, 12, 30, 7, 13][:batch]
        ids = torch.stack([models.prompt(80, seed=b) for b in range(batch)])
        assert torch.equal(verified(model, ids, starts, batch), plain(model, ids, starts))


@pytest.mark.parametrize("kind", ["fp32", "fp64"])
def test_generation_where_libraries_treat_rows_unlike(kind, monkeypatch):
    model = models.build(**KINDS[kind])
    prompts = [models.prompt(n, seed=n) for n in (5, 1, 61, 9, 4, 30, 6, 17)]
    spoil(monkeypatch)
    runs = [generate(model, prompts, 20, speculative=on, eos_token_id=-1).sequences for on in (False, True)]
    alone = [generate(model, [p], 20, eos_token_id=-1).sequences[0] for p in prompts]
    for a, b, c in zip(*runs, alone, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
