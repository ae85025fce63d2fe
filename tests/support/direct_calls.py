"""Both ways of a call of an op: directly to its CPU kernel, and through torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import longcat_ops
from longcat_ops.ops import direct
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import EVERY, is_output, public, schema_call
from longcat_ops.testing.op_results import bits, settled
from longcat_ops.testing.place_cases import placement
from support import carried
from support.op_places import with_blank_outputs

only_on_kernels = pytest.mark.skipif(
    longcat_ops._environment.backend() != "cpu" or carried.active, reason="CPU tensors run other kernels"
)
CALLS = [(op, name) for op, name in EVERY if not OPS[op].chain]


def combine_call(rows: int) -> tuple[Any, ...]:
    route = {"top_k": 3, "num_experts": 8, "num_zero_experts": 0, "scale": 1.0}
    routing = longcat_ops.moe_route(torch.randn(rows, 8), torch.zeros(8), **route)
    plan = longcat_ops.moe_plan(routing.ids, 8, routing.weights)
    y = torch.randn(plan.src_of.shape[0], 256).bfloat16()
    return y, plan, routing, torch.randn(rows, 256)


# Functions that make their output without torch, with arguments of `rows` rows.
MAKERS = {
    "add_rows": lambda rows: (torch.randn(rows, 256), torch.randn(rows, 256)),
    "bf16_gemm_nt": lambda rows: (torch.randn(rows, 256).bfloat16(), torch.randn(24, 256).bfloat16()),
    "fp8_gemm_nt": lambda rows: (
        longcat_ops.per_token_group_quant_fp8(torch.randn(rows, 256)),
        longcat_ops.per_block_quant_fp8(torch.randn(24, 256)),
    ),
    "embed_rows": lambda rows: (torch.randn(24, 256).half(), torch.arange(rows)),
    "moe_combine": combine_call,
    "moe_place": lambda rows: (torch.randint(-1, 6, (rows, 32), dtype=torch.int32), placement(), 5),
    "rms_norm": lambda rows: (torch.randn(rows, 256).half(), torch.rand(256), 1e-5),
    "router_gemm": lambda rows: (torch.randn(rows, 256).bfloat16(), torch.randn(24, 256)),
}


def blank_call(op: str, name: str) -> tuple[Any, tuple[Any, ...]]:
    """(overload, arguments of its schema), outputs zeroed."""
    overload, arguments, _ = schema_call(op, name)
    return overload, with_blank_outputs(overload, arguments)


def outputs(overload: Any, arguments: tuple[Any, ...]) -> list[bytes]:
    pairs = zip(overload._schema.arguments, arguments, strict=True)
    return bits([value for spec, value in pairs if is_output(spec)])


def outcome(op: str, made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The bits of the result of a call that is like `made`, or its error."""
    try:
        return bits(settled(op, made, public(op)(*args, **kwargs)))
    except Exception as error:
        return type(error), str(error)


def by_torch(op: str, *args: Any, **kwargs: Any) -> Any:
    with direct.switched_off():
        return public(op)(*args, **kwargs)


def facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All that can be asked of an output but its values."""
    storage = tensor.untyped_storage()
    return (
        type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout, tensor.is_inference(),
        tensor.requires_grad, tensor.is_leaf, tensor.grad_fn, tensor._base is None, tensor.is_contiguous(),
        tensor.storage_offset(), storage.nbytes(), storage.resizable(), tensor.is_pinned(),
    )  # fmt: skip
