"""A size that is not a multiple of 8: the text names the dimension, and the fix that it gives works."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops.testing.op_cases import public

E4M3 = torch.float8_e4m3fn


def blocks(n):
    return -(-n // 128)


def activation(*sizes):
    return torch.zeros(sizes).to(E4M3), torch.ones(*sizes[:-1], blocks(sizes[-1]))


def weight(*sizes):
    *groups, n, k = sizes
    return torch.zeros(sizes).to(E4M3), torch.ones(*groups, blocks(n), blocks(k))


def gate_up(g, width, k):
    return torch.zeros(g, 2 * width, k).to(E4M3), torch.ones(g, 2 * blocks(width), blocks(k))


def routing(tokens):
    ids = torch.zeros(tokens, 1, dtype=torch.int32)
    return longcat_ops.Routing(ids, torch.ones(tokens, 1), torch.zeros(tokens), ids[:, 0], ids[:, 0], ids[0])


OFFSETS = torch.tensor([0, 3, 3], dtype=torch.int32)
PLAN = longcat_ops.moe_plan(torch.zeros(3, 1, dtype=torch.int32), 2)
# op, its arguments for a size, argument at fault, layout, size at fault, dimension, bad size, size it must have
CASES = [
    ("per_token_group_quant_fp8", lambda n: (torch.zeros(3, n),), "x", "[T, H]", "H", 1, 100, 104),
    ("per_block_quant_fp8", lambda n: (torch.zeros(3, n),), "w", "[N, K]", "K", 1, 12, 16),
    ("rms_norm_quant_fp8", lambda n: (torch.zeros(3, n), torch.ones(n), 1e-5), "x", "[T, H]", "H", 1, 4, 8),
    ("fp8_gemm_nt", lambda n: (activation(3, 128), weight(n, 128)), "b", "[N, K]", "N", 0, 100, 104),
    ("fp8_gemm_nt", lambda k: (activation(3, k), weight(16, k)), "a", "[M, K]", "K", 1, 100, 104),
    (
        "m_grouped_fp8_gemm_nt_offset",
        lambda n: (activation(3, 64), weight(2, n, 64), torch.zeros(3, n), OFFSETS),
        *("b", "[G, N, K]", "N", 1, 99, 104),
    ),
    (
        "m_grouped_fp8_gemm_nt_masked",
        lambda n: (activation(2, 3, 64), weight(2, n, 64), torch.zeros(2, 3, n), OFFSETS[:2], 1),
        *("b", "[G, N, K]", "N", 1, 1, 8),
    ),
    (
        "m_grouped_fp8_gemm_nt_masked",
        lambda k: (activation(2, 3, k), weight(2, 16, k), torch.zeros(2, 3, 16), OFFSETS[:2], 1),
        *("a", "[G, M, K]", "K", 2, 132, 136),
    ),
    (
        "m_grouped_fp8_gemm_nt_contiguous",
        lambda n: (activation(3, 64), weight(2, n, 64), torch.zeros(3, n), OFFSETS * 0),
        *("b", "[G, N, K]", "N", 1, 0, 8),
    ),
    ("bf16_gemm_nt", lambda n: (torch.zeros(3, 128), torch.zeros(n, 128)), "b", "[N, K]", "N", 0, 100, 104),
    ("bf16_gemm_nt", lambda k: (torch.zeros(3, k), torch.zeros(16, k)), "a", "[M, K]", "K", 1, 100, 104),
    (
        "m_grouped_bf16_gemm_nt_offset",
        lambda n: (torch.zeros(3, 64), torch.zeros(2, n, 64), torch.zeros(3, n), OFFSETS),
        *("b", "[G, N, K]", "N", 1, 99, 104),
    ),
    (
        "m_grouped_bf16_gemm_nt_masked",
        lambda k: (torch.zeros(2, 3, k), torch.zeros(2, 16, k), torch.zeros(2, 3, 16), OFFSETS[:2], 1),
        *("a", "[G, M, K]", "K", 2, 132, 136),
    ),
    (
        "m_grouped_bf16_gemm_nt_contiguous",
        lambda n: (torch.zeros(3, 64), torch.zeros(2, n, 64), torch.zeros(3, n), OFFSETS * 0),
        *("b", "[G, N, K]", "N", 1, 0, 8),
    ),
    (
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        lambda k: (torch.zeros(3, k), torch.zeros(2, 16, k), OFFSETS),
        *("a", "[M, K]", "K", 1, 12, 16),
    ),
    ("interleave_gate_up", lambda k: gate_up(2, 8, k), "w", "[G, 2I, K]", "K", 2, 20, 24),
    ("interleave_gate_up", lambda k: (torch.zeros(2, 16, k),), "w", "[G, 2I, K]", "K", 2, 20, 24),
    ("router_gemm", lambda h: (torch.zeros(3, h), torch.zeros(5, h)), "x", "[T, H]", "H", 1, 12, 16),
    ("moe_permute", lambda h: (torch.zeros(3, h), PLAN), "x", "[T, H]", "H", 1, 12, 16),
    ("moe_permute_quant", lambda h: (torch.zeros(3, h), PLAN), "x", "[T, H]", "H", 1, 9, 16),
    (
        "moe_combine",
        lambda h: (torch.zeros(3, h), PLAN, routing(3), torch.zeros(3, h)),
        *("x", "[T, H]", "H", 1, 9, 16),
    ),
    (
        "fused_moe",
        lambda h: (torch.zeros(3, h), routing(3), torch.zeros(2, 16, h), torch.zeros(2, h, 8)),
        *("x", "[T, H]", "H", 1, 30, 32),
    ),
]


@pytest.mark.parametrize(("op", "make", "argument", "layout", "size", "dimension", "bad", "good"), CASES)
def test_the_size_at_fault_is_named(op, make, argument, layout, size, dimension, bad, good):
    supported, reason, fix = longcat_ops.supports(op, *make(bad))
    assert not supported
    assert f"{op}: argument `{argument}` is of shape [" in reason
    assert f"expected {layout} with {size} a positive multiple of 8." in reason
    assert fix == f"pad `{argument}` with zeros along {size} (dimension {dimension}) to {good}"
    with pytest.raises(longcat_ops.LongcatShapeError, match=f"with {size} a positive multiple of 8"):
        public(op)(*make(bad))
    public(op)(*make(good))


HALVES = [
    ("silu_and_mul_quant_fp8", "gate_up", "[T, 2I]", lambda i: (torch.zeros(3, 2 * i),)),
    ("interleave_gate_up", "w", "[G, 2I, K]", lambda i: gate_up(2, i, 64)),
    ("interleave_gate_up", "w", "[G, 2I, K]", lambda i: (torch.zeros(2, 2 * i, 64),)),
    (
        "m_grouped_fp8_swiglu_gemm_nt_offset",
        "gate_up",
        "[G, 2I, K]",
        lambda i: (activation(3, 64), gate_up(2, i, 64), OFFSETS),
    ),
    (
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "gate_up",
        "[G, 2I, K]",
        lambda i: (torch.zeros(3, 64), torch.zeros(2, 2 * i, 64), OFFSETS),
    ),
]


@pytest.mark.parametrize(("op", "argument", "layout", "make"), HALVES)
def test_of_gate_and_up_each_is_padded(op, argument, layout, make):
    for bad, good in ((4, 8), (12, 16), (100, 104)):
        supported, reason, fix = longcat_ops.supports(op, *make(bad))
        assert not supported
        assert f"argument `{argument}` is of shape [" in reason
        assert f"expected {layout} with I a positive multiple of 8." in reason
        assert fix == f"pad gate and up with zeros to {good} each"
        public(op)(*make(good))


def test_whole_text_of_a_weight_with_100_rows():
    with pytest.raises(longcat_ops.LongcatShapeError) as caught:
        longcat_ops.fp8_gemm_nt(activation(3, 160), weight(100, 160))
    assert str(caught.value) == (
        "fp8_gemm_nt: argument `b` is of shape [100, 160], expected [N, K] with N a positive multiple of 8.\n"
        "  b: torch.float8_e4m3fn [100, 160] on cpu\n"
        "  fix: pad `b` with zeros along N (dimension 0) to 104"
    )


def test_a_stack_of_rows_is_not_told_to_reshape_a_weight():
    a, b = activation(3, 64), weight(2, 16, 64)
    assert longcat_ops.supports("fp8_gemm_nt", a, b)[2] == "m_grouped_fp8_gemm_nt_offset takes a stack of weights"
    dense = longcat_ops.supports("bf16_gemm_nt", torch.zeros(3, 64), torch.zeros(2, 16, 64))
    assert dense[2] == "m_grouped_bf16_gemm_nt_offset takes a stack of weights"
    out = torch.zeros(3, 16)
    supported, reason, fix = longcat_ops.supports("m_grouped_fp8_gemm_nt_offset", a, weight(16, 64), out, OFFSETS[:2])
    assert (supported, fix) == (False, "b[None] is a stack of one")
    assert "`b` is 2-D [16, 64], expected 3-D [G, N, K]" in reason
    assert longcat_ops.supports("rms_norm", torch.zeros(2, 3, 8), torch.ones(8), 1e-5)[2] == "x.flatten(0, -2)"
    assert longcat_ops.supports("rms_norm", torch.zeros(8), torch.ones(8), 1e-5)[2] == "x[None]"
    for op, args, argument in (
        ("dequant_fp8", (a[0], torch.ones(3)), "s"),
        ("moe_plan", (torch.zeros(3, dtype=torch.int32), 2), "ids"),
    ):
        supported, reason, fix = longcat_ops.supports(op, *args)
        assert f"`{argument}` is 1-D [3], expected 2-D" in reason
        assert "reshape" not in fix
