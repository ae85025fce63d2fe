"""mla_query against fp64 and the bits of the product for each head."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import m_grouped_bf16_gemm_nt_masked, mla_query
from longcat_ops.ops import checking
from longcat_ops.ops.described import Described
from longcat_ops.testing.op_results import bits
from support import mla_oracle
from support.bf16_grouped import BACKEND, DTYPES
from support.mla_oracle import drawn


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "nope", "latent", "width"), [(4, 16, 24, 8), (1, 8, 8, 2), (64, 128, 512, 64),
                                                                (3, 40, 136, 6)])  # fmt: skip
def test_against_fp64(heads: int, nope: int, latent: int, width: int, dtype: torch.dtype) -> None:
    position = torch.tensor([0, 7, 63, 64, 99], dtype=torch.int32)
    q, w_k = drawn(5, heads, nope + width, seed=1, dtype=dtype), drawn(heads, latent, nope, seed=2, dtype=dtype)
    rope = mla_oracle.rope(100, width)
    out = mla_query(q, w_k, rope, position)
    assert out.shape == (5, heads, latent + width) and out.dtype == dtype
    mla_oracle.assert_query(q, w_k, rope, position, out)


@pytest.mark.skipif(BACKEND == "reference", reason="the reference does not fix the order of sums")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_its_bits_are_those_of_the_product_and_of_the_token_alone(dtype: torch.dtype) -> None:
    heads, nope, latent, width = 5, 136, 40, 4
    position = torch.tensor([3, 11, 0, 63, 8, 9, 1], dtype=torch.int32)
    q, w_k = drawn(7, heads, nope + width, seed=3, dtype=dtype), drawn(heads, latent, nope, seed=4, dtype=dtype)
    rope = mla_oracle.rope(64, width)
    out = mla_query(q, w_k, rope, position)
    absorbed = torch.empty(heads, 7, latent, dtype=dtype)
    counts = torch.full((heads,), 7, dtype=torch.int32)
    m_grouped_bf16_gemm_nt_masked(q[..., :nope].transpose(0, 1), w_k, absorbed, counts, 7)
    assert bits(out[..., :latent].contiguous()) == bits(absorbed.transpose(0, 1).contiguous())
    for t in range(7):
        assert bits(mla_query(q[t : t + 1], w_k, rope, position[t : t + 1])[0]) == bits(out[t])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_and_positions_past_the_table(dtype: torch.dtype) -> None:
    q, w_k = drawn(3, 2, 12, seed=5, dtype=dtype), drawn(2, 16, 8, seed=6, dtype=dtype)
    q[1] = torch.nan
    out = mla_query(q, w_k, mla_oracle.rope(8, 4), torch.tensor([7, -1, 8], dtype=torch.int32))
    assert out[0].isfinite().all() and (out[1] == 0).all()
    assert out[2, :, :16].isfinite().all() and out[2, :, 16:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views(dtype: torch.dtype) -> None:
    q, w_k, rope = drawn(3, 4, 20, seed=7, dtype=dtype), drawn(4, 48, 16, seed=8, dtype=dtype), mla_oracle.rope(9, 8)
    position = torch.tensor([1, 8, 4], dtype=torch.int32)
    parts = q[:, ::2, 4:16], w_k[::2, 16:, 8:], rope[:, 2:6]
    want = mla_query(*(part.contiguous() for part in parts), position)
    assert want.shape == (3, 2, 36) and bits(mla_query(*parts, position)) == bits(want)


def test_float32_runs_on_a_cpu_alone() -> None:
    for device in ("cpu", "cuda"):
        kinds = (("torch.float32", (3, 2, 20)), ("torch.float32", (2, 24, 16)), ("torch.float32", (9, 4)),
                 ("torch.int32", (3,)), ("torch.float32", (3, 2, 28)))  # fmt: skip
        arguments = []
        for dtype, sizes in kinds:
            strides = tuple(int(torch.Size(sizes[i + 1 :]).numel()) for i in range(len(sizes)))
            arguments.append(Described(dtype, sizes, strides, device, 0, 0))
        _, reason, fix = checking.find_problem("mla_query", *arguments)
        if device == "cpu":
            assert not reason
        else:
            assert "`q` is torch.float32, expected torch.bfloat16: on CUDA the tensor cores take bf16" in reason
            assert fix == "q.bfloat16()"
