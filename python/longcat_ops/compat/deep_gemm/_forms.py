"""The calls that DeepGEMM's tests make on SM90, one `Form` each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from . import _runs


@dataclass(frozen=True)
class Form:
    """One call form in a file of DeepGEMM's tests. theirs, here: the sizes there, and in `run`, a function of _runs.
    refused: whether it must raise LongcatUnsupportedError."""

    file: str
    call: str
    theirs: str
    here: str
    run: Callable[[], float]
    refused: bool = False


SEVEN, FOUR = f"{len(_runs.DENSE)} pairs N, K", f"{len(_runs.GROUPED)} pairs N, K"


def forms() -> Iterator[Form]:
    yield from _products()
    yield from _grouped()
    yield from _layouts()
    for file, names in _OTHER_FILES.items():
        for name in names:
            yield Form(file, name, "", "", partial(_runs.call, name), refused=True)


def _products() -> Iterator[Form]:
    form, all_rows = partial(Form, "test_fp8_fp4.py"), f"M 1, 128, 4096, {SEVEN}"
    rows = 1, 2, 64
    here = "M 1, 2, 64"
    yield form("gemm forward, bf16", all_rows, here, partial(_runs.dense, rows))
    yield form("gemm, column-major scales", all_rows, here, partial(_runs.dense, rows, column_major=True))
    named = {"recipe_a": (1, 128), "recipe_b": (128, 128), "compiled_dims": "mnk", "disable_ue8m0_cast": True}
    yield form("gemm, recipe_a, recipe_b", all_rows, "M 2", partial(_runs.dense, (2,), **named))
    for dtype in (torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield form(f"gemm forward, {name}", "SM90: bf16 alone", "M 2", partial(_runs.dense, (2,), dtype=dtype))
    yield form("gemm dgrad, bf16", f"M 4096, {SEVEN} swapped", "M 64", partial(_runs.dense, (64,), "mkn"))
    yield form("gemm wgrad, bf16", f"N 4096, {SEVEN}", "N 64", partial(_runs.dense, (64,), "nmk"))
    wgrad = partial(_runs.accumulate, recipe=(1, 1, 128))
    yield form("gemm wgrad into c, fp32", f"N 4096, {SEVEN}", "", wgrad, refused=True)
    yield form("gemm that adds to c", "SM100", "", _runs.accumulate, refused=True)
    yield form("gemm with FP4 weights", "SM100", "", _runs.packed_fp4, refused=True)


def _grouped() -> Iterator[Form]:
    form = partial(Form, "test_fp8_fp4.py")
    for groups, mean, few in ((4, 8192, 128), (8, 4096, 64)):
        theirs, here = f"G {groups}, {mean} rows, {FOUR}", f"G {groups}, {few} rows"
        yield form("contiguous, -1 rows", theirs, here, partial(_runs.contiguous, groups, few))
        by_columns = partial(_runs.contiguous, groups, few, column_major=True)
        yield form("contiguous, column-major scales", theirs, here, by_columns)
        for zero in (False, True):
            run = partial(_runs.psum, groups, few, zero_padding=zero)
            yield form(f"contiguous psum, zero padding {zero}", theirs, here, run)
    for groups, mean, fewer, few in ((32, 192, 8, 48), (6, 1024, 6, 128), (32, 20, 8, 20), (6, 20, 6, 20)):
        theirs = f"G {groups}, {mean} of 4096 rows, {FOUR}"
        here = f"G {fewer}, {few} of {_runs.MASKED_ROWS} rows"
        yield form("masked, expected_m", theirs, here, partial(_runs.masked, fewer, few))
        yield form("masked, column-major", theirs, here, partial(_runs.masked, fewer, few, column_major=True))
        yield form("masked as psum, gaps unset", theirs, here, partial(_runs.masked_as_psum, fewer, few))
    yield form(
        "k-grouped wgrad", "G 4, 8, 16", "", partial(_runs.call, "k_grouped_fp8_gemm_nt_contiguous"), refused=True
    )


def _layouts() -> Iterator[Form]:
    form = partial(Form, "generators.py", refused=True)
    yield Form("generators.py", "casts of tokens and blocks", "all of the above", "[136, 896]", _runs.casts)
    x = torch.zeros(128, 128)
    for name in ("per_channel_cast_to_fp8", "per_token_cast_to_fp4", "transpose_packed_fp4"):
        yield form(name, "k-grouped" if "channel" in name else "SM100", "", partial(_runs.call, name, x))
    yield form(
        "casts with use_ue8m0", "test_layout.py", "", partial(_runs.call, "per_token_cast_to_fp8", x, use_ue8m0=True)
    )

    yield Form("test_layout.py", "float32 scales, both orders", "54 cases", "the same", _runs.layouts)
    form = partial(Form, "test_layout.py", refused=True)
    packed = "get_mn_major_tma_aligned_packed_ue8m0_tensor", "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor"
    yield form("packed UE8M0 scales", "54 cases", "", partial(_runs.call, packed[0], torch.ones(8, 2)))
    yield form("packed UE8M0 scales, k-grouped", "8 cases", "", partial(_runs.call, packed[1], torch.ones(8, 2)))


_OTHER_FILES = {
    "test_bf16.py": (
        "bf16_gemm_nt",
        "m_grouped_bf16_gemm_nt_contiguous",
        "m_grouped_bf16_gemm_nt_masked",
        "k_grouped_bf16_gemm_tn_contiguous",
        "cublaslt_gemm_nt",
    ),
    "test_attention.py": ("fp8_gemm_nt_skip_head_mid", "fp8_fp4_mqa_logits", "fp8_fp4_paged_mqa_logits"),
    "test_einsum.py": ("einsum", "fp8_einsum"),
    "test_hyperconnection.py": ("tf32_hc_prenorm_gemm",),
    "test_mega_moe.py": ("get_symm_buffer_for_mega_moe", "fp8_fp4_mega_moe"),
}
