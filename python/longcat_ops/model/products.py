"""Matrix products of the network whose rows keep their bits in any company, where there are kernels for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _environment, _library, ops, reference
from ..ops import checking
from ..ops.described import Described
from ..types import ROW_GROUP, Fp8Pair


class Quantised(NamedTuple):
    """Rows [T,K] for products with FP8 weights and with dense ones; x is None where no dense one follows."""

    x: Tensor | None
    pair: Fp8Pair  # the rows, quantised 1x128


@lru_cache(maxsize=1024)
def on_kernels(dtype: torch.dtype, device: str, rows: int, cols: int) -> bool:
    """Whether a product with a weight [rows, cols] runs on a kernel, in which the bits of a row of the result depend on
    that row alone. If not, it runs the reference, whose library may sum each number of rows in another order.
    """
    if rows < ROW_GROUP or cols % ROW_GROUP or not cols:
        return False
    _library.load()
    from ..ops.registration import CUDA_KERNELS, EMULATED_KERNELS

    backend = _environment.backend()
    if device == "cuda" or backend == "emu":
        return dtype == torch.bfloat16 and "bf16_gemm_nt" in (CUDA_KERNELS if device == "cuda" else EMULATED_KERNELS)
    return dtype in (torch.bfloat16, torch.float32) and backend == "cpu"


def ops_for(dtype: torch.dtype, device: torch.device | None = None) -> ModuleType:
    """Where a model of this dtype takes its ops from. Kernels know no fp64, the reference does; on CUDA, given as the
    device, products of fp32 are the reference's, too.
    """
    narrow = device is not None and device.type == "cuda"
    return reference if dtype == torch.float64 or (narrow and dtype == torch.float32) else ops


def ops_of(x: Tensor, rows: int, cols: int) -> ModuleType:
    """Where an op comes from that multiplies x with a weight [rows, cols], both of which kernels want in eights."""
    return ops if rows % ROW_GROUP == 0 and on_kernels(x.dtype, x.device.type, rows, cols) else reference


_replaced: Any = None  # what has `mla_decode` for models on a GPU in place of ours


def replace_attention(by: Any) -> Any:
    """Models on a GPU take `mla_decode` from `by`, None: from this library again. Returns what it was."""
    global _replaced
    before, _replaced = _replaced, by
    return before


def attention_of(q: Tensor, latent: int) -> Any:
    """Where `mla_decode` of a query q [T,h,W] comes from: the kernel of a GPU takes not every dtype and width."""
    on_cpu = q.device.type == "cpu"
    if q.dtype == torch.float64 or not (on_cpu or _replaced or attends(q.dtype, q.device.type, q.shape[2], latent)):
        return reference
    return ops if on_cpu or _replaced is None else _replaced


def attends(dtype: torch.dtype, device: str, width: int, latent: int) -> bool:
    """Whether `mla_decode` has a kernel for rows of `width`, of which `latent` are values, and is not replaced."""
    backend = _environment.backend()
    if device == "cpu":
        return backend == "cpu" or (backend == "emu" and _attends(dtype, "cuda", width, latent))
    return _replaced is None and _attends(dtype, device, width, latent)


@lru_cache(maxsize=64)
def _attends(dtype: torch.dtype, device: str, width: int, latent: int) -> bool:
    def tensor(kind: torch.dtype, *sizes: int) -> Described:
        strides = tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
        return Described(str(kind), sizes, strides, device, 0, 0)

    q, rows, at = tensor(dtype, 1, 1, width), tensor(dtype, 1, 64, width), tensor(torch.int32, 1)
    problem = checking.find_problem("mla_decode", q, rows, tensor(torch.int32, 1, 1), at, at, latent, 1.0, 64, None)
    return not problem[0]


def linear(x: Tensor, weight: Tensor, out: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """x [T,K] @ weight [N,K].T -> out [T,N], summed in fp32 (fp64 for fp64), rounded to its dtype, by default x's.

    count i32[1], on the device: only so many rows need be computed; None: all.
    """
    columns, cols = weight.shape
    kernels = on_kernels(x.dtype, x.device.type, columns, cols)
    if kernels and out is None and count is None and columns % ROW_GROUP == 0:
        return ops.bf16_gemm_nt(x, weight)
    if out is None:
        out = x.new_empty((len(x), columns))
    if not kernels:
        return reference.bf16_gemm_nt(x, weight, out)
    if count is None:
        return _any_columns(lambda w, y: ops.bf16_gemm_nt(x, w, y), weight, out)
    _any_columns(lambda w, y: ops.m_grouped_bf16_gemm_nt_masked(x[None], w, y, count, len(x)), weight[None], out[None])
    return out


@lru_cache(maxsize=64)
def torch_multiplies(dtype: torch.dtype, device: str) -> bool:
    """Whether torch's products are the faster ones for chunks of prompts: they are, but for bf16 on a CPU without
    AVX-512, where torch has no kernel for it and is five times as slow as ours."""
    return dtype != torch.bfloat16 or device != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def prompt_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T,K] @ weight [N,K].T for the rows of a chunk of a prompt, in x's dtype."""
    return F.linear(x, weight) if torch_multiplies(x.dtype, x.device.type) else linear(x, weight)


def fp8_linear(x: Tensor | Quantised, weight: Fp8Pair, out: Tensor, count: Tensor | None = None) -> Tensor:
    """`linear` with an FP8 weight (e4m3 [N,K], scales); x is quantised 1x128, unless it is already."""
    q, s = x.pair if isinstance(x, Quantised) else ops.per_token_group_quant_fp8(x)
    if count is None:
        return ops.fp8_gemm_nt((q, s), weight, out)
    w, scales = weight
    ops.m_grouped_fp8_gemm_nt_masked((q[None], s[None]), (w[None], scales[None]), out[None], count, len(q))
    return out


def per_head(x: Tensor, weight: Tensor, out: Tensor, counts: Tensor) -> Tensor:
    """out [h,T,N] = x [h,T,K] @ weight [h,N,K].T, a product for each head, in one launch; counts i32 [h]: T each."""
    tokens = x.shape[1]
    if not on_kernels(x.dtype, x.device.type, *weight.shape[1:]):
        return reference.m_grouped_bf16_gemm_nt_masked(x, weight, out, counts, tokens)
    return _any_columns(lambda w, y: ops.m_grouped_bf16_gemm_nt_masked(x, w, y, counts, tokens), weight, out)


def _any_columns(product: Callable[[Tensor, Tensor], Tensor], weight: Tensor, out: Tensor) -> Tensor:
    """product(weight [...,N,K], out [...,T,N]) by kernels that want N a multiple of 8: the last columns are computed
    with some of those before them.
    """
    columns = out.shape[-1]
    whole = columns - columns % ROW_GROUP
    if whole == columns:
        return product(weight, out)
    product(weight[..., :whole, :], out[..., :whole])
    if whole_columns(out.device.type, columns):
        product(weight[..., -ROW_GROUP:, :], out[..., -ROW_GROUP:])
        return out
    last = product(weight[..., -ROW_GROUP:, :], out.new_empty((*out.shape[:-1], ROW_GROUP)))
    out[..., whole:] = last[..., whole - columns :]
    return out


def whole_columns(device: str, columns: int) -> bool:
    """Whether kernels alone write so many columns of a product: those of a CPU write to any address."""
    return columns % ROW_GROUP == 0 or (device == "cpu" and _environment.backend() == "cpu")
