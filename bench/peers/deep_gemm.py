"""DeepGEMM, what serving frameworks run on Hopper, by the package sgl-deep-gemm 0.1.5 (module deep_gemm).

It compiles each configuration with nvcc on first use: CUDA_HOME has to lead there.

masked: [G, M', K] with M' a multiple of 128 rows; its scales are given in the transposed order that a dispatch in this
layout already writes. contiguous: each expert's rows padded to the library's alignment (128), the scales row by row as
a quantisation writes them, so the library's transposition is part of the time, as in a framework. cluster 1: the
masked FP8 kernel without pairs of blocks. No switch is documented for that, but its choice of a configuration takes a
cluster of 2 only where it divides the number of SMs (csrc/jit_kernels/heuristics/sm90.hpp), so `set_num_sms` to an odd
number excludes it, at the price of one SM. The bf16 products take the same layouts without scales, and dense rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from products import bf16_gemm_problem
from products.moe_gemm_problem import Operands
from products.problem import Problem

from .peer import Call, Peer, not_importable

BLOCK_ROWS = 128  # the masked kernels store whole blocks, of at most so many rows

Product = Callable[..., Any]
LayOut = Callable[[Tensor], Tensor]  # gives rows their places
Laid = Callable[[Any, LayOut], tuple[Any, Any]]  # the two operands that a product takes of a copy


def available() -> str | None:
    return not_importable("deep_gemm", "sgl-deep-gemm")


def module() -> ModuleType:
    import deep_gemm

    return deep_gemm


def spread(rows: Tensor, places: Tensor, size: int) -> Tensor:
    """The rows at their places in a zero tensor of `size` rows."""
    dtype = torch.uint8 if rows.itemsize == 1 else rows.dtype  # e4m3 cannot be indexed
    out = torch.zeros(size, *rows.shape[1:], dtype=dtype, device=rows.device)
    out[places] = rows.view(dtype)
    return out.view(rows.dtype)


def masked_layout(problem: Problem) -> tuple[int, Tensor]:
    """Rows of a group, and where each row lies."""
    height = -(-max(problem.counts) // BLOCK_ROWS) * BLOCK_ROWS
    return height, problem.places([height * g for g in range(problem.cell.groups)])


def contiguous_layout(problem: Problem, alignment: int) -> tuple[list[int], Tensor]:
    """Where each group's rows begin, with the end of all, and m_indices i32: the group of a row, -1 for padding."""
    starts, indices = [0], []
    for g, count in enumerate(problem.counts):
        size = -(-count // alignment) * alignment
        starts.append(starts[-1] + size)
        indices += [g] * count + [-1] * (size - count)
    return starts, torch.tensor(indices, dtype=torch.int32, device=problem.device)


def masked_calls(problem: Problem, product: Product, operands: Laid) -> list[Call]:
    groups, (height, places) = problem.cell.groups, masked_layout(problem)
    counts = torch.tensor(problem.counts, dtype=torch.int32, device=problem.device)
    expected = max(1, -(-problem.cell.rows // groups))

    def lay_out(rows: Tensor) -> Tensor:
        return spread(rows, places, groups * height).view(groups, height, -1)

    def call(o: Any) -> Call:
        lhs, rhs = operands(o, lay_out)
        out = torch.empty(groups, height, problem.n, dtype=torch.bfloat16, device=problem.device)
        return Call(partial(product, lhs, rhs, out, counts, expected), [out], lambda: out.flatten(0, 1)[places])

    return [call(copy) for copy in problem.copies]


def contiguous_calls(problem: Problem, product: Product, operands: Laid) -> list[Call]:
    starts, indices = contiguous_layout(problem, int(module().get_mk_alignment_for_contiguous_layout()))
    places = problem.places(starts[:-1])

    def call(o: Any) -> Call:
        lhs, rhs = operands(o, lambda rows: spread(rows, places, starts[-1]))
        out = torch.empty(starts[-1], problem.n, dtype=torch.bfloat16, device=problem.device)
        return Call(partial(product, lhs, rhs, out, indices), [out], lambda: out[places])

    return [call(copy) for copy in problem.copies]


def fp8_operands(o: Operands, lay_out: LayOut) -> tuple[Any, Any]:
    return (lay_out(o.x), lay_out(o.xs)), (o.w, o.ws)


def fp8_masked_operands(o: Operands, lay_out: LayOut) -> tuple[Any, Any]:
    xs = lay_out(o.xs).transpose(1, 2).contiguous().transpose(1, 2)  # strides (.., 1, M')
    return (lay_out(o.x), xs), (o.w, o.ws)


def bf16_operands(o: bf16_gemm_problem.Operands, lay_out: LayOut) -> tuple[Any, Any]:
    return lay_out(o.x), o.w


def masked(problem: Problem) -> list[Call]:
    return masked_calls(problem, module().fp8_m_grouped_gemm_nt_masked, fp8_masked_operands)


def contiguous(problem: Problem) -> list[Call]:
    return contiguous_calls(problem, module().m_grouped_fp8_gemm_nt_contiguous, fp8_operands)


def cluster_1(problem: Problem) -> list[Call]:
    library = module()

    def product(*arguments: Any) -> None:
        sms = library.get_num_sms()
        library.set_num_sms(sms - 1 + sms % 2)
        try:
            library.fp8_m_grouped_gemm_nt_masked(*arguments)
        finally:
            library.set_num_sms(sms)

    return masked_calls(problem, product, fp8_masked_operands)


def bf16_masked(problem: Problem) -> list[Call]:
    return masked_calls(problem, module().m_grouped_bf16_gemm_nt_masked, bf16_operands)


def bf16_contiguous(problem: Problem) -> list[Call]:
    return contiguous_calls(problem, module().m_grouped_bf16_gemm_nt_contiguous, bf16_operands)


def bf16_dense(problem: Problem) -> list[Call]:
    product = module().bf16_gemm_nt

    def call(o: bf16_gemm_problem.Operands) -> Call:
        out = problem.empty_out()
        return Call(partial(product, o.x, o.w[0], out), [out], lambda: out)

    return [call(operands) for operands in problem.copies]


PEERS = [
    Peer("DeepGEMM masked", available, masked),
    Peer("DeepGEMM masked, cluster 1", available, cluster_1),
    Peer("DeepGEMM contiguous", available, contiguous),
]
BF16_GROUPED = [
    Peer("DeepGEMM masked", available, bf16_masked),
    Peer("DeepGEMM contiguous", available, bf16_contiguous),
]
BF16_DENSE = Peer("DeepGEMM", available, bf16_dense)
