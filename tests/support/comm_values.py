"""Jobs of ranks: values of every operation against the oracle. Each returns what is wrong, as text."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import longcat_ops
from support import comm_oracle as oracle
from support.comm_oracle import flat_bytes, raw_bytes, same_bytes
from support.comm_pool import World

KINDS = ("integers", "random", "special")
SHAPES = ((), (0,), (1,), (7,), (3, 0), (3, 130), (1, 6144), (4, 6144), (5, 1, 777))
TAILS = ((), (1,), (130,), (6144,))
# Dtypes of operations that only move bytes.
MOVED = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "int64", "int8", "uint8", "bool", "complex64")


def picked(every: int, *axes: Any) -> Iterator[tuple[Any, ...]]:
    """About one in `every` of the product of the axes, spread by a checksum; 1 takes all."""
    return (case for case in itertools.product(*axes) if zlib.crc32(repr(case).encode()) % every == 0)


def kinds(comm: Any) -> tuple[str, ...]:
    """Inputs whose sums the oracle knows: in another order only small integers have the same."""
    return KINDS if comm.caps.fixed_order else KINDS[:1]


def all_reduces(world: World, ranks: int, backend: str, every: int, fixed: bool = False) -> list[str]:
    comm, wrong = world.comm(ranks, backend, deterministic=fixed), []
    for dtype, shape, kind, place in picked(
        every, oracle.FLOATS, SHAPES, kinds(comm), ("new", "out", "in place", "same")
    ):
        inputs = [oracle.values(kind, dtype, shape, r) for r in range(ranks)]
        x = oracle.tensor(inputs[world.rank], dtype)
        before = x.clone()
        if place == "in place":
            out = comm.all_reduce_(x)
        else:
            out = comm.all_reduce(x, {"new": None, "out": torch.empty_like(x), "same": x}[place])
        case = f"{dtype} {shape} {kind} {place}"
        if problem := oracle.difference(out, oracle.summed(inputs, dtype), dtype):
            wrong.append(f"{case}: {problem}")
        if place in ("new", "out") and not same_bytes(x, before):
            wrong.append(f"{case}: x has changed")
    return wrong


def reduce_scatters(world: World, ranks: int, backend: str, every: int, fixed: bool = False) -> list[str]:
    comm, wrong = world.comm(ranks, backend, deterministic=fixed), []
    cases = oracle.row_cases(ranks)
    for dtype, name, tail, kind, form in picked(
        every, oracle.FLOATS, cases, TAILS, kinds(comm), ("list", "out", "in place", "tensor", "none")
    ):
        rows = cases[name]
        if form == "none" and len(set(rows)) > 1:
            continue
        total, start = sum(rows), sum(rows[: world.rank])
        own = slice(start, start + rows[world.rank])
        spare = 2 * (form == "tensor")
        inputs = [oracle.values(kind, dtype, (total + spare, *tail), r) for r in range(ranks)]
        x = oracle.tensor(inputs[world.rank], dtype)
        want = oracle.summed([part[own] for part in inputs], dtype)
        case = f"{dtype} {name} {tail} {kind} {form}"
        if form == "tensor":
            out = torch.full((rows[world.rank] + spare, *tail), 7.0, dtype=x.dtype)
            comm.reduce_scatter(x, out, torch.tensor(rows, dtype=torch.int32))
            if not (out[rows[world.rank] :] == 7).all():
                wrong.append(f"{case}: rows behind the count were written")
            out = out[: rows[world.rank]]
        elif form == "list":
            out = comm.reduce_scatter(x, rows=rows)
        elif form == "none":
            out = comm.reduce_scatter(x)
        else:
            place = x[own] if form == "in place" else torch.empty((rows[world.rank], *tail), dtype=x.dtype)
            out = comm.reduce_scatter(x, place, rows)
        if problem := oracle.difference(out, want, dtype):
            wrong.append(f"{case}: {problem}")
    return wrong


def all_gathers(world: World, ranks: int, backend: str, every: int) -> list[str]:
    comm, wrong = world.comm(ranks, backend), []
    cases = oracle.row_cases(ranks)
    for dtype, name, tail, form in picked(every, MOVED, cases, TAILS, ("list", "out", "in place", "tensor", "none")):
        rows = cases[name]
        if form == "none" and len(set(rows)) > 1:
            continue
        parts = [raw_bytes(dtype, (rows[r], *tail), r + 10) for r in range(ranks)]
        x, want = parts[world.rank], torch.cat(parts)
        case = f"{dtype} {name} {tail} {form}"
        if form == "tensor":
            out = raw_bytes(dtype, (sum(rows) + 3, *tail), 5)
            before = out.clone()
            wide = torch.cat([x, x[:1]])
            comm.all_gather(wide, out, torch.tensor(rows, dtype=torch.int32))
            if not same_bytes(out[sum(rows) :], before[sum(rows) :]):
                wrong.append(f"{case}: rows behind the count were written")
            out = out[: sum(rows)]
        elif form in ("list", "none"):
            out = comm.all_gather(x, rows=rows if form == "list" else None)
        else:
            out = raw_bytes(dtype, (sum(rows), *tail), 6)
            if form == "in place":
                start = sum(rows[: world.rank])
                x = out[start : start + rows[world.rank]].copy_(x)
            comm.all_gather(x, out, rows)
        if not same_bytes(out, want):
            wrong.append(f"{case}: other bytes, shape {list(out.shape)}, expected {list(want.shape)}")
    return wrong


def broadcasts(world: World, ranks: int, backend: str, every: int) -> list[str]:
    comm, wrong = world.comm(ranks, backend), []
    for dtype, shape, src in picked(every, MOVED, SHAPES, range(ranks)):
        x, want = raw_bytes(dtype, shape, world.rank), raw_bytes(dtype, shape, src)
        out = comm.broadcast_(x, src)
        if out is not x or not same_bytes(x, want):
            wrong.append(f"{dtype} {shape} from {src}")
    return wrong


def fused_norms(world: World, ranks: int, backend: str, every: int, fixed: bool = False) -> list[str]:
    """The bits of the ops of this library, applied to the oracle's sum."""
    comm, wrong = world.comm(ranks, backend, deterministic=fixed), []
    sizes = ((0, 136), (1, 8), (3, 136), (5, 6144))
    for dtype, shape, kind, quant, place in picked(
        every, oracle.FLOATS, sizes, kinds(comm), (None, "fp8_1x128"), ("new", "out", "in place")
    ):
        inputs = [oracle.values(kind, dtype, shape, r) for r in range(ranks)]
        x, residual = (
            oracle.tensor(inputs[world.rank], dtype),
            oracle.tensor(oracle.values(kind, dtype, shape, 9), dtype),
        )
        weight = torch.linspace(0.5, 2.0, shape[1])
        total = oracle.tensor(oracle.summed(inputs, dtype), dtype)
        y, q, s = total + residual, None, None
        norm = longcat_ops.rms_norm(y, weight, 1e-5)
        if quant:
            q, s, _, y = longcat_ops.rms_norm_quant_fp8(total, weight, 1e-5, residual)
        out = residual_out = None
        if place == "out":
            out = (torch.empty_like(q), torch.empty_like(s)) if quant else torch.empty_like(x)
            residual_out = torch.empty_like(x)
        elif place == "in place":
            out, residual_out = (None if quant else x), residual
        got, got_residual = comm.all_reduce_residual_rmsnorm(x, residual, weight, 1e-5, out, residual_out, quant)
        pairs = [(got_residual, y), *(zip(got, (q, s), strict=True) if quant else [(got, norm)])]
        if not all(equal(a, b) for a, b in pairs):
            wrong.append(f"{dtype} {shape} {kind} {quant} {place}")
        given = zip(got, out, strict=True) if quant and out else [(got, got if out is None else out)]
        if place != "new" and not all(a is b for a, b in [(got_residual, residual_out), *given]):
            wrong.append(f"{dtype} {shape} {kind} {quant} {place}: not written to the tensors given")
    return wrong


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same shape, dtype and bits, any NaN as good as another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = torch.isnan(a.float()) & torch.isnan(b.float())
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return bool((nan | (a.view(kind) == b.view(kind))).all())


def mixed(world: World, ranks: int, backend: str, count: int) -> str:
    """`count` operations drawn alike on every rank, on two channels in turn; a digest of what they gave."""
    comm = world.comm(ranks, backend)
    draw, digest = np.random.default_rng(3), hashlib.sha256()
    for i in range(count):
        channel = comm.channel(i % 2)
        shape = (int(draw.integers(0, 9)), int(draw.integers(1, 3000)))
        x = oracle.tensor(oracle.values("special", "bfloat16", shape, 100 * i + world.rank), "bfloat16")
        op = draw.integers(0, 4)
        if op == 0:
            out = channel.all_reduce(x)
        elif op == 1:
            out = channel.all_gather(
                channel.reduce_scatter(x, rows=split(shape[0], ranks)), rows=split(shape[0], ranks)
            )
        elif op == 2:
            out = channel.broadcast_(x, int(draw.integers(0, ranks)))
        else:
            channel.barrier()
            out = channel.all_gather(x)
        digest.update(flat_bytes(out).numpy().tobytes())
    return digest.hexdigest()


def split(count: int, ranks: int) -> list[int]:
    return [count - (ranks - 1) * (count // ranks)] + [count // ranks] * (ranks - 1)
