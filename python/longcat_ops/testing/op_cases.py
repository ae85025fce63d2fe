"""One set of calls per op, on shapes that force edge cases, for the tests that go through all ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import longcat_ops
from longcat_ops import per_block_quant_fp8, per_token_group_quant_fp8
from longcat_ops.ops.registry import OPS

from . import bf16_cases, place_cases, sampling_cases, step_cases
from .calls import Call, call, m_indices_of, masked_m_of, offsets_of, seeded


def activation(*shape: int) -> tuple[Tensor, Tensor]:
    """FP8 pair of [..., K] with 1x128 scales."""
    q, s = per_token_group_quant_fp8(torch.randn(*shape).view(-1, shape[-1]))
    return q.view(shape), s.view(*shape[:-1], -(-shape[-1] // 128))


def stacked_weight(groups: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    pairs = [per_block_quant_fp8(torch.randn(n, k)) for _ in range(groups)]
    return torch.stack([q for q, _ in pairs]), torch.stack([s for _, s in pairs])


def gate_up(groups: int, width: int, k: int) -> tuple[Tensor, Tensor]:
    """The weight before interleaving: gate rows, then up rows, scale blocks restarting at the first up row."""
    halves = [stacked_weight(groups, width, k) for _ in range(2)]
    return tuple(torch.cat(parts, 1) for parts in zip(*halves, strict=True))


def route(tokens: int, experts: int = 6, zero: int = 3, top_k: int = 4) -> longcat_ops.Routing:
    e = experts + zero
    return longcat_ops.moe_route(
        torch.randn(tokens, e), torch.randn(e) * 0.05, top_k=top_k, num_experts=e, num_zero_experts=zero, scale=6.0
    )


def plan_of(routing: longcat_ops.Routing) -> longcat_ops.Plan:
    """The plan for 6 experts, as `fused_moe` makes it."""
    return longcat_ops.moe_plan(routing.ids, 6, routing.weights)


@seeded
def _quant(rows: int, width: int, **kwargs: Any) -> Call:
    return call(torch.randn(rows, width).bfloat16(), **kwargs)


@seeded
def _dequant(rows: int, width: int, dtype: torch.dtype, per_row: bool) -> Call:
    x = torch.randn(rows, width)
    return call(*(per_token_group_quant_fp8(x) if per_row else per_block_quant_fp8(x)), dtype)


@seeded
def _norm(rows: int, width: int, residual: bool = False) -> Call:
    x = torch.randn(rows, width).bfloat16()
    return call(x, torch.rand(width) + 0.5, 1e-5, *([torch.randn(rows, width).bfloat16()] if residual else []))


@seeded
def _gemm(m: int, n: int, k: int, **kwargs: Any) -> Call:
    return call(activation(m, k), per_block_quant_fp8(torch.randn(n, k)), **kwargs)


@seeded
def _offset(m: int, n: int, k: int, groups: int, **kwargs: Any) -> Call:
    out = torch.zeros(m, n, dtype=torch.bfloat16)
    return call(activation(m, k), stacked_weight(groups, n, k), out, offsets_of(groups, m), **kwargs)


@seeded
def _masked(m: int, n: int, k: int, groups: int) -> Call:
    out = torch.zeros(groups, m, n, dtype=torch.bfloat16)
    return call(activation(groups, m, k), stacked_weight(groups, n, k), out, masked_m_of(groups, m), 4)


@seeded
def _contiguous(m: int, n: int, k: int, groups: int) -> Call:
    out = torch.zeros(m, n, dtype=torch.bfloat16)
    return call(activation(m, k), stacked_weight(groups, n, k), out, m_indices_of(groups, m))


@seeded
def _interleave(groups: int, width: int, k: int) -> Call:
    return call(*gate_up(groups, width, k))


@seeded
def _swiglu(m: int, width: int, k: int, groups: int, **kwargs: Any) -> Call:
    weights = longcat_ops.interleave_gate_up(*gate_up(groups, width, k))
    return call(activation(m, k), weights, offsets_of(groups, m), **kwargs)


@seeded
def _route(tokens: int, experts: int, zero: int, top_k: int, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Call:
    logits = torch.randn(tokens, experts).to(dtype)
    return call(
        logits,
        torch.randn(experts) * 0.05,
        top_k=top_k,
        num_experts=experts,
        num_zero_experts=zero,
        scale=6.0,
        **kwargs,
    )


@seeded
def _plan(tokens: int, num_local: int, top_k: int = 4) -> Call:
    return call(route(tokens, top_k=top_k).ids, num_local)


@seeded
def _weighted_plan(tokens: int, num_local: int) -> Call:
    """A plan with zero experts as id 0, weight 0; weights of -0 and NaN among the others."""
    routing = route(tokens)
    weights = routing.weights.clone()
    weights[1:2, :2] = torch.tensor([-0.0, torch.nan])
    return call(routing.ids.clamp(min=0), num_local, weights)


@seeded
def _router(tokens: int, experts: int, width: int, dtype: torch.dtype = torch.bfloat16, split: bool = False) -> Call:
    w = 0.02 * torch.randn(experts, width)
    return call(torch.randn(tokens, width).to(dtype), w, split=longcat_ops.split_bf16x3(w) if split else None)


@seeded
def _permute(tokens: int, width: int, dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Call:
    return call(torch.randn(tokens, width).to(dtype), plan_of(route(tokens)), **kwargs)


@seeded
def _combine(tokens: int, width: int, add: bool) -> Call:
    routing = route(tokens)
    plan = plan_of(routing)
    x = torch.randn(tokens, width).bfloat16()
    y = torch.randn(len(plan.src_of), width).bfloat16()
    return call(y, plan, routing, x, *([torch.randn(tokens, width).bfloat16()] if add else []))


@seeded
def _fused(tokens: int, hidden: int, width: int, fp8: str, planned: bool = False) -> Call:
    """fp8: which of the weights are FP8, "gate_up", "down" or both."""
    x, routing = torch.randn(tokens, hidden).bfloat16(), route(tokens)
    pairs = gate_up(6, width, hidden), stacked_weight(6, hidden, width)
    dense = [torch.randn(q.shape).bfloat16() * 0.1 for q, _ in pairs]
    w_gate_up = longcat_ops.interleave_gate_up(*(pairs[0] if "gate_up" in fp8 else dense[:1]))
    w_down = pairs[1] if "down" in fp8 else dense[1]
    return call(x, routing, w_gate_up, w_down, **({"plan": plan_of(routing)} if planned else {}))


@seeded
def _rows(rows: int, width: int, dtype: torch.dtype, count: int) -> Call:
    return call(*(torch.randn(rows, width).to(dtype) for _ in range(count)))


def _places(position: list[int], table_width: int, pages: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """page_table of 3 sequences over pages in no order, sequence and position of a token of each in turn."""
    table = torch.randperm(pages)[: 3 * table_width].view(3, table_width).int()
    return table, torch.arange(len(position), dtype=torch.int32) % 3, torch.tensor(position, dtype=torch.int32)


def _rope(positions: int, width: int) -> Tensor:
    angle = torch.rand(positions, width // 2) * 6
    return torch.stack([angle.cos(), angle.sin()], -1).flatten(1)


@seeded
def _mla_write(position: list[int], latent: int, rope: int, dtype: torch.dtype) -> Call:
    table, sequence, position = _places(position, 3)
    kv, rows = (torch.randn(*shape, latent + rope).to(dtype) for shape in ((len(position),), (12, 64)))
    return call(kv, torch.rand(latent) + 0.5, 1e-6, _rope(192, rope), table, sequence, position, rows)


@seeded
def _mla_query(position: list[int], heads: int, nope: int, latent: int, rope: int, dtype: torch.dtype) -> Call:
    q, w_k = torch.randn(len(position), heads, nope + rope).to(dtype), torch.randn(heads, latent, nope).to(dtype)
    return call(q, w_k, _rope(70, rope), torch.tensor(position, dtype=torch.int32))


@seeded
def _mla_decode(position: list[int], heads: int, width: int, latent: int, dtype: torch.dtype, **kwargs: Any) -> Call:
    table, sequence, position = _places(position, 3)
    q, rows = torch.randn(len(position), heads, width).to(dtype), torch.randn(12, 64, width).to(dtype)
    return call(q, rows, table, sequence, position, latent=latent, scale=width**-0.5, **kwargs)


# Per op, cases by name. The first is the typical one; "empty" has no token.
CASES: dict[str, dict[str, Callable[[], Call]]] = {
    "per_token_group_quant_fp8": {
        "ragged": lambda: _quant(5, 160),
        "column_major": lambda: _quant(5, 576, column_major_scales=True),
        "empty": lambda: _quant(0, 128),
    },
    "per_block_quant_fp8": {"ragged": lambda: _quant(136, 160), "empty": lambda: _quant(0, 128)},
    "silu_and_mul_quant_fp8": {
        "ragged": lambda: _quant(5, 320),
        "column_major": lambda: _quant(3, 1152, column_major_scales=True),
        "empty": lambda: _quant(0, 128),
    },
    "dequant_fp8": {
        "per_row": lambda: _dequant(5, 160, torch.bfloat16, True),
        "per_block": lambda: _dequant(136, 160, torch.float32, False),
        "empty": lambda: _dequant(0, 128, torch.float16, True),
    },
    "rms_norm": {
        "odd": lambda: _norm(5, 97),
        "residual": lambda: _norm(5, 97, residual=True),
        "empty": lambda: _norm(0, 64),
    },
    "rms_norm_quant_fp8": {
        "residual": lambda: _norm(5, 160, residual=True),
        "plain": lambda: _norm(3, 576),
        "empty": lambda: _norm(0, 128, residual=True),
    },
    "fp8_gemm_nt": {
        "ragged": lambda: _gemm(5, 72, 160),
        "into": lambda: _gemm(3, 136, 256, out=torch.zeros(3, 136)),
        "split": lambda: _gemm(9, 72, 640, split_k=4),
        "empty": lambda: _gemm(0, 64, 128),
    },
    "m_grouped_fp8_gemm_nt_offset": {
        "ragged": lambda: _offset(11, 72, 160, 3),
        "hints": lambda: _offset(6, 64, 128, 2, max_m_hint=1, counts_ready=True),
        "split": lambda: _offset(11, 72, 384, 2, split_k=2),
        "empty": lambda: _offset(0, 64, 128, 3),
    },
    "m_grouped_fp8_gemm_nt_masked": {
        "ragged": lambda: _masked(5, 72, 160, 3),
        "empty": lambda: _masked(0, 64, 128, 2),
    },
    "m_grouped_fp8_gemm_nt_contiguous": {
        "ragged": lambda: _contiguous(11, 72, 160, 3),
        "empty": lambda: _contiguous(0, 64, 128, 2),
    },
    "interleave_gate_up": {
        "ragged": lambda: _interleave(2, 136, 160),
        "one": lambda: _interleave(1, 8, 8),
        **bf16_cases.INTERLEAVE,
    },
    "m_grouped_fp8_swiglu_gemm_nt_offset": {
        "ragged": lambda: _swiglu(11, 136, 160, 3),
        "hints": lambda: _swiglu(6, 64, 128, 2, max_m_hint=1, counts_ready=True),
        "plain": lambda: _swiglu(11, 136, 160, 3, quantise=False),
        "empty": lambda: _swiglu(0, 64, 128, 3),
    },
    **bf16_cases.CASES,
    "router_gemm": {
        "split": lambda: _router(5, 100, 200, split=True),
        "f32": lambda: _router(3, 13, 72, torch.float32, split=True),
        "alone": lambda: _router(9, 96, 64),
        "empty": lambda: _router(0, 24, 64, split=True),
    },
    "moe_route": {
        "odd": lambda: _route(5, 13, 4, 5),
        "padding": lambda: _route(5, 768, 256, 12, num_valid=torch.tensor([3], dtype=torch.int32)),
        "bf16": lambda: _route(3, 24, 8, 4, torch.bfloat16, errors=torch.ones(1, dtype=torch.int32)),
        "empty": lambda: _route(0, 12, 4, 5),
    },
    **place_cases.CASES,
    "moe_plan": {
        "weights": lambda: _weighted_plan(7, 6),
        "all": lambda: _plan(7, 6),
        "few_local": lambda: _plan(7, 2),
        "empty": lambda: _plan(0, 6),
    },
    "moe_permute": {
        "ragged": lambda: _permute(7, 160),
        "f32": lambda: _permute(3, 576, torch.float32),
        "f16": lambda: _permute(5, 8, torch.float16),
        "empty": lambda: _permute(0, 128),
    },
    "moe_permute_quant": {
        "ragged": lambda: _permute(7, 160),
        "column_major": lambda: _permute(3, 576, column_major_scales=True),
        "empty": lambda: _permute(0, 128),
    },
    "moe_combine": {
        "add": lambda: _combine(7, 160, add=True),
        "plain": lambda: _combine(3, 64, add=False),
        "empty": lambda: _combine(0, 64, add=False),
    },
    "fused_moe": {
        "fp8": lambda: _fused(7, 160, 136, fp8="gate_up, down"),
        "dense": lambda: _fused(3, 64, 48, fp8=""),
        "fp8_gate_up": lambda: _fused(5, 64, 72, fp8="gate_up"),
        "fp8_down": lambda: _fused(5, 72, 136, fp8="down"),
        "planned": lambda: _fused(5, 128, 64, fp8="gate_up, down", planned=True),
        "empty": lambda: _fused(0, 128, 64, fp8=""),
    },
    "embed_rows": {
        "f32": lambda: call(torch.arange(70.0).view(10, 7), torch.tensor([9, 0, -1, 3, 10])),
        "bf16": lambda: call(torch.arange(24.0).view(3, 8).bfloat16(), torch.tensor([2, 2])),
        "empty": lambda: call(torch.ones(3, 8), torch.zeros(0, dtype=torch.int64)),
    },
    "add_rows": {
        "odd": lambda: _rows(5, 97, torch.bfloat16, 2),
        "f32": lambda: _rows(3, 64, torch.float32, 2),
        "empty": lambda: _rows(0, 64, torch.float16, 2),
    },
    "silu_and_mul": {
        "odd": lambda: _rows(5, 2 * 97, torch.bfloat16, 1),
        "f32": lambda: _rows(3, 64, torch.float32, 1),
        "empty": lambda: _rows(0, 64, torch.float16, 1),
    },
    **step_cases.CASES,
    "mla_write": {
        "bf16": lambda: _mla_write([0, 64, 191, -1, 63], 24, 8, torch.bfloat16),
        "f32": lambda: _mla_write([130, 7], 9, 2, torch.float32),
        "empty": lambda: _mla_write([], 16, 8, torch.bfloat16),
    },
    "mla_query": {
        "bf16": lambda: _mla_query([0, 64, -1, 69], 3, 16, 24, 8, torch.bfloat16),
        "f32": lambda: _mla_query([5], 2, 8, 8, 2, torch.float32),
        "empty": lambda: _mla_query([], 4, 16, 32, 8, torch.bfloat16),
    },
    "mla_decode": {
        "bf16": lambda: _mla_decode([0, 64, 191, -1, 63], 5, 40, 32, torch.bfloat16),
        "f32": lambda: _mla_decode([130, 7], 1, 11, 9, torch.float32, split_rows=64),
        "empty": lambda: _mla_decode([], 4, 32, 24, torch.bfloat16),
    },
    **sampling_cases.CASES,
}
EVERY = [(op, name) for op, cases in CASES.items() for name in cases]
FIRST = [(op, next(iter(cases))) for op, cases in CASES.items()]


def public(op: str) -> Callable[..., Any]:
    return getattr(longcat_ops, op)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "longcat_ops":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def schema_call(op: str, name: str) -> tuple[torch._ops.OpOverload, tuple, Call]:
    """What the public function of this case hands to torch.ops: (overload, all arguments), outputs already written."""
    made = CASES[op][name]()
    with _Recorder() as recorder:
        public(op)(*made.args, **made.kwargs)
    (overload, arguments), *others = recorder.calls
    assert overload._schema.name == f"longcat_ops::{op}" and not others
    return overload, arguments, made


def is_output(spec: torch._C.Argument) -> bool:
    return spec.alias_info is not None and spec.alias_info.is_write


assert CASES.keys() == OPS.keys()
