"""DeepGEMM's public interface on SM90 at version 2.6.1 (54e2261), plus the two names that pull request 383 has since
added to its main branch for the one-launch SM90 MoE layer. Left out: environment, Triton kernels' `_impl`, and the
modules that `import *` pulls in (torch, typing).
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


PUBLIC = _words("""
set_num_sms get_num_sms set_tc_util get_tc_util set_ignore_compile_dims set_block_size_multiple_of set_pdl get_pdl
cublaslt_gemm_nt cublaslt_gemm_nn cublaslt_gemm_tn cublaslt_gemm_tt
fp8_fp4_gemm_nt fp8_fp4_gemm_nn fp8_fp4_gemm_tn fp8_fp4_gemm_tt
m_grouped_fp8_fp4_gemm_nt_contiguous m_grouped_fp8_fp4_gemm_nn_contiguous m_grouped_fp8_fp4_gemm_nt_masked
fp8_gemm_nt fp8_gemm_nn fp8_gemm_tn fp8_gemm_tt fp8_gemm_nt_skip_head_mid
m_grouped_fp8_gemm_nt_contiguous m_grouped_fp8_gemm_nn_contiguous m_grouped_fp8_gemm_nt_masked
k_grouped_fp8_gemm_nt_contiguous k_grouped_fp8_gemm_tn_contiguous
bf16_gemm_nt bf16_gemm_nn bf16_gemm_tn bf16_gemm_tt
m_grouped_bf16_gemm_nt_contiguous m_grouped_bf16_gemm_nn_contiguous m_grouped_bf16_gemm_nt_masked
k_grouped_bf16_gemm_tn_contiguous fp8_m_grouped_gemm_nt_masked bf16_m_grouped_gemm_nt_masked
einsum fp8_einsum tf32_hc_prenorm_gemm transform_sf_into_required_layout
fp8_fp4_mqa_logits get_paged_mqa_logits_metadata fp8_fp4_paged_mqa_logits fp8_mqa_logits fp8_paged_mqa_logits
""")
MODULES = ["legacy", "mega", "testing", "utils"]
MEGA = _words("""
SymmBuffer get_symm_buffer_for_mega_moe transform_weights_for_mega_moe fp8_fp4_mega_moe bf16_mega_moe
fp8_mega_moe transform_weights_for_mega_moe_sm90
""")
LAYOUT = _words("""
get_tma_aligned_size get_mn_major_tma_aligned_tensor get_mn_major_tma_aligned_packed_ue8m0_tensor
get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor set_mk_alignment_for_contiguous_layout
get_mk_alignment_for_contiguous_layout get_theoretical_mk_alignment_for_contiguous_layout
get_m_alignment_for_contiguous_layout get_k_alignment_for_contiguous_layout
""")
MATH = _words("""
ceil_div align ceil_to_ue8m0 pack_ue8m0_to_int unpack_ue8m0_from_int per_token_cast_to_fp8 per_channel_cast_to_fp8
per_block_cast_to_fp8 per_custom_dims_cast_to_fp8 per_token_cast_to_fp4 transpose_packed_fp4 cast_back_from_fp4
""")
DIST = ["init_dist", "uneven_all_gather", "dist_print"]
TESTING = _words("""
bench bench_kineto empty_suppress suppress_stdout_stderr calc_diff count_bytes assert_bitwise_equal get_arch_major
test_filter ignore_env
""")
LEGACY = _words("""
m_grouped_bf16_gemm_nt_contiguous_tl m_grouped_bf16_gemm_nn_contiguous_tl a_fused_m_grouped_bf16_gemm_nt_contiguous_tl
a_fused_m_grouped_bf16_gemm_nn_contiguous_tl a_fused_k_grouped_bf16_gemm_tn_contiguous_tl
b_fused_k_grouped_bf16_gemm_tn_contiguous_tl
""")

# Names by module, as `from .. import *` and the functions' own modules export them; "" is the package.
BY_MODULE = {
    "": [*PUBLIC, *MODULES, *MEGA, *LAYOUT, *MATH, *DIST[:2]],
    "mega": MEGA,
    "legacy": LEGACY,
    "testing": TESTING,
    "utils": [*LAYOUT, *MATH, *DIST[:2]],
    "utils.layout": LAYOUT,
    "utils.math": MATH,
    "utils.dist": DIST,
}

_RECIPES = "recipe=None, recipe_a=None, recipe_b=None, compiled_dims='nk', disable_ue8m0_cast=False"
_CONTIGUOUS = "use_psum_layout=False, ensure_zero_padding=True, expected_m_for_psum_layout=None"
# Parameters of the functions that compute or store something here. DeepGEMM's setters and sizes name none.
SIGNATURES = {
    "fp8_gemm_nt": f"a, b, d, c=None, {_RECIPES}",
    "fp8_fp4_gemm_nt": f"a, b, d, c=None, {_RECIPES}",
    "m_grouped_fp8_gemm_nt_contiguous": f"a, b, d, grouped_layout, {_RECIPES}, {_CONTIGUOUS}",
    "m_grouped_fp8_fp4_gemm_nt_contiguous": f"a, b, d, grouped_layout, {_RECIPES}, {_CONTIGUOUS}",
    "m_grouped_fp8_gemm_nt_masked": f"a, b, d, masked_m, expected_m, {_RECIPES}",
    "m_grouped_fp8_fp4_gemm_nt_masked": f"a, b, d, masked_m, expected_m, {_RECIPES}",
    "fp8_m_grouped_gemm_nt_masked": f"a, b, d, masked_m, expected_m, {_RECIPES}",
    "transform_sf_into_required_layout": (
        "sf, mn, k, recipe, num_groups=None, is_sfa=None, disable_ue8m0_cast=False, psum_layout=None"
    ),
    "get_theoretical_mk_alignment_for_contiguous_layout": "expected_m=None",
    "per_token_cast_to_fp8": "x, use_ue8m0, gran_k=128, use_packed_ue8m0=False",
    "per_block_cast_to_fp8": "x, use_ue8m0, gran_k=128",
    "ceil_div": "x, y",
    "align": "x, y",
}
WITHOUT_NAMES = _words("""
set_num_sms get_num_sms set_tc_util get_tc_util set_pdl get_pdl set_ignore_compile_dims set_block_size_multiple_of
get_tma_aligned_size get_mn_major_tma_aligned_tensor set_mk_alignment_for_contiguous_layout
get_mk_alignment_for_contiguous_layout get_m_alignment_for_contiguous_layout get_k_alignment_for_contiguous_layout
""")
TESTING_SIGNATURES = {
    "calc_diff": "x, y",
    "count_bytes": "*tensors",
    "assert_bitwise_equal": "x, y, label=''",
    "get_arch_major": "",
}
