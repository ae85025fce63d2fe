"""Bad calls of every op, as a user would make them: the exception, its text, and the same verdict from `supports`."""

from __future__ import annotations

import math

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatError, LongcatUnsupportedError
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import CASES, public
from support import bad_calls, decode_bad_calls, sampling_bad_calls
from support.bad_calls import X, bad


def small(op):
    return CASES[op][next(iter(CASES[op]))]()


def planned(args):
    """The plan of a call of fused_moe."""
    return longcat_ops.moe_plan(args[1].ids, 6)


SCALARS = [
    bad(
        "per_token_group_quant_fp8",
        "`group_size` is 0, expected a positive multiple of 8",
        lambda a, k: (a, {"group_size": 0}),
    ),
    bad(
        "per_token_group_quant_fp8",
        "`group_size` is of type str, expected of type int",
        lambda a, k: (a, {"group_size": "8"}),
    ),
    bad("per_token_group_quant_fp8", "`x` is of type list, expected a torch.Tensor", lambda a, k: (([1.0],), k)),
    bad(
        "per_token_group_quant_fp8",
        "`x` is of shape [4, 12], expected [T, H] with H a positive multiple of 8",
        lambda a, k: ((X[:, :12],), k),
    ),
    bad("per_block_quant_fp8", "`w` is None, expected a torch.Tensor", lambda a, k: ((None,), k)),
    bad(
        "silu_and_mul_quant_fp8",
        "`gate_up` is of shape [4, 24], expected [T, 2I] with I a positive multiple of 8",
        lambda a, k: ((X[:, :24],), k),
    ),
    bad("dequant_fp8", "`dtype` is another dtype, expected torch.bfloat16", lambda a, k: ((*a[:2], torch.int8), k)),
    bad("dequant_fp8", "`group_size` is 100", lambda a, k: (a, {"group_size": 100})),
    bad(
        "dequant_fp8",
        "`s` is of shape [1, 1], expected [5, 2] (one scale per row",
        lambda a, k: ((a[0], a[1][:1, :1]), k),
    ),
    bad("rms_norm", "`eps` is -1, expected 0 or a small positive number", lambda a, k: ((*a[:2], -1.0), k)),
    bad("rms_norm", "`eps` is inf", lambda a, k: ((*a[:2], math.inf), k)),
    bad(
        "rms_norm",
        "`x` is of shape [4, 0], expected [T, H] with H at least 1",
        lambda a, k: ((X[:, :0], X[0, :0], 1e-5), k),
    ),
    bad("rms_norm_quant_fp8", "`x` is of shape [4, 12]", lambda a, k: ((X[:, :12], X[0, :12], 1e-5), k)),
    bad(
        "rms_norm_quant_fp8",
        "`residual` is torch.float32, expected torch.bfloat16",
        lambda a, k: ((*a[:3], a[3].float()), k),
    ),
    *bad_calls.PRODUCTS,
    *decode_bad_calls.DECODE,
    *sampling_bad_calls.SAMPLING,
    bad("moe_route", "`top_k` is 0, expected 1 .. 13", lambda a, k: (a, k | {"top_k": 0})),
    bad("moe_route", "`top_k` is 14, expected 1 .. 13", lambda a, k: (a, k | {"top_k": 14})),
    bad(
        "moe_route",
        "`top_k` is 33, expected 1 .. 32",
        lambda a, k: ((X[:, :64], X[0, :64]), k | {"top_k": 33, "num_experts": 64}),
    ),
    bad(
        "moe_route",
        "`num_experts` is 12, expected 13, the width of `logits`",
        lambda a, k: (a, k | {"num_experts": 12}),
    ),
    bad("moe_route", "`num_zero_experts` is -1, expected 0 .. 13", lambda a, k: (a, k | {"num_zero_experts": -1})),
    bad("moe_route", "`num_zero_experts` is 14, expected 0 .. 13", lambda a, k: (a, k | {"num_zero_experts": 14})),
    bad("moe_route", "`scale` is nan, expected a finite number", lambda a, k: (a, k | {"scale": math.nan})),
    bad("moe_route", "`num_valid` is 6, expected 0 .. 5, the rows of `logits`", lambda a, k: (a, k | {"num_valid": 6})),
    bad(
        "moe_route",
        "`num_valid` is of shape [2], expected [1]",
        lambda a, k: (a, k | {"num_valid": torch.zeros(2, dtype=torch.int32)}),
    ),
    bad(
        "moe_route", "`errors` is torch.float32, expected torch.int32", lambda a, k: (a, k | {"errors": torch.zeros(1)})
    ),
    bad(
        "moe_route",
        "`logits` is torch.float16, expected torch.float32 or torch.bfloat16",
        lambda a, k: ((a[0].half(), a[1]), k),
    ),
    bad(
        "moe_route",
        "`logits` is of shape [1, 1025], expected [T, E] with E in 1 .. 1024",
        lambda a, k: ((torch.zeros(1, 1025), torch.zeros(1025)), k | {"num_experts": 1025}),
    ),
    bad(
        "router_gemm",
        "`x` is torch.float16, expected torch.bfloat16 or torch.float32",
        lambda a, k: ((a[0].half(), a[1]), k),
    ),
    bad("router_gemm", "`w` is torch.bfloat16, expected torch.float32", lambda a, k: ((a[0], a[1].bfloat16()), k)),
    bad("router_gemm", "`w` is of shape [100, 192], expected [100, 200]", lambda a, k: ((a[0], a[1][:, :192]), k)),
    bad(
        "router_gemm",
        "`w` is of shape [1025, 200], expected [E, H] with E in 1 .. 1024",
        lambda a, k: ((a[0], torch.zeros(1025, 200)), k),
    ),
    bad(
        "router_gemm",
        "`w` is of strides (1, 100), expected a last stride of 1",
        lambda a, k: ((a[0], a[1].t().contiguous().t()), k),
    ),
    bad(
        "router_gemm",
        "`split` is of shape [2, 100, 200], expected [3, 100, 200]",
        lambda a, k: (a, {"split": k["split"][:2]}),
    ),
    bad(
        "router_gemm",
        "`split` is torch.float32, expected torch.bfloat16",
        lambda a, k: (a, {"split": k["split"].float()}),
    ),
    bad("moe_place", "`layer` is -1, expected 0 .. 2^31 - 1", lambda a, k: ((*a[:2], -1), k)),
    bad("moe_place", "`layer` is 2147483648, expected 0 .. 2^31 - 1", lambda a, k: ((*a[:2], 2**31), k)),
    bad("moe_place", "`placement` is of type Tensor, expected a Placement", lambda a, k: ((a[0], a[0], 0), k)),
    bad(
        "moe_place",
        "`slots` is of shape [6, 0], expected [N, M] with N in 1 .. 1024 and M in 1 .. 1024",
        lambda a, k: ((a[0], a[1]._replace(slots=a[1].slots[:, :0]), 0), k),
    ),
    bad(
        "moe_place",
        "`slots` is of shape [1025, 1], expected [N, M] with N in 1 .. 1024",
        lambda a, k: ((a[0], a[1]._replace(slots=a[0].new_zeros(1025, 1)), 0), k),
    ),
    bad(
        "moe_place",
        "`slots` is of strides (1, 6), expected contiguous",
        lambda a, k: ((a[0], a[1]._replace(slots=a[1].slots.t().contiguous().t()), 0), k),
    ),
    bad(
        "moe_place",
        "`replicas` is of shape [5], expected [6]",
        lambda a, k: ((a[0], a[1]._replace(replicas=a[1].replicas[:5]), 0), k),
    ),
    bad(
        "moe_place",
        "`replicas` is torch.int64, expected torch.int32",
        lambda a, k: ((a[0], a[1]._replace(replicas=a[1].replicas.long()), 0), k),
    ),
    bad("moe_place", "`ids` is torch.int64, expected torch.int32", lambda a, k: ((a[0].long(), *a[1:]), k)),
    bad(
        "moe_place",
        "`ids` is of shape [1, 33], expected [T, K] with K in 1 .. 32",
        lambda a, k: ((torch.zeros(1, 33, dtype=torch.int32), *a[1:]), k),
    ),
    bad("moe_plan", "`num_local` is 0, expected 1 .. 1024 experts", lambda a, k: ((a[0], 0), k)),
    bad("moe_plan", "`num_local` is 1025, expected 1 .. 1024 experts", lambda a, k: ((a[0], 1025), k)),
    bad(
        "moe_plan",
        "`ids` is of shape [1, 33], expected [T, K] with K in 1 .. 32",
        lambda a, k: ((torch.zeros(1, 33, dtype=torch.int32), 2), k),
    ),
    bad("moe_plan", "`weights` is torch.float64, expected torch.float32", lambda a, k: ((*a[:2], a[2].double()), k)),
    bad("moe_plan", "`weights` is of shape [6, 4], expected [7, 4]", lambda a, k: ((*a[:2], a[2][:6]), k)),
    bad("moe_plan", "`weights` is of shape [28], expected [7, 4]", lambda a, k: ((*a[:2], a[2].flatten()), k)),
    bad("moe_plan", "`weights` is on meta, expected on cpu", lambda a, k: ((*a[:2], a[2].to("meta")), k)),
    bad(
        "moe_plan",
        "`weights` is of strides (1, 7), expected contiguous",
        lambda a, k: ((*a[:2], a[2].t().contiguous().t()), k),
    ),
    bad("moe_plan", "`weights` is of type float, expected a torch.Tensor", lambda a, k: ((*a[:2], 0.5), k)),
    bad("moe_permute", "`plan` is of type Tensor, expected a Plan", lambda a, k: ((a[0], X), k)),
    bad("moe_permute", "`row_of` is of shape [7, 4], expected [6, 4]", lambda a, k: ((a[0][:6], a[1]), k)),
    bad("moe_permute", "`x` is torch.float8_e4m3fn, expected", lambda a, k: ((a[0].to(torch.float8_e4m3fn), a[1]), k)),
    bad(
        "moe_permute",
        "`src_of` is of shape [29], expected at most T * K = 28 rows",
        lambda a, k: ((a[0], a[1]._replace(src_of=torch.zeros(29, dtype=torch.int32))), k),
    ),
    bad("moe_permute_quant", "`plan` is of type Tensor, expected a Plan", lambda a, k: ((a[0], X), k)),
    bad("moe_permute_quant", "`row_of` is of shape [7, 4], expected [6, 4]", lambda a, k: ((a[0][:6], a[1]), k)),
    bad("moe_combine", "`routing` is of type Plan, expected a Routing", lambda a, k: ((*a[:2], a[1], a[3]), k)),
    bad("moe_combine", "`y` is of shape [28, 152], expected [28, 160]", lambda a, k: ((a[0][:, :152], *a[1:]), k)),
    bad("moe_combine", "`add` is of shape [6, 160], expected [7, 160]", lambda a, k: ((*a[:4], a[4][:6]), k)),
    bad(
        "fused_moe",
        "`routing.ids` is up to 5, expected -1 .. 3",
        lambda a, k: ((*a[:2], *(tuple(t[:4] for t in w) for w in a[2:])), k),
    ),
    bad("fused_moe", "`plan` is of type tuple, expected a Plan", lambda a, k: (a, {"plan": tuple(planned(a))})),
    bad("fused_moe", "`plan` is in part None", lambda a, k: (a, {"plan": planned(a)._replace(row_of=None)})),
    bad(
        "fused_moe",
        "`offsets` is of shape [5], expected [7]",
        lambda a, k: (a, {"plan": planned(a)._replace(offsets=torch.zeros(5, dtype=torch.int32))}),
    ),
    bad(
        "fused_moe",
        "`src_of` is of shape [27], expected [28]",
        lambda a, k: (a, {"plan": planned(a)._replace(src_of=planned(a).src_of[:27])}),
    ),
    bad(
        "fused_moe",
        "`w_down` is of shape [6, 152, 136], expected [6, 160, 136]",
        lambda a, k: ((*a[:3], (a[3][0][:, :152].contiguous(), a[3][1])), k),
    ),
    bad(
        "fused_moe",
        "`w_down scales` is None, expected the scales of an e4m3 weight",
        lambda a, k: ((*a[:3], a[3][0]), k),
    ),
    bad(
        "fused_moe",
        "`w_down scales` is a tensor, expected None for a weight that is not e4m3",
        lambda a, k: ((*a[:3], (a[3][0].float(), a[3][1])), k),
    ),
    bad(
        "fused_moe",
        "`w_gate_up scales` is of shape [6, 3, 2], expected [6, 4, 2]",
        lambda a, k: ((*a[:2], (a[2][0], a[2][1][:, :3]), a[3]), k),
    ),
    bad(
        "moe_plan",
        "`ids` is of shape [134217728, 32], expected at most 2^31 - 1 elements",
        lambda a, k: ((torch.empty(2**27, 32, dtype=torch.int32, device="meta"), 6), k),
    ),
    bad(
        "fused_moe",
        "`w_gate_up` is of shape [6, 96, 56], expected [G, 2I, H] with H = 160",
        lambda a, k: ((*a[:2], torch.zeros(6, 96, 56), torch.zeros(6, 56, 48)), k),
    ),
    bad(
        "fused_moe",
        "`w_gate_up` is of shape [6, 95, 160], expected [G, 2I, K] with I a positive multiple of 8",
        lambda a, k: ((*a[:2], torch.zeros(6, 95, 160), torch.zeros(6, 160, 47)), k),
    ),
    bad(
        "fused_moe",
        "`w_down` is torch.int32, expected torch.float8_e4m3fn, torch.bfloat16 or torch.float32",
        lambda a, k: ((*a[:3], torch.zeros(6, 160, 136, dtype=torch.int32)), k),
    ),
]


@pytest.mark.parametrize(("op", "change", "text", "error"), SCALARS)
def test_by_hand(op, change, text, error):
    args, kwargs = change(*small(op))
    with pytest.raises(error) as caught:
        public(op)(*args, **kwargs)
    assert str(caught.value).startswith(f"{op}: argument `")
    assert text in str(caught.value)
    assert "[LC-" not in str(caught.value)
    assert isinstance(caught.value, LongcatError)
    if "routing.ids" not in text:  # only the call reads what tensors hold
        supported, reason, fix = longcat_ops.supports(op, *args, **kwargs)
        assert not supported
        assert str(caught.value) == reason + (f"\n  fix: {fix}" if fix else "")


@pytest.mark.parametrize("op", OPS)
def test_a_malformed_call_is_a_type_error(op):
    with pytest.raises(TypeError, match="argument"):
        public(op)()
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such'"):
        made = small(op)
        public(op)(*made.args, **made.kwargs, no_such=1)


def test_residual_and_its_output_go_together():
    x, weight, eps, residual = small("rms_norm_quant_fp8").args
    op, outputs = torch.ops.longcat_ops.rms_norm_quant_fp8, longcat_ops.rms_norm_quant_fp8(x, weight, eps, residual)
    with pytest.raises(RuntimeError, match="`residual_out` is None, expected a tensor, as there is a residual"):
        op(x, weight, eps, residual, *outputs[:3], None)
    with pytest.raises(RuntimeError, match="`residual_out` is a tensor, expected None, as there is no residual"):
        op(x, weight, eps, None, *outputs)


def test_every_op_has_bad_arguments_by_hand():
    assert {param.values[0] for param in SCALARS} == set(OPS)


def test_supports_names_what_exists():
    with pytest.raises(LongcatUnsupportedError, match="op 'no_such_op' does not exist; these do: add_rows, "):
        longcat_ops.supports("no_such_op")
