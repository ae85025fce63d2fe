"""What `determinism.check` keeps of a run, and the first thing in which another run differs from it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import LongcatShapeError, message
from .checksums import checksum
from .ulp import furthest

OP = "determinism.check"
_LIBRARIES = (str(Path(torch.__file__).parent), __file__)


@dataclass(frozen=True)
class Difference:
    """The first thing that differs between two runs.

    op: an op as torch names it, or "fn" for what fn returned. call: its number in the run, from 0. what: "argument i",
    which something changed since an op wrote it; "output i" or "argument x, written i", which the op itself computed
    differently; "order", where the runs call other ops; of "fn", "result i" or the error that it raised. phase:
    "forward" or "backward". run: which one differs from run 1. line: where Python called it, None in a backward.
    elements: how many differ. index, first, second: the largest difference in ulp, and its value in both runs. All
    from elements on are None where the values of run 1 were not kept.
    """

    op: str
    call: int
    what: str
    phase: str
    run: int
    line: str | None = None
    elements: int | None = None
    index: tuple[int, ...] | None = None
    first: float | None = None
    second: float | None = None
    ulp: int | None = None

    def __str__(self) -> str:
        where = f"call {self.call} ({self.phase})"
        text = f"{self.what} of {self.op}, {where}, differs in run {self.run}"
        if self.what == "order":
            text = f"run {self.run} has another order of calls from {self.op} on, {where}"
        if self.elements is not None:
            where = f"at {list(self.index)}, {self.first!r} and {self.second!r}"
            text += f": {self.elements} elements, by up to {self.ulp} ulp, {where}"
        return text + (f"; called at {self.line}" if self.line else "")


@dataclass(frozen=True)
class _Print:
    """What is kept of a tensor: its form, its checksum, and in run 1 its values, while there is room."""

    form: tuple[torch.dtype, torch.Size]
    sum: int
    values: Tensor | None


class Recorder(TorchDispatchMode):
    """Records the calls of run 1, and compares those of later runs with them until something differs."""

    def __init__(self, keep: int, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.difference: Difference | None = None
        self.run, self.at, self.num_bytes, self.phase = 0, 0, 0, "forward"
        self._room, self._args = keep, {_memory(t): i for i, t in enumerate(tree_leaves(args)) if isinstance(t, Tensor)}
        self._prints: list[dict[str, _Print]] = []
        self._plain: list[Any] = []

    def begin(self) -> None:
        self.run, self.at, self.phase = self.run + 1, 0, "forward"

    def end(self, results: list[Any]) -> None:
        """Compares how many ops were called, and what the whole run returns."""
        tensors = _tensors("result", results)
        plain = [r for r in results if isinstance(r, int | float | complex | str | bytes)]
        if self.run == 1:
            self._plain = plain
        elif self.difference is None and self.at < len(self.calls):
            self._differs(self.calls[self.at], "order", None)
        self._look("fn", 2 * self.at, tensors)
        if self.difference is None and not _equal(plain, self._plain):
            self._differs("fn", "result", None)

    def raised(self, error: Exception) -> None:
        """A run ended so, and run 1 did not."""
        if self.difference is None:
            self._differs("fn", f"{type(error).__name__}: {error}".splitlines()[0], None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, op = kwargs or {}, str(func)
        if self.difference is not None:
            return func(*args, **kwargs)
        written = dict(self._written(func, args, kwargs))
        if self.run == 1:
            self.calls.append(op)
        elif self.at == len(self.calls) or self.calls[self.at] != op:
            self._differs(op, "order", None)
        self._look(op, 2 * self.at, _tensors("argument", (args, kwargs)))
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__.startswith(("empty", "new_empty")):
            out.zero_()
        self._look(op, 2 * self.at + 1, written | (_tensors("output", out) if _makes_new(func) else {}))
        self.at += 1
        return out

    def _written(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """The arguments that an op writes to, by the marks of its schema."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            for name, t in _tensors(f"argument {argument.name}, written", given).items():
                if (number := self._args.get(_memory(t))) is not None and t.numel():
                    got = f"a function whose op {func} writes to its tensor {number}"
                    expected = "one that leaves its arguments as they are"
                    raise LongcatShapeError(message(OP, "fn", got, expected, fix="copy it first, inside fn"))
                yield name, t

    def _look(self, op: str, place: int, tensors: dict[str, Tensor]) -> None:
        """Keeps what the tensors are in run 1, and compares them with that in another one."""
        if self.run == 1:
            self._prints.append({name: self._print(t) for name, t in tensors.items()})
        elif self.difference is None:
            self._compare(op, self._prints[place], tensors)

    def _compare(self, op: str, before: dict[str, _Print], tensors: dict[str, Tensor]) -> None:
        for name in {**before, **tensors}:
            a, t = before.get(name), tensors.get(name)
            if a is None or t is None or a.form != (t.dtype, t.shape):
                return self._differs(op, name, None)
            if a.sum != checksum(t):
                return self._differs(op, name, (a.values, t))
        return None

    def _differs(self, op: str, what: str, values: tuple[Tensor | None, Tensor] | None) -> None:
        found = furthest(*values) if values and values[0] is not None else {}
        line = _line() if self.phase == "forward" and op != "fn" else None
        self.difference = Difference(op, self.at, what, self.phase, self.run, line, **found)

    def _print(self, t: Tensor) -> _Print:
        size, values = t.numel() * t.element_size(), None
        self.num_bytes += size
        if size <= self._room:
            self._room -= size
            values = t.detach().clone()
        return _Print((t.dtype, t.shape), checksum(t), values)


def _tensors(kind: str, values: Any) -> dict[str, Tensor]:
    """The tensors with dense memory in a nest of values, by their number among them."""
    leaves = [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.layout == torch.strided and not t.is_meta]
    return {f"{kind} {i}": t for i, t in enumerate(leaves)}


def _makes_new(func: Any) -> bool:
    """Whether an op returns more than views of its arguments."""
    return any(r.alias_info is None for r in func._schema.returns)


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _equal(a: list[Any], b: list[Any]) -> bool:
    """NaN equals NaN."""
    return len(a) == len(b) and all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def _line() -> str | None:
    """Where Python called the op: the innermost line that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_LIBRARIES):
            return f"{frame.filename}:{frame.lineno}"
    return None
