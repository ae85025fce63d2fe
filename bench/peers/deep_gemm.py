"""DeepGEMM, what serving frameworks run on Hopper, by the package sgl-deep-gemm 0.1.5 (module deep_gemm).

It compiles each configuration with nvcc on first use: CUDA_HOME has to lead there.

masked: [G, M', K] with M' a multiple of 128 rows; its scales are given in the transposed order that a dispatch in this
layout already writes. contiguous: each expert's rows padded to the library's alignment (128), the scales row by row as
a quantisation writes them, so the library's transposition is part of the time, as in a framework. cluster 1: the
masked kernel without pairs of blocks. No switch is documented for that, but its choice of a configuration takes a
cluster of 2 only where it divides the number of SMs (csrc/jit_kernels/heuristics/sm90.hpp), so `set_num_sms` to an odd
number excludes it, at the price of one SM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from products.moe_gemm_problem import Operands, Problem

from .peer import Call, Peer, not_importable

BLOCK_ROWS = 128  # the masked kernel stores whole blocks, of at most so many rows


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


def masked(problem: Problem, product: Callable[..., Any] | None = None) -> list[Call]:
    product = product or module().fp8_m_grouped_gemm_nt_masked
    groups, (height, places) = problem.cell.groups, masked_layout(problem)
    counts = torch.tensor(problem.counts, dtype=torch.int32, device=problem.device)
    expected = max(1, -(-problem.cell.rows // groups))

    def call(o: Operands) -> Call:
        x = spread(o.x, places, groups * height).view(groups, height, -1)
        xs = spread(o.xs, places, groups * height).view(groups, height, -1)
        xs = xs.transpose(1, 2).contiguous().transpose(1, 2)  # strides (.., 1, M')
        out = torch.empty(groups, height, problem.n, dtype=torch.bfloat16, device=problem.device)
        run = partial(product, (x, xs), (o.w, o.ws), out, counts, expected)
        return Call(run, [out], lambda: out.flatten(0, 1)[places])

    return [call(operands) for operands in problem.copies]


def contiguous(problem: Problem) -> list[Call]:
    library = module()
    starts, indices = contiguous_layout(problem, int(library.get_mk_alignment_for_contiguous_layout()))
    places = problem.places(starts[:-1])

    def call(o: Operands) -> Call:
        lhs = spread(o.x, places, starts[-1]), spread(o.xs, places, starts[-1])
        out = torch.empty(starts[-1], problem.n, dtype=torch.bfloat16, device=problem.device)
        run = partial(library.m_grouped_fp8_gemm_nt_contiguous, lhs, (o.w, o.ws), out, indices)
        return Call(run, [out], lambda: out[places])

    return [call(operands) for operands in problem.copies]


def cluster_1(problem: Problem) -> list[Call]:
    library = module()

    def product(*arguments: Any) -> None:
        sms = library.get_num_sms()
        library.set_num_sms(sms - 1 + sms % 2)
        try:
            library.fp8_m_grouped_gemm_nt_masked(*arguments)
        finally:
            library.set_num_sms(sms)

    return masked(problem, product)


PEERS = [
    Peer("DeepGEMM masked", available, masked),
    Peer("DeepGEMM masked, cluster 1", available, cluster_1),
    Peer("DeepGEMM contiguous", available, contiguous),
]
