"""The base of every module of the network: its tensors keep their dtypes, and new weights must fit or are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import LongcatCheckpointError, LongcatUnsupportedError, message

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Block(nn.Module):
    """A module whose tensors keep the dtypes that it was built with.

    Norms, router and head are wider than the rest, and FP8 weights mean nothing without their scales. So casting all
    tensors would break the network.
    """

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along; FP8 tensors as bytes: plain pickle cannot read their dtype back."""
        if self.__dict__.get("parallel") is not None or hasattr(self.__dict__.get("tp"), "comm"):
            fix = "state_dict() of each rank"
            raise LongcatUnsupportedError(
                message(type(self).__name__, "copy", "of a model of several ranks", "one of a model on one", fix=fix)
            )
        state = self.__dict__.copy()
        fp8 = [name for name, t in self._buffers.items() if t is not None and t.dtype == torch.float8_e4m3fn]
        codes = {name: self._buffers[name].view(torch.uint8) for name in fp8}
        return state | {"_buffers": self._buffers | codes, "_fp8": fp8}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fp8, buffers = state.pop("_fp8"), state["_buffers"]
        super().__setstate__(state | {"_buffers": buffers | {n: buffers[n].view(torch.float8_e4m3fn) for n in fp8}})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Block:
        kinds = {t.dtype for t in self.buffers()} - {torch.float8_e4m3fn}
        device = next((t.device for t in self.buffers()), torch.device("cpu"))
        try:
            changed = {kind: fn(torch.empty(0, dtype=kind, device=device)).dtype for kind in kinds}
        except (AssertionError, RuntimeError) as error:  # torch's errors for a device that is not there
            raise LongcatUnsupportedError(f"{type(self).__name__} cannot move: {error}") from error
        wanted = {new for old, new in changed.items() if new != old}
        if wanted and wanted == {getattr(self, "dtype", None)}:  # the dtype stays: only the device may change
            target = fn(torch.empty(0, dtype=torch.float32, device=device)).device
            return super()._apply(lambda t: t.to(target), recurse)
        if wanted:
            names = ", ".join(sorted(str(kind) for kind in wanted))
            fix = f"build it so: from_pretrained(path, dtype={names}); only the device can be changed afterwards"
            raise LongcatUnsupportedError(
                message(type(self).__name__, "dtype", names, "the dtypes that the model was built with", fix=fix)
            )
        return super()._apply(lambda t: _kept(fn, t), recurse)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's load_state_dict, which finds every problem before it writes a tensor.

        Raises: LongcatCheckpointError naming all tensors that are missing, unexpected, of another shape, FP8 on one
            side only, or without the scales that belong to them; with assign=True also those of another dtype or
            device.
        """
        own = self.state_dict()
        problems = _misfits(own, dict(state_dict), strict, assign)
        if problems:
            raise LongcatCheckpointError(
                f"load_state_dict: {len(problems)} tensors do not fit, none was written.\n  " + "\n  ".join(problems)
            )
        return super().load_state_dict(state_dict, strict, assign)


def _kept(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """fn(t), where fn moves a tensor; it moves an FP8 tensor as bytes."""
    return fn(t.view(torch.uint8)).view(t.dtype) if t.dtype == torch.float8_e4m3fn else fn(t)


def _misfits(own: dict[str, Tensor], new: dict[str, Any], strict: bool, assign: bool) -> list[str]:
    problems = []
    if strict:
        problems += [f"{name}: missing" for name in own if name not in new]
        problems += [f"{name}: unexpected" for name in new if name not in own]
    for name, t in own.items():
        fp8 = t.dtype == torch.float8_e4m3fn
        scale = f"{name.removesuffix('weight')}scale" if name.endswith("weight") else f"{name}_scale"
        if fp8 and (name in new) != (scale in new):
            problems.append(f"{name}: FP8 codes and {scale} belong together, one of them is missing")
        if name not in new:
            continue
        value = new[name]
        if not isinstance(value, Tensor):
            problems.append(f"{name}: is {type(value).__name__}, expected a tensor")
        elif value.shape != t.shape:
            problems.append(f"{name}: has shape {list(value.shape)}, expected {list(t.shape)}")
        elif fp8 != (value.dtype == torch.float8_e4m3fn) or value.is_meta != t.is_meta:
            problems.append(f"{name}: is {value.dtype} on {value.device}, expected {t.dtype} on {t.device}")
        elif assign and (value.dtype != t.dtype or value.device != t.device or not value.is_contiguous()):
            got = f"{value.dtype} on {value.device}" + ("" if value.is_contiguous() else ", not contiguous")
            problems.append(f"{name}: is {got}, expected {t.dtype} on {t.device} to be assigned")
    return problems


def in_own_dtypes(method: _Method) -> _Method:
    """Wraps a method of an object with a `device`, so that autocast around the call does not affect it."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = self.device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return method(self, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]
