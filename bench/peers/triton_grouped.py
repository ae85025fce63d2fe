"""A grouped FP8 GEMM in Triton as a framework would write it: block scales, compact rows found by offsets, one program
for each expert, 128 weight rows and up to 128 tokens. Up to 64 tokens the weights are the rows of the product, so
tokens are padded only to a multiple of 16.

The tiles are a table, not tuned: nothing here has run on a GPU, only in Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from torch import Tensor

from products.moe_gemm_problem import Operands, Problem

from .peer import Call, Peer, not_importable

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

ROWS = 128  # weight rows of a tile, and columns of a block of scales

# (tokens of a tile, warps, stages), smallest first. A stage holds 128 * (128 + tokens) bytes.
TILES = [(16, 4, 6), (32, 4, 6), (64, 4, 5), (128, 8, 4)]


def available() -> str | None:
    return not_importable("triton", "triton")


if triton is not None:

    @triton.jit
    def grouped_gemm_kernel(x, xs, w, ws, out, offsets,
                            N: tl.constexpr, K: tl.constexpr, TOKENS: tl.constexpr, SWAP: tl.constexpr):  # fmt: skip
        """out[offsets[g] : offsets[g + 1]] [.., N] = x [M, K] @ w[g] [N, K].T; xs [M, K/128], ws [G, N/128, K/128]

        Grid: (tiles of tokens of the largest expert, tiles of weight rows, G); N and K are multiples of 128. Programs
        that share a tile of weights are neighbours.
        """
        g = tl.program_id(2)
        start = tl.load(offsets + g) + tl.program_id(0) * TOKENS
        end = tl.load(offsets + g + 1)
        if start < end:
            tokens = (start + tl.arange(0, TOKENS)).to(tl.int64)
            rows = (tl.program_id(1) * 128 + tl.arange(0, 128)).to(tl.int64)
            columns = tl.arange(0, 128)
            there = tokens < end
            x_at = x + tokens[:, None] * K + columns[None, :]
            w_at = w + (g.to(tl.int64) * N + rows[:, None]) * K + columns[None, :]
            xs_at = xs + tokens * (K // 128)
            ws_at = ws + (g * (N // 128) + tl.program_id(1)) * (K // 128)
            if SWAP:
                total = tl.zeros((128, TOKENS), dtype=tl.float32)
            else:
                total = tl.zeros((TOKENS, 128), dtype=tl.float32)
            for block in range(K // 128):
                x_tile = tl.load(x_at, mask=there[:, None], other=0.0)
                w_tile = tl.load(w_at)
                scale = tl.load(xs_at + block, mask=there, other=0.0) * tl.load(ws_at + block)
                # A sum of its own for each 128 of K: tensor cores keep about 14 bits.
                if SWAP:
                    total += tl.dot(w_tile, tl.trans(x_tile)) * scale[None, :]
                else:
                    total += tl.dot(x_tile, tl.trans(w_tile)) * scale[:, None]
                x_at += 128
                w_at += 128
            out_at = out + tokens[:, None] * N + rows[None, :]
            result = tl.trans(total) if SWAP else total
            tl.store(out_at, result.to(out.dtype.element_ty), mask=there[:, None])


def tile_for(tokens: int) -> tuple[int, int, int]:
    return next((tile for tile in TILES if tokens <= tile[0]), TILES[-1])


def grouped_gemm(o: Operands, out: Tensor, offsets: Tensor, largest: int) -> None:
    """largest: rows of the largest expert."""
    groups, n, k = o.w.shape
    tokens, warps, stages = tile_for(largest)
    grid = (triton.cdiv(largest, tokens), n // ROWS, groups)
    grouped_gemm_kernel[grid](
        o.x, o.xs, o.w, o.ws, out, offsets, n, k, TOKENS=tokens, SWAP=tokens <= 64, num_warps=warps, num_stages=stages
    )  # fmt: skip


def prepare(problem: Problem) -> list[Call]:
    if problem.n % ROWS or problem.k % ROWS:
        raise ValueError(f"unsupported shape: N = {problem.n} and K = {problem.k} are not multiples of {ROWS}")

    def call(o: Operands) -> Call:
        out = problem.empty_out()
        return Call(lambda: grouped_gemm(o, out, problem.offsets, max(problem.counts)), [out], lambda: out)

    return [call(operands) for operands in problem.copies]


PEER = Peer("Triton grouped", available, prepare)
