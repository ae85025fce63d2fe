"""torch.ops.longcat_ops.comm_*: the operations of a communicator for graphs of torch.compile.

A communicator is an int here, the handle of one channel in this process: collectives cannot be traced, so a graph keeps
the number and the call finds the channel. Each schema says truly what a call writes.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import LongcatCommError
from ..ops import tensors

SCHEMAS = {
    "all_reduce": "(int comm, Tensor x, Tensor(a!) out) -> ()",
    "all_reduce_": "(int comm, Tensor(a!) x) -> ()",
    "reduce_scatter": "(int comm, Tensor x, Tensor(a!) out, SymInt[]? rows, Tensor? counts) -> ()",
    "all_gather": "(int comm, Tensor x, Tensor(a!) out, SymInt[]? rows, Tensor? counts) -> ()",
    "broadcast_": "(int comm, Tensor(a!) x, int src) -> ()",
    "all_reduce_residual_rmsnorm": (
        "(int comm, Tensor x, Tensor residual, Tensor weight, float eps, Tensor(a!) out, Tensor(b!) residual_out) -> ()"
    ),
    "all_reduce_residual_rmsnorm_quant": (
        "(int comm, Tensor x, Tensor residual, Tensor weight, float eps, Tensor(a!) q, Tensor(b!) s, "
        "Tensor(c!) residual_out) -> ()"
    ),
    "barrier": "(int comm, Tensor(a!) token) -> ()",
}


class Runs(Protocol):
    def run(self, op: str, *arguments: Any) -> None: ...


_channels: weakref.WeakValueDictionary[int, Runs] = weakref.WeakValueDictionary()
_handles = itertools.count(1)
_library = torch.library.Library("longcat_ops", "FRAGMENT")


def add(channel: Runs) -> int:
    """The handle of `channel`, valid as long as the channel lives."""
    handle = next(_handles)
    _channels[handle] = channel
    return handle


def _kernel(op: str) -> Callable[..., None]:
    def kernel(comm: int, *arguments: Any) -> None:
        channel = _channels.get(comm)
        if channel is None:
            raise LongcatCommError(f"comm_{op}: no communicator of this process has the handle {comm}.")
        channel.run(op, *arguments)

    return kernel


def _autograd(op: str) -> Callable[..., None]:
    """Refuses tensors that need a gradient, and counts a new version of what the call writes."""
    overload = getattr(torch.ops.longcat_ops, f"comm_{op}").default
    written = [i for i, spec in enumerate(overload._schema.arguments) if spec.alias_info and spec.alias_info.is_write]
    check, below = tensors.gradient_check(f"comm_{op}"), torch._C._after_autograd_keyset

    def kernel(keyset: Any, *arguments: Any) -> None:
        check(arguments)
        overload.redispatch(keyset & below, *arguments)
        for i in written:
            if isinstance(arguments[i], Tensor) and not arguments[i].is_inference():
                torch.autograd.graph.increment_version(arguments[i])

    return kernel


def _fake(comm: int, *arguments: Any) -> None:
    """Nothing: outputs are arguments."""


def define(schemas: dict[str, str]) -> None:
    """Registers ops, each the method `run` of the channel that its first argument names."""
    for op, schema in schemas.items():
        _library.define(f"comm_{op}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(f"comm_{op}", _kernel(op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"longcat_ops::comm_{op}", _fake, lib=_library)
        _library.impl(f"comm_{op}", _autograd(op), "Autograd", with_keyset=True)


define(SCHEMAS)
