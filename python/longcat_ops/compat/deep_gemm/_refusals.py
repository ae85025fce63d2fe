"""DeepGEMM's names without an op here. Each raises LongcatUnsupportedError with the reason and what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ...errors import LongcatUnsupportedError

Refusal = tuple[Sequence[str], str, str]  # names; why; what to use instead

_BF16 = "the adapter covers the FP8 products alone so far"
_BF16_K_MAJOR = "the BF16 products of longcat_ops read both operands along K"
_BF16_GRADIENT = "longcat_ops has no BF16 product grouped along K"
_K_MAJOR = "the FP8 products of SM90 read both operands along K"
_GRADIENT = "products grouped along K make weight gradients, and no op of longcat_ops has a gradient formula"
_INDEXER = "LongCat-Flash attends to all rows, so longcat_ops has no indexer of sparse attention"
_UE8M0 = "the products here take float32 scales, packed UE8M0 ones are for SM100"
_FP4 = "SM90 has no FP4, and longcat_ops no product that unpacks it"
_COLUMNS = "longcat_ops has scales along K, and no product that reads others"

PRODUCTS: Sequence[Refusal] = (
    (("bf16_gemm_nt",), _BF16, "longcat_ops.bf16_gemm_nt, with the same a, b and d"),
    (
        ("bf16_gemm_nn", "bf16_gemm_tn", "bf16_gemm_tt"),
        _BF16_K_MAJOR,
        "torch.mm; or longcat_ops.bf16_gemm_nt, with a transposed operand stored K-major",
    ),
    (
        ("m_grouped_bf16_gemm_nt_contiguous",),
        _BF16,
        "longcat_ops.m_grouped_bf16_gemm_nt_contiguous, with the same a, b, d and grouped_layout",
    ),
    (
        ("m_grouped_bf16_gemm_nt_masked", "bf16_m_grouped_gemm_nt_masked"),
        _BF16,
        "longcat_ops.m_grouped_bf16_gemm_nt_masked, with the same a, b, d, masked_m and expected_m",
    ),
    (
        ("m_grouped_bf16_gemm_nn_contiguous",),
        _BF16_K_MAJOR,
        "longcat_ops.m_grouped_bf16_gemm_nt_contiguous, with b stored K-major",
    ),
    (("k_grouped_bf16_gemm_tn_contiguous",), _BF16_GRADIENT, "torch.nn.functional.grouped_mm"),
    (
        ("cublaslt_gemm_nt", "cublaslt_gemm_nn", "cublaslt_gemm_tn", "cublaslt_gemm_tt"),
        "longcat_ops does not wrap cuBLASLt",
        "torch.mm, which calls it",
    ),
    (
        (
            "fp8_fp4_gemm_nn",
            "fp8_fp4_gemm_tn",
            "fp8_fp4_gemm_tt",
            "fp8_gemm_nn",
            "fp8_gemm_tn",
            "fp8_gemm_tt",
        ),
        _K_MAJOR,
        "fp8_gemm_nt, with a transposed operand stored K-major and its scales transposed",
    ),
    (
        ("m_grouped_fp8_fp4_gemm_nn_contiguous", "m_grouped_fp8_gemm_nn_contiguous"),
        _K_MAJOR,
        "m_grouped_fp8_gemm_nt_contiguous, with b stored K-major and its scales transposed",
    ),
    (
        ("k_grouped_fp8_gemm_nt_contiguous", "k_grouped_fp8_gemm_tn_contiguous"),
        _GRADIENT,
        "longcat_ops.dequant_fp8 and torch.nn.functional.grouped_mm",
    ),
    (
        ("fp8_gemm_nt_skip_head_mid",),
        "no product here leaves columns of its output out",
        "fp8_gemm_nt into a tensor of its own, then copy the two parts of each head",
    ),
    (("einsum", "fp8_einsum"), "longcat_ops has no einsum", "torch.einsum, with longcat_ops.dequant_fp8 for FP8"),
    (
        (
            "fp8_fp4_mqa_logits",
            "get_paged_mqa_logits_metadata",
            "fp8_fp4_paged_mqa_logits",
            "fp8_mqa_logits",
            "fp8_paged_mqa_logits",
        ),
        _INDEXER,
        "DeepGEMM itself; both packages can be imported",
    ),
    (("tf32_hc_prenorm_gemm",), "LongCat-Flash has no hyper-connections", "torch.mm and torch.sum"),
)

MEGA: Sequence[Refusal] = (
    (
        (
            "SymmBuffer",
            "get_symm_buffer_for_mega_moe",
            "transform_weights_for_mega_moe",
            "transform_weights_for_mega_moe_sm90",
            "fp8_fp4_mega_moe",
            "fp8_mega_moe",
            "bf16_mega_moe",
        ),
        "longcat_ops has no MoE layer in one launch across ranks",
        "longcat_ops.fused_moe, the chain of one rank, with weights of longcat_ops.interleave_gate_up",
    ),
)

LAYOUTS: Sequence[Refusal] = (
    (
        (
            "get_mn_major_tma_aligned_packed_ue8m0_tensor",
            "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor",
        ),
        _UE8M0,
        "get_mn_major_tma_aligned_tensor",
    ),
)

CASTS: Sequence[Refusal] = (
    (
        ("per_channel_cast_to_fp8", "per_custom_dims_cast_to_fp8"),
        _COLUMNS,
        "per_token_cast_to_fp8(x.T.contiguous(), ..)",
    ),
    (("ceil_to_ue8m0", "pack_ue8m0_to_int", "unpack_ue8m0_from_int"), _UE8M0, "the float32 scales as they are"),
    (
        ("per_token_cast_to_fp4", "transpose_packed_fp4", "cast_back_from_fp4"),
        _FP4,
        "per_token_cast_to_fp8 and per_block_cast_to_fp8",
    ),
)

DIST: Sequence[Refusal] = (
    (("init_dist",), "longcat_ops starts no process group", "torch.distributed.init_process_group"),
    (
        ("uneven_all_gather",),
        "a collective of longcat_ops belongs to a communicator, not to a process group",
        "longcat_ops.comm.Communicator.all_gather, with the rows of each rank",
    ),
    (("dist_print",), "longcat_ops prints nothing", "print on one rank, then torch.distributed.barrier"),
)

TESTING: Sequence[Refusal] = (
    (
        ("bench", "bench_kineto", "empty_suppress", "suppress_stdout_stderr"),
        "longcat_ops exports no timer",
        "torch.utils.benchmark or torch.profiler",
    ),
    (("test_filter", "ignore_env"), "it serves DeepGEMM's own tests alone", "pytest's skipif and monkeypatch"),
)

LEGACY: Sequence[Refusal] = (
    (
        (
            "m_grouped_bf16_gemm_nt_contiguous_tl",
            "m_grouped_bf16_gemm_nn_contiguous_tl",
            "a_fused_m_grouped_bf16_gemm_nt_contiguous_tl",
            "a_fused_m_grouped_bf16_gemm_nn_contiguous_tl",
            "a_fused_k_grouped_bf16_gemm_tn_contiguous_tl",
            "b_fused_k_grouped_bf16_gemm_tn_contiguous_tl",
        ),
        "DeepGEMM's Triton kernels are for A100",
        "longcat_ops.m_grouped_bf16_gemm_nt_contiguous, or torch.nn.functional.grouped_mm",
    ),
)


def refusals(table: Sequence[Refusal]) -> dict[str, Callable[..., NoReturn]]:
    """By name, what raises LongcatUnsupportedError when it is called, with any arguments: a class where DeepGEMM has
    one, else a function."""
    return {name: _refusal(name, reason, instead) for names, reason, instead in table for name in names}


def _refusal(name: str, reason: str, instead: str) -> Callable[..., NoReturn]:
    text = f"{name}: {reason}.\n  fix: {instead}"

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise LongcatUnsupportedError(text)

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Refused: {reason}. Instead: {instead}."
    return type(name, (), {"__new__": refuse, "__doc__": refuse.__doc__}) if name[0].isupper() else refuse
