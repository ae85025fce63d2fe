"""The list of ops. Everything that goes through all of them starts here: loading, `supports`, registration, doctor,
docs/ops.md, the contract test, the benches. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _library
from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from .described import Described

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Fp8Pair, Plan, Routing


@dataclass(frozen=True)
class Op:
    """One op: the module of `longcat_ops.ops` with its function, and its call as the schema takes it.

    arguments: same signature as the function; returns what torch.ops.longcat_ops.<name> gets, outputs left out.
    chain: the ops that it consists of where its weights are FP8; it has no kernel of its own.
    """

    module: str
    arguments: Callable[..., tuple[Any, ...]]
    chain: tuple[str, ...] = ()


def pair(op: str, name: str, value: Any) -> Fp8Pair:
    """`value` if it is a pair; that its parts are tensors is left to the check of the call."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = "None" if value is None else f"a {type(value).__name__}"
        got += f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise LongcatShapeError(message(op, name, got, "a pair (e4m3 values, float32 scales)"))
    return value[0], value[1]


def _has_rows(value: Any) -> bool:
    """Whether a tensor stands there whose sizes can be read."""
    return hasattr(type(value), "untyped_storage") and not value.is_nested and value.ndim > 0


def output(op: str, out: Any) -> Tensor:
    """`out` where the caller must bring it."""
    if out is None:
        raise LongcatShapeError(message(op, "out", "None", "a torch.Tensor"))
    return out


def fields(op: str, name: str, value: Any, kind: str, *names: str) -> tuple[Any, ...]:
    """The named fields of a Routing or a Plan."""
    if not all(hasattr(value, field) for field in names):
        raise LongcatShapeError(message(op, name, f"of type {type(value).__name__}", f"a {kind}"))
    return tuple(getattr(value, field) for field in names)


def require_dtype(op: str, dtype: Any) -> None:
    """torch takes None for its default, which is not the op's."""
    if dtype is None:
        raise LongcatShapeError(message(op, "dtype", None, "torch.bfloat16, torch.float16 or torch.float32"))


def check_num_valid(num_valid: int, logits: Tensor) -> None:
    """Raises LongcatShapeError for a host-side count of rows that `logits` does not have."""
    rows = logits.shape[0]
    if not 0 <= num_valid <= rows:
        raise LongcatShapeError(message("moe_route", "num_valid", num_valid, f"0 .. {rows}, the rows of `logits`"))


def weight(op: str, name: str, value: Any) -> tuple[Any, Any]:
    """(values, scales) of an FP8 weight, (tensor, None) of a dense one."""
    return pair(op, name, value) if isinstance(value, tuple | list) else (value, None)


# What DeepGEMM's own keywords must be for its SM90 kernels with 1x128 by 128x128 scales.
_DEEPGEMM: dict[str, tuple[Any, ...]] = {
    "c": (None,),
    "recipe": (None, (1, 128, 128)),
    "recipe_a": (None, (1, 128)),
    "recipe_b": (None, (128, 128)),
    "compiled_dims": ("nk", "mn", "mk", "mnk", "n", "m", "k", ""),  # a hint to its JIT
    "disable_ue8m0_cast": (False, True),  # scales are float32 here: there is nothing to cast
    "use_psum_layout": (False,),
    "expected_m_for_psum_layout": (None,),
}


def deepgemm_keywords(op: str, keywords: dict[str, Any], allowed: tuple[str, ...] = ()) -> None:
    """Accepts DeepGEMM's keywords at their SM90 values. Raises TypeError for other names, as Python does, and
    LongcatUnsupportedError for other values."""
    for name, value in keywords.items():
        if name not in ("recipe", "recipe_a", "recipe_b", "compiled_dims", "disable_ue8m0_cast", *allowed):
            raise TypeError(f"{op}() got an unexpected keyword argument {name!r}")
        value = tuple(value) if isinstance(value, list) else value
        if not any(value is legal or (type(value) is type(legal) and value == legal) for legal in _DEEPGEMM[name]):
            expected = " or ".join(repr(legal) for legal in _DEEPGEMM[name])
            fix = "m_grouped_fp8_gemm_nt_offset takes prefix sums" if "psum" in name else None
            got = "a Tensor" if hasattr(value, "dtype") else repr(value)
            raise LongcatUnsupportedError(message(op, name, got, f"{expected} (on SM90)", fix=fix))


def _per_token_group_quant_fp8(x: Tensor, group_size: int = 128, *, column_major_scales: bool = False) -> tuple:
    return x, group_size


def _per_block_quant_fp8(w: Tensor) -> tuple:
    return (w,)


def _silu_and_mul_quant_fp8(gate_up: Tensor, *, column_major_scales: bool = False) -> tuple:
    return (gate_up,)


def _dequant_fp8(q: Tensor, s: Tensor, dtype: Any = "bfloat16", *, group_size: int = 128) -> tuple:
    if not _has_rows(q) or q.ndim != 2:
        return q, s, group_size
    require_dtype("dequant_fp8", dtype)
    rows, columns = q.shape
    # This output stands for the dtype.
    return q, s, group_size, Described(str(dtype), (rows, columns), (columns, 1), q.device.type, q.device.index or 0, 0)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple:
    return x, weight, eps


def _rms_norm_quant_fp8(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *,
                        column_major_scales: bool = False) -> tuple:  # fmt: skip
    return x, weight, eps, residual


def _fp8_gemm_nt(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor | None = None, *, split_k: int = 1,
                 **deepgemm: Any) -> tuple:  # fmt: skip
    op = "fp8_gemm_nt"
    deepgemm_keywords(op, deepgemm, ("c",))
    return *pair(op, "lhs", lhs), *pair(op, "rhs", rhs), split_k, out


def _offset(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, offsets: Tensor, *, max_m_hint: int | None = None,
            counts_ready: bool = False, split_k: int = 1) -> tuple:  # fmt: skip
    op = "m_grouped_fp8_gemm_nt_offset"
    hints = max_m_hint, counts_ready, split_k
    return *pair(op, "lhs", lhs), *pair(op, "rhs", rhs), offsets, *hints, output(op, out)


def _masked(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, masked_m: Tensor, expected_m: int, **deepgemm: Any) -> tuple:
    op = "m_grouped_fp8_gemm_nt_masked"
    deepgemm_keywords(op, deepgemm)
    return *pair(op, "lhs", lhs), *pair(op, "rhs", rhs), masked_m, expected_m, output(op, out)


def _contiguous(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, m_indices: Tensor, **deepgemm: Any) -> tuple:
    op = "m_grouped_fp8_gemm_nt_contiguous"
    deepgemm_keywords(op, deepgemm, ("use_psum_layout", "expected_m_for_psum_layout"))
    return *pair(op, "lhs", lhs), *pair(op, "rhs", rhs), m_indices, output(op, out)


def _interleave_gate_up(w: Tensor, s: Tensor) -> tuple:
    return w, s


def _swiglu(lhs: Fp8Pair, gate_up: Fp8Pair, offsets: Tensor, *, max_m_hint: int | None = None,
            counts_ready: bool = False) -> tuple:  # fmt: skip
    op = "m_grouped_fp8_swiglu_gemm_nt_offset"
    return *pair(op, "lhs", lhs), *pair(op, "gate_up", gate_up), offsets, max_m_hint, counts_ready


def _moe_route(logits: Tensor, bias: Tensor, *, top_k: int, num_experts: int, num_zero_experts: int, scale: float,
               num_valid: Tensor | int | None = None, errors: Tensor | None = None) -> tuple:  # fmt: skip
    valid = num_valid
    if isinstance(num_valid, int):
        if _has_rows(logits):
            check_num_valid(num_valid, logits)
        valid = None
    outputs = (None,) * 5 + (errors,) if errors is not None else ()
    return logits, bias, valid, top_k, num_experts, num_zero_experts, scale, *outputs


def _moe_plan(ids: Tensor, num_local: int, weights: Tensor | None = None) -> tuple:
    return ids, num_local, weights


def _moe_permute_quant(x: Tensor, plan: Plan, *, column_major_scales: bool = False) -> tuple:
    return x, *fields("moe_permute_quant", "plan", plan, "Plan", "row_of", "src_of")


def _moe_combine(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None = None) -> tuple:
    op = "moe_combine"
    (row_of,) = fields(op, "plan", plan, "Plan", "row_of")
    return y, row_of, *fields(op, "routing", routing, "Routing", "weights", "zero_weight"), x, add


def _fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *,
               plan: Plan | None = None) -> tuple:  # fmt: skip
    op = "fused_moe"
    chosen = fields(op, "routing", routing, "Routing", "ids", "weights", "zero_weight")
    tables = (None,) * 3 if plan is None else fields(op, "plan", plan, "Plan", "offsets", "row_of", "src_of")
    return x, *chosen, *weight(op, "w_gate_up", w_gate_up), *weight(op, "w_down", w_down), *tables


OPS: dict[str, Op] = {
    "per_token_group_quant_fp8": Op("quant", _per_token_group_quant_fp8),
    "per_block_quant_fp8": Op("quant", _per_block_quant_fp8),
    "silu_and_mul_quant_fp8": Op("quant", _silu_and_mul_quant_fp8),
    "dequant_fp8": Op("quant", _dequant_fp8),
    "rms_norm": Op("norm", _rms_norm),
    "rms_norm_quant_fp8": Op("norm", _rms_norm_quant_fp8),
    "fp8_gemm_nt": Op("gemm", _fp8_gemm_nt),
    "m_grouped_fp8_gemm_nt_offset": Op("gemm", _offset),
    "m_grouped_fp8_gemm_nt_masked": Op("gemm", _masked),
    "m_grouped_fp8_gemm_nt_contiguous": Op("gemm", _contiguous),
    "interleave_gate_up": Op("gemm", _interleave_gate_up),
    "m_grouped_fp8_swiglu_gemm_nt_offset": Op("gemm", _swiglu),
    "moe_route": Op("moe", _moe_route),
    "moe_plan": Op("moe", _moe_plan),
    "moe_permute_quant": Op("moe", _moe_permute_quant),
    "moe_combine": Op("moe", _moe_combine),
    "fused_moe": Op(
        "moe",
        _fused_moe,
        chain=(
            "moe_plan",
            "moe_permute_quant",
            "m_grouped_fp8_swiglu_gemm_nt_offset",
            "m_grouped_fp8_gemm_nt_offset",
            "moe_combine",
        ),
    ),
}


def supports(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, str, str]:
    """See `longcat_ops.supports`."""
    if op not in OPS:
        raise LongcatUnsupportedError(f"supports: op {op!r} does not exist; these do: {', '.join(sorted(OPS))}.")
    _library.load()
    from . import checking
    from .arguments import schema_arguments

    try:
        arguments = schema_arguments(op, OPS[op].arguments, args, kwargs)
    except (LongcatShapeError, LongcatUnsupportedError) as error:
        reason, _, fix = str(error).partition("\n  fix: ")
        return False, reason, fix
    code, reason, fix = checking.find_problem(op, *arguments)
    return not code, reason, fix
