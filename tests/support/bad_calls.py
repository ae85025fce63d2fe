"""Bad calls by hand of the matrix products, for test_op_bad_calls.py. Each changes a legal call."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import LongcatShapeError, LongcatUnsupportedError

X = torch.zeros(4, 128)


def bad(op, text, change, error=LongcatShapeError):
    """change: (args, kwargs) of a legal call -> those of a bad one, whose error holds `text`."""
    return pytest.param(op, change, text, error, id=f"{op}-{text[:48]}")


PRODUCTS = [
    bad("fp8_gemm_nt", "`lhs` is a Tensor, expected a pair", lambda a, k: ((X, a[1]), k)),
    bad("fp8_gemm_nt", "`rhs` is a tuple of 3, expected a pair", lambda a, k: ((a[0], (*a[1], X)), k)),
    bad(
        "fp8_gemm_nt",
        "`b` is of shape [72, 152], expected a last size of 160",
        lambda a, k: ((a[0], (a[1][0][:, :152], a[1][1])), k),
    ),
    bad("fp8_gemm_nt", "`out` is of shape [5, 8], expected [5, 72]", lambda a, k: (a, {"out": X[:1, :40].view(5, 8)})),
    bad("fp8_gemm_nt", "`c` is a Tensor, expected None (on SM90)", lambda a, k: (a, {"c": X}), LongcatUnsupportedError),
    bad(
        "fp8_gemm_nt",
        "`recipe` is (1, 1, 128), expected None or (1, 128, 128)",
        lambda a, k: (a, {"recipe": (1, 1, 128)}),
        LongcatUnsupportedError,
    ),
    bad("fp8_gemm_nt", "`split_k` is 3, expected 1, 2 or 4", lambda a, k: (a, {"split_k": 3})),
    bad("fp8_gemm_nt", "`split_k` is of type str, expected of type int", lambda a, k: (a, {"split_k": "2"})),
    bad("m_grouped_fp8_gemm_nt_offset", "`split_k` is 0, expected 1, 2 or 4", lambda a, k: (a, {"split_k": 0})),
    bad("m_grouped_fp8_gemm_nt_offset", "`split_k` is 8, expected 1, 2 or 4", lambda a, k: (a, {"split_k": 8})),
    bad(
        "m_grouped_fp8_gemm_nt_offset",
        "`max_m_hint` is -1, expected 0 or more rows",
        lambda a, k: (a, {"max_m_hint": -1}),
    ),
    bad(
        "m_grouped_fp8_gemm_nt_offset", "`offsets` is of shape [3], expected [4]", lambda a, k: ((*a[:3], a[3][:3]), k)
    ),
    bad(
        "m_grouped_fp8_gemm_nt_offset", "`out` is None, expected a torch.Tensor", lambda a, k: ((*a[:2], None, a[3]), k)
    ),
    bad("m_grouped_fp8_gemm_nt_masked", "`expected_m` is -4", lambda a, k: ((*a[:4], -4), k)),
    bad(
        "m_grouped_fp8_gemm_nt_masked",
        "`b` is of shape [2, 72, 160], expected a first size of 3",
        lambda a, k: ((a[0], tuple(t[:2] for t in a[1]), *a[2:]), k),
    ),
    bad(
        "m_grouped_fp8_gemm_nt_masked",
        "`recipe_b` is (1, 128), expected None or (128, 128)",
        lambda a, k: (a, {"recipe_b": (1, 128)}),
        LongcatUnsupportedError,
    ),
    bad(
        "m_grouped_fp8_gemm_nt_contiguous",
        "`use_psum_layout` is True, expected False (on SM90)",
        lambda a, k: (a, {"use_psum_layout": True}),
        LongcatUnsupportedError,
    ),
    bad(
        "interleave_gate_up",
        "`w` is of shape [2, 264, 160], expected [G, 2I, K] with I a positive multiple of 8",
        lambda a, k: ((a[0][:, :264], a[1]), k),
    ),
    bad("interleave_gate_up", "`s` is None, expected the scales of an e4m3 weight", lambda a, k: ((a[0],), k)),
    bad(
        "interleave_gate_up",
        "`s` is a tensor, expected None for a weight that is not e4m3",
        lambda a, k: ((a[0].bfloat16(), a[1]), k),
    ),
    bad(
        "interleave_gate_up",
        "`w` is torch.float16, expected torch.float8_e4m3fn, torch.bfloat16 or torch.float32",
        lambda a, k: ((a[0].half(),), k),
    ),
    bad(
        "interleave_gate_up",
        "`w` is of strides (43520, 160, 1), expected contiguous",
        lambda a, k: ((a[0].bfloat16()[:, :256],), k),
    ),
    bad(
        "m_grouped_fp8_swiglu_gemm_nt_offset",
        "`gate_up` is a Tensor, expected a pair",
        lambda a, k: ((a[0], X, a[2]), k),
    ),
    bad("m_grouped_fp8_swiglu_gemm_nt_offset", "`max_m_hint` is -2", lambda a, k: (a, {"max_m_hint": -2})),
    bad(
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "`gate_up` is of shape [3, 264, 168], expected [G, 2I, K] with I a positive multiple of 8",
        lambda a, k: ((a[0], a[1][:, :264], a[2]), k),
    ),
    bad(
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "`gate_up` is of shape [3, 272, 160], expected a last size of 168, the K of `a`",
        lambda a, k: ((a[0], a[1][..., 8:], a[2]), k),
    ),
    bad(
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "`gate_up` is torch.float32, expected torch.bfloat16, the dtype of `a`",
        lambda a, k: ((a[0], a[1].float(), a[2]), k),
    ),
    bad(
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "`a` is torch.float16, expected torch.bfloat16 or torch.float32: no LongCat model holds float16",
        lambda a, k: ((a[0].half(), a[1].half(), a[2]), k),
    ),
    bad(
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "`gate_up` is of type tuple, expected a torch.Tensor",
        lambda a, k: ((a[0], (a[1], X), a[2]), k),
    ),
    bad(
        "m_grouped_bf16_swiglu_gemm_nt_offset",
        "`offsets` is of shape [3], expected [4]",
        lambda a, k: ((*a[:2], a[2][:3]), k),
    ),
    bad("m_grouped_bf16_swiglu_gemm_nt_offset", "`max_m_hint` is -2", lambda a, k: (a, {"max_m_hint": -2})),
    bad("bf16_gemm_nt", "`a` is of type tuple, expected a torch.Tensor", lambda a, k: (((X, X), a[1]), k)),
    bad(
        "bf16_gemm_nt",
        "`a` is torch.float16, expected torch.bfloat16 or torch.float32: no LongCat model holds float16",
        lambda a, k: ((a[0].half(), a[1]), k),
    ),
    bad(
        "bf16_gemm_nt",
        "`b` is torch.float16, expected torch.bfloat16 or torch.float32: no LongCat model holds float16",
        lambda a, k: ((a[0], a[1].half()), k),
    ),
    bad(
        "bf16_gemm_nt",
        "`b` is torch.float32, expected torch.bfloat16, the dtype of `a`",
        lambda a, k: ((a[0], a[1].float()), k),
    ),
    bad("bf16_gemm_nt", "`b` is torch.float8_e4m3fn", lambda a, k: ((a[0], a[1].to(torch.float8_e4m3fn)), k)),
    bad(
        "bf16_gemm_nt", "`b` is of shape [72, 160], expected a last size of 168", lambda a, k: ((a[0], a[1][:, 8:]), k)
    ),
    bad("bf16_gemm_nt", "`b` is of strides (1, 72)", lambda a, k: ((a[0], a[1].T.contiguous().T), k)),
    bad("bf16_gemm_nt", "`out` is in memory shared with `a`", lambda a, k: (a, {"out": a[0][:, :72]})),
    bad("bf16_gemm_nt", "`out` is of shape [5, 8], expected [5, 72]", lambda a, k: (a, {"out": X[:1, :40].view(5, 8)})),
    bad("bf16_gemm_nt", "`split_k` is 3, expected 1, 2 or 4", lambda a, k: (a, {"split_k": 3})),
    bad("bf16_gemm_nt", "`c` is a Tensor, expected None", lambda a, k: (a, {"c": X}), LongcatUnsupportedError),
    bad("m_grouped_bf16_gemm_nt_offset", "`split_k` is 8, expected 1, 2 or 4", lambda a, k: (a, {"split_k": 8})),
    bad("m_grouped_bf16_gemm_nt_offset", "`max_m_hint` is -1", lambda a, k: (a, {"max_m_hint": -1})),
    bad(
        "m_grouped_bf16_gemm_nt_offset", "`offsets` is of shape [3], expected [4]", lambda a, k: ((*a[:3], a[3][:3]), k)
    ),
    bad(
        "m_grouped_bf16_gemm_nt_offset",
        "`out` is None, expected a torch.Tensor",
        lambda a, k: ((*a[:2], None, a[3]), k),
    ),
    bad("m_grouped_bf16_gemm_nt_masked", "`expected_m` is -4", lambda a, k: ((*a[:4], -4), k)),
    bad(
        "m_grouped_bf16_gemm_nt_masked",
        "`b` is of shape [2, 72, 168], expected a first size of 3",
        lambda a, k: ((a[0], a[1][:2], *a[2:]), k),
    ),
    bad(
        "m_grouped_bf16_gemm_nt_contiguous",
        "`m_indices` is torch.int64, expected torch.int32",
        lambda a, k: ((*a[:3], a[3].long()), k),
    ),
    bad(
        "m_grouped_bf16_gemm_nt_contiguous",
        "`use_psum_layout` is True, expected False (on SM90)",
        lambda a, k: (a, {"use_psum_layout": True}),
        LongcatUnsupportedError,
    ),
]
