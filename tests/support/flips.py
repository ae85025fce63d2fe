"""Planted faults: bits that flip in memory, in what an op computes, and in what a reduction adds up."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What adds many numbers up. Forward and backward of a network have them.
REDUCTIONS = ("sum", "mean", "mm", "addmm", "bmm", "_softmax", "_log_softmax", "native_layer_norm", "index_add",
              "native_layer_norm_backward", "_softmax_backward_data", "_log_softmax_backward_data")  # fmt: skip


def flip(t: Tensor, draw: random.Random) -> None:
    """One random bit of a tensor, wherever its elements lie. No op of torch writes it."""
    index = sum(draw.randrange(size) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    address = t.data_ptr() + index * t.element_size() + draw.randrange(t.element_size())
    ctypes.c_uint8.from_address(address).value ^= 1 << draw.randrange(8)


class Fault(TorchDispatchMode):
    """Counts calls of ops that make or write tensors, and plants one fault at the `at`-th of a run.

    Around a check, it is the device that errs: the check sees the op's result with the fault. Within the function that
    is checked, it is the memory: the check has seen the result before the fault. In a reduction, one bit of one addend
    flips, so that its sum is another one. op: where it struck. calls: what was counted.
    """

    def __init__(self, at: int, draw: random.Random, *, kinds: tuple[str, ...], reduction: bool = False) -> None:
        super().__init__()
        self.at, self.draw, self.kinds, self.reduction = at, draw, kinds, reduction
        self.calls: list[str] = []
        self.op: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (name in self.kinds or func.namespace in self.kinds):
            return out
        made = [t for t in self._made(func, args, kwargs or {}, out) if t.numel()]
        if not made or (self.reduction and not made[0].is_floating_point()):  # checksums add integers up
            return out
        self.calls.append(str(func))
        if len(self.calls) - 1 != self.at:
            return out
        self.op = str(func)
        if not self.reduction:
            flip(self.draw.choice(made), self.draw)
            return out
        before = [t.clone() for t in made]
        while all(map(torch.equal, before, made)):  # an addend's low bit may be rounded off
            addends = [t.clone() if isinstance(t, Tensor) else t for t in args]
            flip(self.draw.choice([t for t in addends if isinstance(t, Tensor) and t.is_floating_point()]), self.draw)
            out = func(*addends, **(kwargs or {}))
            made = self._made(func, addends, kwargs or {}, out)
        return out

    def _made(self, func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
        written = []
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name))
        return [t for t in (written or tree_leaves(out)) if isinstance(t, Tensor)]
