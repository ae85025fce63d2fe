"""Jobs of a node: every operation over a rung, in each dtype, size, place and list of rows. Each says what is wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from comm.cells import BY_ROWS, NORM, Cell, Inputs
from longcat_ops.comm import Communicator
from support import comm_oracle as oracle
from support.comm_oracle import raw_bytes, same_bytes
from support.node import Node
from support.node_oracle import codes_problem, integers, norm_problem, sum_problem

KIB, MIB = 2**10, 2**20
PLACES = ("new", "out", "in place", "symmetric", "symmetric, off by one", "off by one")
FORMS = ("list", "none", "in place", "on the device", "symmetric")
MOVED = ("bfloat16", "float32", "float8_e4m3fn", "int64", "uint8")
EPS = 1e-5


def lengths(node: Node, itemsize: int) -> list[int]:
    """Elements: none, one, less than 16 bytes, whole packs and a little more, up to 1 MiB (64 KiB on the host)."""
    most = node.limit(MIB, 64 * KIB)
    sizes = (0, 1, 7, 4 * KIB // itemsize, 4 * KIB // itemsize + 1, 20 * KIB // itemsize + 3, most // itemsize,
             most // itemsize + 3)  # fmt: skip
    return list(dict.fromkeys(sizes))


def kinds(comm: Communicator) -> tuple[str, ...]:
    """inf, NaN and sums that overflow are compared where the order of a sum is fixed."""
    return ("integers", "random", "special") if comm.caps.fixed_order else ("integers", "random")


def placed(node: Node, comm: Communicator, value: Tensor, place: str) -> Tensor:
    """`value` at a place."""
    skip = int(place.endswith("off by one"))
    if place.startswith("symmetric"):
        found = node.symmetric(comm, tuple(value.shape), value.dtype, skip)
    else:
        whole = torch.empty(value.numel() + skip, dtype=value.dtype, device=node.device)
        found = whole[skip:].view(value.shape)
    return found.copy_(value)


def drawn(node: Node, kind: str, dtype: str, shape: tuple[int, ...]) -> tuple[list[np.ndarray], Tensor]:
    """The bits of each rank, and this rank's tensor."""
    parts = [oracle.values(kind, dtype, shape, r) for r in range(node.ranks)]
    return parts, oracle.tensor(parts[node.rank], dtype).to(node.device)


def all_reduces(node: Node, rung: str, dtype: str, place: str) -> list[str]:
    comm, wrong = node.comm(rung), []
    for length in lengths(node, getattr(torch, dtype).itemsize):
        for kind in kinds(comm):
            parts, mine = drawn(node, kind, dtype, (length,))
            x = placed(node, comm, mine, place)
            if place == "new":
                out = comm.all_reduce(x)
            elif place == "out":
                out = comm.all_reduce(x, torch.empty_like(x))
            else:
                out = comm.all_reduce_(x)
            if problem := sum_problem(out, parts, dtype, comm.backend, comm.caps.fixed_order):
                wrong.append(f"{length} {kind}: {problem}")
            if place in ("new", "out") and not same_bytes(x, mine):
                wrong.append(f"{length} {kind}: x has changed")
    return wrong


def reduce_scatters(node: Node, rung: str, dtype: str, form: str) -> list[str]:
    comm, wrong = node.comm(rung), []
    for name, rows in oracle.row_cases(node.ranks).items():
        if form == "none" and len(set(rows)) > 1:
            continue
        for width in (1, 130, 6144):
            start, count, spare = sum(rows[: node.rank]), rows[node.rank], 2 * (form == "on the device")
            own = slice(start, start + count)
            parts, mine = drawn(node, "random", dtype, (sum(rows) + spare, width))
            x = placed(node, comm, mine, "symmetric" if form == "symmetric" else "new")
            if form == "on the device":
                out = torch.full((count + spare, width), 7.0, dtype=x.dtype, device=node.device)
                comm.reduce_scatter(x, out, torch.tensor(rows, dtype=torch.int32, device=node.device))
                if not (out[count:] == 7).all():
                    wrong.append(f"{name} {width}: rows behind the count were written")
                out = out[:count]
            elif form == "none":
                out = comm.reduce_scatter(x)
            else:
                out = comm.reduce_scatter(x, x[own] if form == "in place" else None, rows)
            mine_of_all = [part[own] for part in parts]
            if problem := sum_problem(out, mine_of_all, dtype, comm.backend, comm.caps.fixed_order):
                wrong.append(f"{name} {width}: {problem}")
    return wrong


def all_gathers(node: Node, rung: str, dtype: str, form: str) -> list[str]:
    comm, wrong = node.comm(rung), []
    for name, rows in oracle.row_cases(node.ranks).items():
        if form == "none" and len(set(rows)) > 1:
            continue
        for width in (1, 130, 6144):
            parts = [raw_bytes(dtype, (rows[r], width), r + 10).to(node.device) for r in range(node.ranks)]
            x, want, whole = parts[node.rank], torch.cat(parts), (sum(rows), width)
            start = sum(rows[: node.rank])
            if form == "on the device":
                room = raw_bytes(dtype, (sum(rows) + 3, width), 5).to(node.device)
                before = room.clone()
                comm.all_gather(x, room, torch.tensor(rows, dtype=torch.int32, device=node.device))
                if not same_bytes(room[sum(rows) :], before[sum(rows) :]):
                    wrong.append(f"{name} {width}: rows behind the count were written")
                out = room[: sum(rows)]
            elif form in ("list", "none"):
                out = comm.all_gather(x, rows=rows if form == "list" else None)
            else:
                out = raw_bytes(dtype, whole, 6).to(node.device)
                if form == "symmetric":
                    out = placed(node, comm, out, "symmetric")
                if form == "in place":
                    x = out[start : start + rows[node.rank]].copy_(x)
                comm.all_gather(x, out, rows)
            if not same_bytes(out, want):
                wrong.append(f"{name} {width}: other bytes, shape {list(out.shape)}, expected {list(want.shape)}")
    return wrong


def broadcasts(node: Node, rung: str, dtype: str) -> list[str]:
    comm, wrong = node.comm(rung), []
    for src in range(node.ranks):
        for length in lengths(node, getattr(torch, dtype).itemsize):
            for place in ("new", "symmetric", "off by one"):
                x = placed(node, comm, raw_bytes(dtype, (length,), node.rank), place)
                comm.broadcast_(x, src)
                if not same_bytes(x, raw_bytes(dtype, (length,), src).to(node.device)):
                    wrong.append(f"{length} from {src}, {place}")
    return wrong


def fused_norms(node: Node, rung: str, dtype: str, quant: str | None) -> list[str]:
    """On integers, whose sum and residual are exact: so the norm alone rounds."""
    comm, wrong, kind = node.comm(rung), [], getattr(torch, dtype)
    for shape in ((0, 136), (1, 8), (3, 136), (5, 6144), (node.limit(129, 9), 6144)):
        for place in ("new", "in place"):
            x = integers(shape, node.rank, node.device, kind)
            residual = integers(shape, node.ranks, node.device, kind)
            weight = torch.linspace(0.5, 2.0, shape[1], device=node.device)
            parts = [integers(shape, r, node.device).double() for r in range(node.ranks + 1)]
            h = sum(part.cpu().numpy() for part in parts)
            given = {} if place == "new" else {"residual_out": residual} | ({} if quant else {"out": x})
            out, new = comm.all_reduce_residual_rmsnorm(x, residual, weight, EPS, quant=quant, **given)
            where = f"{shape} {place}"
            if not np.array_equal(new.cpu().double().numpy(), h):
                wrong.append(f"{where}: the new residual is wrong")
            if shape[0] == 0:
                continue
            scale = weight.cpu().double().numpy()
            problem = codes_problem(*out, h, scale, EPS) if quant else norm_problem(out, h, scale, EPS, dtype)
            if problem:
                wrong.append(f"{where}: {problem}")
    return wrong


def large(node: Node, rung: str, collective: str, rows: str, size: int) -> list[str]:
    """Sizes at which a host's oracle would take minutes: integers by a formula, summed where they are."""
    cell = Cell(collective, rows, size, "eager", node.ranks)
    comm, inputs, wrong = node.comm(rung), Inputs.of(cell, node.rank, node.device), []
    counts = cell.counts if collective in BY_ROWS and cell.uneven else None
    for place in ("new", "symmetric"):
        x = inputs.x.clone() if place == "new" or collective == "all_gather" else placed(node, comm, inputs.x, place)
        if collective == "all_reduce":
            got = comm.all_reduce_(x)
        elif collective == "broadcast":
            got = comm.broadcast_(x, 0)
        elif collective == "reduce_scatter":
            got = comm.reduce_scatter(x, rows=counts)
        elif collective == NORM:
            got = comm.all_reduce_residual_rmsnorm(x, inputs.residual, inputs.weight, EPS)[0]
        else:
            out = node.symmetric(comm, cell.shape, x.dtype) if place == "symmetric" else None
            got = comm.all_gather(x, out, counts)
        if problem := inputs.disagreement(got):
            wrong.append(f"{cell}, {place}: {problem}")
    return wrong


def not_numbers(node: Node, rung: str, dtype: str) -> list[str]:
    """inf, NaN and -0.0 come through in any order of the sum."""
    comm, kind = node.comm(rung), getattr(torch, dtype)
    first, last = node.rank == 0, node.rank == node.ranks - 1
    inf, nan = float("inf"), float("nan")
    mine = [inf if first else 1.0, -inf if last else 2.0, inf if first else -inf if last else 0.0, nan if last else 1.0,
            -0.0, 1.0]  # fmt: skip
    got = comm.all_reduce(torch.tensor(mine, dtype=kind, device=node.device)).cpu().float()
    right = (got[0] == inf and got[1] == -inf and got[2].isnan() and got[3].isnan() and got[4] == 0
             and got[4].signbit() and got[5] == node.ranks)  # fmt: skip
    return [] if right else [f"{got.tolist()}"]


def repeats(node: Node, rung: str, count: int) -> list[str]:
    """deterministic=True: the bits of the sum in rank order, each time and on each rank."""
    comm, wrong = node.comm(rung, deterministic=True), []
    for dtype in oracle.FLOATS:
        parts, mine = drawn(node, "special", dtype, (node.limit(300_001, 5001),))
        for i in range(count):
            out = comm.all_reduce(mine)
            if problem := oracle.difference(out.cpu(), oracle.summed(parts, dtype), dtype):
                wrong.append(f"{dtype}, call {i}: {problem}")
                break
    return wrong
