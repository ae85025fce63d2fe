"""The list of ops. Everything that goes through all of them starts here: loading, `supports`, registration, doctor,
docs/ops.md, the contract test, the benches. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import LongcatShapeError, message
from .described import Described


@dataclass(frozen=True)
class Op:
    """One op. `parameters` derives its call from its function and its schema.

    module: the one in `longcat_ops.ops` with its function. chain: the ops that an op without a kernel of its own runs
    for FP8 weights; around a dense one their bf16 twins. keywords: those of DeepGEMM that it takes. adapt: does to a
    call's values, by name, what its function does to an argument before the schema sees it.
    """

    module: str
    chain: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    adapt: Callable[[dict[str, Any]], None] | None = None


def _describe_output(call: dict[str, Any]) -> None:
    """Adds the output of `dequant_fp8`: in the schema, only that shows the dtype asked for."""
    q, dtype = call["q"], call.pop("dtype")
    if not _has_rows(q) or q.ndim != 2:
        return
    require_dtype("dequant_fp8", dtype)
    rows, columns = q.shape
    call["out"] = Described(str(dtype), (rows, columns), (columns, 1), q.device.type, q.device.index or 0, 0)


def _describe_terms(call: dict[str, Any]) -> None:
    """Adds the terms that `router_gemm` makes of w on a GPU."""
    w = call["w"]
    if call["split"] is None and _has_rows(w) and w.ndim == 2 and w.device.type == "cuda":
        rows, columns = w.shape
        strides = rows * columns, columns, 1
        call["split"] = Described("torch.bfloat16", (3, rows, columns), strides, "cuda", w.device.index or 0, 0)


def require_dtype(op: str, dtype: Any) -> None:
    """Refuses None, which torch would replace by its own default dtype, not the op's."""
    if dtype is None:
        raise LongcatShapeError(message(op, "dtype", None, "torch.bfloat16, torch.float16 or torch.float32"))


def _leave_count_out(call: dict[str, Any]) -> None:
    """Checks a count of rows and leaves it out: `moe_route` makes a tensor of it."""
    if isinstance(call["num_valid"], int):
        if _has_rows(call["logits"]):
            check_num_valid(call["num_valid"], call["logits"])
        call["num_valid"] = None


def check_num_valid(num_valid: int, logits: Any) -> None:
    """Raises LongcatShapeError for a host-side count of rows that `logits` does not have."""
    rows = logits.shape[0]
    if not 0 <= num_valid <= rows:
        raise LongcatShapeError(message("moe_route", "num_valid", num_valid, f"0 .. {rows}, the rows of `logits`"))


def _check_copies(call: dict[str, Any]) -> None:
    """Checks a number that the schema does not see: there it is a size of an output."""
    check_copies(call["copies"])


def check_copies(copies: Any) -> None:
    """Raises LongcatShapeError for what is no number of copies."""
    if not isinstance(copies, int) or isinstance(copies, bool):
        raise LongcatShapeError(message("pack_rows", "copies", f"of type {type(copies).__name__}", "of type int"))
    if copies < 1:
        raise LongcatShapeError(message("pack_rows", "copies", copies, "at least 1"))


def _has_rows(value: Any) -> bool:
    """Whether a tensor stands there whose sizes can be read."""
    return hasattr(type(value), "untyped_storage") and not value.is_nested and value.ndim > 0


def _refuse_pair(call: dict[str, Any]) -> None:
    """Refuses a pair for the first of two tensors, where the call would bind without the second."""
    w = call["w"]
    if isinstance(w, tuple | list) and call["s"] is None:
        fix = "pass each tensor by itself, as interleave_gate_up(*pair) does"
        got = f"of type {type(w).__name__}"
        raise LongcatShapeError(message("interleave_gate_up", "w", got, "a torch.Tensor", fix=fix))


_FP8 = ("recipe", "recipe_a", "recipe_b", "compiled_dims", "disable_ue8m0_cast")  # keywords of DeepGEMM
_PSUM = ("use_psum_layout", "expected_m_for_psum_layout")

OPS: dict[str, Op] = {
    "per_token_group_quant_fp8": Op("quant"),
    "per_block_quant_fp8": Op("quant"),
    "silu_and_mul_quant_fp8": Op("quant"),
    "dequant_fp8": Op("quant", adapt=_describe_output),
    "rms_norm": Op("norm"),
    "rms_norm_quant_fp8": Op("norm"),
    "fp8_gemm_nt": Op("gemm", keywords=("c", *_FP8)),
    "m_grouped_fp8_gemm_nt_offset": Op("gemm"),
    "m_grouped_fp8_gemm_nt_masked": Op("gemm", keywords=_FP8),
    "m_grouped_fp8_gemm_nt_contiguous": Op("gemm", keywords=(*_FP8, *_PSUM)),
    "interleave_gate_up": Op("gemm", adapt=_refuse_pair),
    "m_grouped_fp8_swiglu_gemm_nt_offset": Op("gemm"),
    "bf16_gemm_nt": Op("bf16_gemm", keywords=("c", "compiled_dims")),
    "m_grouped_bf16_gemm_nt_offset": Op("bf16_gemm"),
    "m_grouped_bf16_gemm_nt_masked": Op("bf16_gemm", keywords=("compiled_dims",)),
    "m_grouped_bf16_gemm_nt_contiguous": Op("bf16_gemm", keywords=("compiled_dims", *_PSUM)),
    "m_grouped_bf16_swiglu_gemm_nt_offset": Op("bf16_gemm"),
    "router_gemm": Op("router", adapt=_describe_terms),
    "moe_route": Op("moe", adapt=_leave_count_out),
    "moe_place": Op("moe"),
    "moe_plan": Op("moe"),
    "moe_permute": Op("moe"),
    "moe_permute_quant": Op("moe"),
    "moe_combine": Op("moe"),
    "fused_moe": Op(
        "moe",
        chain=(
            "moe_plan",
            "moe_permute_quant",
            "m_grouped_fp8_swiglu_gemm_nt_offset",
            "m_grouped_fp8_gemm_nt_offset",
            "moe_combine",
        ),
    ),
    "embed_rows": Op("rows"),
    "add_rows": Op("rows"),
    "silu_and_mul": Op("rows"),
    "pack_rows": Op("step", adapt=_check_copies),
    "advance_lengths": Op("step"),
    "mla_write": Op("mla"),
    "mla_query": Op("mla"),
    "mla_decode": Op("mla"),
    "verify_greedy": Op("sampling"),
    "verify_sampled": Op("sampling"),
    "sample_tokens": Op("sampling"),
    "filter_drafts": Op("sampling"),
}
