"""Runs a computation twice and compares the bits of every op: is it deterministic, and is the device sound?

The LongCat-Flash technical report (arXiv:2509.01322) trains with deterministic ops alone and finds silent data
corruption by running the backward of attention again on the same chip and comparing bits. `check` does so for all ops
of a forward, and of its backward where there is one, and names the first op that differs. A weight that is wrong in
both runs is no difference: `Checksums` finds it. `Watch` does a little of both during training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..ops import direct
from .checks import require, require_int
from .recorder import OP, Difference, Recorder

_KEEP = 256 << 20


@dataclass(frozen=True)
class Verdict:
    """What a check found. difference: the first one, None if all bits are the same. runs, calls, num_bytes: how often
    fn ran, and of one run, how many ops were called and how many bytes their tensors have.
    """

    difference: Difference | None
    runs: int
    calls: int
    num_bytes: int

    @property
    def holds(self) -> bool:
        return self.difference is None

    def __str__(self) -> str:
        compared = f"{self.runs} runs of {self.calls} ops, {self.num_bytes / 1e6:.1f} MB"
        return f"{compared}: the same bits" if self.holds else f"{compared}: {self.difference}"


def check(fn: Callable[..., Any], *args: Any, runs: int = 2, keep: int = _KEEP) -> Verdict:
    """Runs fn(*args) again and again and compares the bits of what each op reads and writes.

    Where results require gradients, the backward from them runs, too, to the tensors in `args` and to all leaves that
    fn reaches, such as the parameters of a module; gradients of results are 1 for a scalar and else random. No `.grad`
    changes. Each run begins with the same state of torch's random numbers, which stays as it was. Memory that an op
    leaves uninitialised is 0. Direct calls of this library's CPU kernels go through torch meanwhile, so that they are
    seen; ops of other threads are not.

    Args:
        fn: called with `args`; anything in it that is no op of torch counts by the tensors, numbers and texts that it
            returns. It leaves its arguments, and whatever else it reads, as they are. What it makes at its first call
            and keeps, it has made before: call it once.
        runs: 2 or more. keep: bytes of run 1 to keep, so that a difference can be given in ulp; of the tensors beyond,
            only checksums are kept.

    Raises:
        LongcatShapeError: an argument is not as above, or an op of fn writes to a tensor in `args`. What fn itself
            raises in run 1; in a later one that is a difference.
    """
    require_int(OP, "runs", runs, 2)
    require_int(OP, "keep", keep, 0)
    require(callable(fn), OP, "fn", f"a {type(fn).__name__}", "a function")
    recorder = Recorder(keep, args)
    with direct.switched_off():
        for _ in range(runs):
            recorder.begin()
            own = tree_map(_apart, args)
            try:
                with same_random_numbers(), recorder:
                    found = _run(fn, own, recorder)
            except Exception as error:
                if recorder.run == 1:
                    raise
                recorder.raised(error)
            else:
                recorder.end(found)
            if recorder.difference:
                break
    return Verdict(recorder.difference, recorder.run, len(recorder.calls), recorder.num_bytes)


def same_random_numbers() -> AbstractContextManager[None]:
    """torch's random numbers of all devices are behind it what they were before it."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


def _apart(value: Any) -> Any:
    """A tensor of the same memory, where a backward ends."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _run(fn: Callable[..., Any], args: tuple[Any, ...], recorder: Recorder) -> list[Any]:
    """What fn returns, flat, and then the gradients."""
    results = tree_leaves(fn(*args))
    ends = [t for t in results if isinstance(t, Tensor) and t.requires_grad]
    if not ends:
        return results
    recorder.phase = "backward"
    seeds = [torch.ones_like(t) if t.dim() == 0 else torch.rand_like(t) for t in ends]
    return [*results, *torch.autograd.grad(ends, list(_leaves(ends)), seeds, allow_unused=True)]


def _leaves(ends: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors that gradients of `ends` arrive at, each once."""
    todo, seen = [t.grad_fn for t in ends if t.grad_fn], set()
    yield from (t for t in ends if not t.grad_fn)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [following for following, _ in node.next_functions if following is not None]
