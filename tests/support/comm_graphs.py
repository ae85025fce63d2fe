"""Jobs of ranks: the operations as torch ops."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch

from support.comm_faults import attempt
from support.comm_pool import World


def calls(comm: Any) -> dict[str, tuple[Any, ...]]:
    """Arguments of each op, more than one set where the schema has options."""
    n, h = comm.ranks, comm._handle
    x, rows = torch.arange(6.0 * n).view(2 * n, 3), [2 * n] + [0] * (n - 1)
    counts = torch.ones(n, dtype=torch.int32)
    two, weight = torch.ones(2, 8), torch.ones(8)
    return {
        "all_reduce": ((h, x, torch.empty_like(x)),),
        "all_reduce_": ((h, x.clone()),),
        "reduce_scatter": (
            (h, x, torch.empty(2, 3), None, None),
            (h, x, torch.empty(rows[comm.rank], 3), rows, None),
            (h, x, torch.empty(2 * n, 3), None, counts),
        ),
        "all_gather": (
            (h, x[:2], torch.empty(2 * n, 3), None, None),
            (h, x[: rows[comm.rank]], torch.empty(2 * n, 3), rows, None),
            (h, x, torch.empty(2 * n + 1, 3), None, counts),
        ),
        "broadcast_": ((h, x.clone(), n - 1),),
        "all_reduce_residual_rmsnorm": (
            (h, two, two.clone(), weight, 1e-5, torch.empty_like(two), torch.empty_like(two)),
        ),
        "all_reduce_residual_rmsnorm_quant": (
            (h, two, two.clone(), weight, 1e-5, two.to(torch.float8_e4m3fn), torch.empty(2, 1), torch.empty_like(two)),
        ),
        "barrier": ((h, torch.zeros(1, dtype=torch.int64)),),
    }


def opchecks(world: World, ranks: int, backend: str, every_form: bool) -> dict[str, Any]:
    """What torch.library.opcheck says of each call of each op. Its test of the schema compares tensors in a way that
    torch has not for e4m3; `marks` does it here."""
    comm, found = world.comm(ranks, backend), {}
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for op, sets in calls(comm).items():
        for i, arguments in enumerate(sets if every_form else sets[-1:]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                overload = getattr(torch.ops.longcat_ops, f"comm_{op}")
                results = torch.library.opcheck(overload, arguments, test_utils=utils["_quant" in op :])
            found[f"{op} {i}"] = sorted(set(results.values()))
    return found


def marks(world: World, ranks: int, backend: str) -> list[str]:
    """Arguments whose mark in the schema is not what the call does to their bytes and their version."""
    comm, wrong = world.comm(ranks, backend), []
    for op, sets in calls(comm).items():
        overload = getattr(torch.ops.longcat_ops, f"comm_{op}").default
        for arguments in sets:
            given = [poisoned(a, spec) for a, spec in zip(arguments, overload._schema.arguments, strict=True)]
            before = [(a.clone(), a._version) if isinstance(a, torch.Tensor) else None for a in given]
            overload(*given)
            for a, old, spec in zip(given, before, overload._schema.arguments, strict=True):
                if old is None:
                    continue
                marked = bool(spec.alias_info and spec.alias_info.is_write)
                if (a._version > old[1]) != marked:
                    wrong.append(f"{op} {spec.name}: version")
                if not marked and not torch.equal(a, old[0]):
                    wrong.append(f"{op} {spec.name}: written, and not marked")
                same = torch.equal(a.view(torch.uint8), old[0].view(torch.uint8))
                if marked and a.numel() and same and op != "broadcast_":
                    wrong.append(f"{op} {spec.name}: marked, and not written")
    return wrong


def poisoned(value: Any, spec: Any) -> Any:
    """Outputs hold values that no result has."""
    if not isinstance(value, torch.Tensor) or not spec.alias_info or spec.name in ("x", "token"):
        return value
    return value.view(torch.uint8).fill_(0x5A).view(value.dtype)


def compiled(world: World, ranks: int, backend: str, compiler: str) -> Any:
    """A function that calls every method, compiled as one graph: for each of two shapes, whether each of its results is
    equal to the eager one."""
    comm = world.comm(ranks, backend)
    channel = comm.channel(1)

    def step(x: torch.Tensor, weight: torch.Tensor, rows: list[int]) -> list[torch.Tensor]:
        total = comm.all_reduce(x * 2)
        own = channel.reduce_scatter(total, rows=rows)
        everything = channel.all_gather(own + 1, rows=rows)
        even = comm.reduce_scatter(torch.cat([x] * ranks))
        comm.barrier()
        last = comm.broadcast_(x + 1.0, ranks - 1)
        comm.all_reduce_(last)
        norm, residual = comm.all_reduce_residual_rmsnorm(x, everything, weight, 1e-5)
        (q, s), again = comm.all_reduce_residual_rmsnorm(x, residual, weight, 1e-5, quant="fp8_1x128")
        return [total, own, everything, even, last, norm, residual, q.float(), s, again, comm.all_gather(x)]

    torch._dynamo.reset()
    graph = torch.compile(step, fullgraph=True, backend=compiler)
    pairs = []
    for count in (4, 7):
        x = torch.arange(8.0 * count).view(count, 8) + comm.rank
        rows = [count] + [0] * (ranks - 1)
        pairs.append((graph(x, torch.ones(8), rows), step(x, torch.ones(8), rows)))
    return [[torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs]


def refusals(world: World, ranks: int, backend: str) -> dict[str, str]:
    """Texts of bad calls of the ops themselves."""
    comm = world.new(ranks, backend, timeout_s=20.0)
    handle, x = comm._handle, torch.ones(3)
    namespace = torch.ops.longcat_ops
    cases: dict[str, Callable[[], Any]] = {
        "shape": lambda: namespace.comm_all_reduce(handle, x, torch.ones(4)),
        "gradient": lambda: namespace.comm_all_reduce_(handle, torch.ones(3, requires_grad=True)),
        "no grad mode": lambda: namespace.comm_all_reduce(handle, x, torch.empty(3)),
        "handle": lambda: namespace.comm_all_reduce(10**9, x, torch.empty(3)),
    }
    found = {name: attempt(call)["text"] for name, call in cases.items()}
    comm.close()
    found["closed"] = attempt(lambda: namespace.comm_all_reduce_(handle, x))["text"]
    del comm
    gc.collect()
    found["gone"] = attempt(lambda: namespace.comm_all_reduce_(handle, x))["text"]
    return found
