"""Jobs of ranks: calls that must be refused, by all ranks together or by one of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from longcat_ops.errors import LongcatCommError, LongcatError
from support.comm_pool import World

Call = Callable[[Any], Any]


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def _overlapping(form: str) -> Call:
    buffer = bf16(40)

    def call(comm: Any) -> None:
        n = comm.ranks
        if form == "all_reduce":
            comm.all_reduce(buffer[:8], buffer[4:12])
        elif form == "reduce_scatter":
            comm.reduce_scatter(buffer[: 2 * n], buffer[1 + 2 * comm.rank :][:2])
        elif form == "all_gather":
            comm.all_gather(buffer[1 + 2 * comm.rank :][:2], buffer[: 2 * n])
        else:
            comm.all_reduce_residual_rmsnorm(
                buffer[:8].view(1, 8), buffer[8:16].view(1, 8), torch.ones(8), 0.0, buffer[8:16].view(1, 8)
            )

    return call


def _norm(x: Any = None, residual: Any = None, weight: Any = None, eps: Any = 1e-5, **options: Any) -> Call:
    x = bf16(2, 8) if x is None else x
    return lambda c: c.all_reduce_residual_rmsnorm(
        x, bf16(2, 8) if residual is None else residual, torch.ones(8) if weight is None else weight, eps, **options
    )


# name -> (call, text that the error must have)
CALLS: dict[str, tuple[Call, str]] = {
    "no tensor": (lambda c: c.all_reduce([1.0]), "argument `x` is list, expected a torch.Tensor"),
    "ints": (lambda c: c.all_reduce(torch.zeros(3, dtype=torch.int64)), "argument `x` is torch.int64, expected torch"),
    "fp64": (lambda c: c.all_reduce_(torch.zeros(3, dtype=torch.float64)), "`x` is torch.float64"),
    "e4m3 sum": (lambda c: c.reduce_scatter(bf16(12, 2).to(torch.float8_e4m3fn)), "`x` is torch.float8_e4m3fn"),
    "strided": (lambda c: c.all_reduce(bf16(4, 6).t()), "`x` is of strides [1, 6], expected contiguous"),
    "sparse": (lambda c: c.all_reduce(bf16(4, 6).to_sparse()), "`x` is of layout torch.sparse_coo"),
    "gradient": (lambda c: c.all_reduce(torch.ones(3, requires_grad=True)), "`x` is a tensor that requires a gradient"),
    "meta": (lambda c: c.broadcast_(torch.ones(3, device="meta"), 0), "`x` is on meta, expected on cpu"),
    "too large": (lambda c: c.all_reduce(torch.zeros(1 << 20)), "`x` is 4194304 bytes, expected at most 1048576"),
    "gather too large": (lambda c: c.all_gather(bf16(1 << 19, 2)), "expected at most 1048576"),
    "out dtype": (lambda c: c.all_reduce(bf16(3), torch.zeros(3)), "`out` is torch.float32, expected torch.bfloat16"),
    "out shape": (lambda c: c.all_reduce(bf16(3), bf16(1, 3)), "`out` is of shape [1, 3], expected [3]"),
    "out is no tensor": (lambda c: c.all_gather(bf16(3), 5), "`out` is int, expected a torch.Tensor"),
    "scalar rows": (lambda c: c.all_gather(torch.tensor(1.0)), "`x` is of shape [], expected at least 1-dimensional"),
    "not divisible": (lambda c: c.reduce_scatter(bf16(7 * c.ranks + 1)), "rows, expected a multiple of"),
    "rows too many": (lambda c: c.all_gather(bf16(3), rows=[3] * (c.ranks + 1)), " counts, expected "),
    "negative rows": (lambda c: c.all_gather(bf16(3), rows=[-1] * c.ranks), "expected counts of 0 or more"),
    "rows of floats": (lambda c: c.all_gather(bf16(3), rows=[3.0] * c.ranks), "expected a list of ints"),
    "rows of another sum": (lambda c: c.reduce_scatter(bf16(5), rows=[4] * c.ranks), "`x` is 5 rows, expected"),
    "rows tensor, no out": (lambda c: c.all_gather(bf16(3), rows=torch.ones(c.ranks).int()), "`out` is None"),
    "rows tensor dtype": (
        lambda c: c.all_gather(bf16(3), bf16(9), torch.ones(c.ranks, dtype=torch.int64)), "expected int32 ["),
    "rows tensor sum": (
        lambda c: c.all_gather(bf16(9), bf16(9), torch.full((c.ranks,), 10, dtype=torch.int32)),
        "`out` is 9 rows, expected at least"),
    "rows tensor negative": (
        lambda c: c.all_gather(bf16(9), bf16(9), torch.tensor([-1] + [1] * (c.ranks - 1), dtype=torch.int32)),
        "expected counts of 0 or more"),
    "own rows": (lambda c: c.all_gather(bf16(3), bf16(2 * c.ranks), [2] * c.ranks), "`x` is 3 rows, expected 2, rows["),
    "own out": (lambda c: c.reduce_scatter(bf16(2 * c.ranks), bf16(3)), "`out` is 3 rows, expected 2, rows["),
    "source": (lambda c: c.broadcast_(bf16(3), c.ranks), "expected a rank, 0 .. "),
    "source type": (lambda c: c.broadcast_(bf16(3), True), "`src` is True"),
    "overlap": (_overlapping("all_reduce"), "`out` is memory that overlaps `x`"),
    "overlap, scatter": (_overlapping("reduce_scatter"), "`out` is memory that overlaps `x`"),
    "overlap, gather": (_overlapping("all_gather"), "`out` is memory that overlaps `x`"),
    "overlap, norm": (_overlapping("norm"), "`out` is memory of `residual`"),
    "quant": (_norm(quant="int8"), "`quant` is 'int8', expected None or 'fp8_1x128'"),
    "norm of 3 dims": (_norm(x=bf16(1, 2, 8)), "`x` is of shape [1, 2, 8], expected [T, H]"),
    "residual": (_norm(residual=bf16(2, 9)), "expected [T, H], as `residual`"),
    "residual dtype": (_norm(residual=torch.zeros(2, 8)), "`residual` is torch.float32, expected torch.bfloat16"),
    "weight": (_norm(weight=bf16(8)), "`weight` is torch.bfloat16"),
    "eps": (_norm(eps=-1.0), "`eps` is -1"),
    "eps type": (_norm(eps="small"), "`eps` is"),
    "quant out": (_norm(quant="fp8_1x128", out=bf16(2, 8)), "`out` is Tensor, expected a pair"),
    "quant width": (
        _norm(bf16(2, 9), bf16(2, 9), torch.ones(9), quant="fp8_1x128"), "a positive multiple of 8"),
}  # fmt: skip
# Calls that are right on one rank.
OF_SEVERAL = {"not divisible"}


def by_all(world: World, ranks: int, backend: str) -> list[str]:
    """Every rank makes every bad call: each is refused by name, and the communicator serves the next good one."""
    wrong = []
    with world.new(ranks, backend, max_bytes=1 << 20, timeout_s=20.0) as comm:
        for name, (call, text) in CALLS.items():
            if ranks == 1 and name in OF_SEVERAL:
                continue
            try:
                call(comm)
            except LongcatError as error:
                if text not in str(error) or isinstance(error, LongcatCommError):
                    wrong.append(f"{name}: {type(error).__name__}: {error}")
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{name}: not refused")
            good = comm.all_reduce(torch.full((2,), comm.rank + 1.0))
            if good.tolist() != [ranks * (ranks + 1) / 2] * 2:
                wrong.append(f"{name}: the next call gave {good.tolist()}")
    return wrong


def by_one(world: World, ranks: int, backend: str, name: str, bad: int) -> str:
    """Rank `bad` makes the bad call, the others an all_reduce; the text of what each raises, and of the call after."""
    call, _ = CALLS[name]
    texts = []
    with world.new(ranks, backend, max_bytes=1 << 20, timeout_s=20.0) as comm:
        start = time.monotonic()
        for attempt in (call if world.rank == bad else lambda c: c.all_reduce(bf16(3)), lambda c: c.barrier()):
            try:
                attempt(comm)
                texts.append("no error")
            except LongcatError as error:
                texts.append(f"{type(error).__name__}: {error}")
        return "\n".join([*texts, f"{time.monotonic() - start:.1f}"])


def disagree(world: World, ranks: int, backend: str, form: str) -> str:
    """Ranks make legal calls that are not the same; the text of what each raises."""
    odd = world.rank == ranks - 1
    big = torch.zeros(50000)
    calls: dict[str, Call] = {
        "dtype": lambda c: c.all_reduce(torch.zeros(4, dtype=torch.float16 if odd else torch.bfloat16)),
        "shape": lambda c: c.all_reduce(big[: 50000 - odd]),
        "op": lambda c: c.all_gather(big) if odd else c.all_reduce(big),
        "rows": lambda c: c.all_gather(bf16(3 + odd, 500)),
        "source": lambda c: c.broadcast_(big.clone(), int(odd)),
        "count": lambda c: (None if odd else c.barrier(), c.all_reduce(big)),
    }
    with world.new(ranks, backend, timeout_s=20.0) as comm:
        try:
            calls[form](comm)
            return "no error"
        except LongcatError as error:
            return f"{type(error).__name__}: {error}"


def in_a_capture(world: World, ranks: int, backend: str) -> list[str]:
    """What calls say while a CUDA graph is captured, and the result of one afterwards."""
    from longcat_ops.comm import channel, communicator, runner

    texts = []
    with world.new(ranks, backend, timeout_s=20.0) as comm:
        places = (runner, channel, communicator)
        usual = channel.is_capturing
        for place in places:
            place.is_capturing = lambda: True
        try:
            for call in (lambda: comm.all_reduce(torch.ones(2)), lambda: comm.empty((2,), torch.float32),
                         lambda: world.new(ranks, backend)):  # fmt: skip
                try:
                    call()
                except LongcatError as error:
                    texts.append(str(error))
        finally:
            for place in places:
                place.is_capturing = usual
        texts.append(str(comm.all_reduce(torch.ones(2)).tolist()))
    return texts
