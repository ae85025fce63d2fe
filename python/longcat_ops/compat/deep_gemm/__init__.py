"""DeepGEMM's public names over the FP8 products of longcat_ops: `import longcat_ops.compat.deep_gemm as deep_gemm`.

The names, signatures and return values are those of DeepGEMM 2.6.1 on SM90. What has no op here exists as a name that
raises LongcatUnsupportedError when it is called. docs/integrations.md says what else differs.
`python -m longcat_ops.compat.deep_gemm` runs the calls that DeepGEMM's own tests make.
"""

from __future__ import annotations

from ... import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from . import legacy, mega, testing, utils
from ._products import (
    fp8_fp4_gemm_nt,
    fp8_gemm_nt,
    fp8_m_grouped_gemm_nt_masked,
    m_grouped_fp8_fp4_gemm_nt_contiguous,
    m_grouped_fp8_fp4_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
)
from ._refusals import PRODUCTS, refusals
from ._scales import transform_sf_into_required_layout
from ._settings import (
    get_num_sms,
    get_pdl,
    get_tc_util,
    set_block_size_multiple_of,
    set_ignore_compile_dims,
    set_num_sms,
    set_pdl,
    set_tc_util,
)

__version__ = "2.6.1"  # of DeepGEMM, whose names these are

_refused = refusals(PRODUCTS)

__all__ = [
    "fp8_fp4_gemm_nt",
    "fp8_gemm_nt",
    "fp8_m_grouped_gemm_nt_masked",
    "get_num_sms",
    "get_pdl",
    "get_tc_util",
    "legacy",
    "m_grouped_fp8_fp4_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "mega",
    "set_block_size_multiple_of",
    "set_ignore_compile_dims",
    "set_num_sms",
    "set_pdl",
    "set_tc_util",
    "testing",
    "transform_sf_into_required_layout",
    "utils",
    *_refused,
    *mega.__all__,
    *utils.__all__,
]

globals().update(_refused)
globals().update({name: getattr(part, name) for part in (mega, utils) for name in part.__all__})
