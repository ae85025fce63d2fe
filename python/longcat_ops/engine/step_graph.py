"""A step of a decode, recorded once and replayed: on a CPU without Python, without torch's dispatcher and without an
allocation, on a GPU as a CUDA graph, and in the emulator as one stream of kernels that overlap.

`capture` runs the step once, under two modes of torch that see whatever it does. Calls of ops with a kernel of the
device are recorded; views are allowed, and new tensors without values. A GPU's graph also has torch's kernels and the
exchanges with other ranks. Any other op, and any read of a value by the host, would be missing from a replay, so it is
refused. On a CPU each tensor that the step made for itself then gets a place in one arena, where tensors that do not
live at the same time share memory; on a GPU torch's allocator keeps a pool for the graph.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .. import _environment, _library
from ..errors import LongcatError, LongcatShapeError, LongcatUnsupportedError, message
from ..ops import direct, emulated
from ..ops.registration import CPU_KERNELS, CUDA_KERNELS, is_emulated, python_kernel
from ..ops.registry import OPS

if TYPE_CHECKING:
    from ..model import LongcatFlashForCausalLM

_ALIGNMENT = 64  # bytes: what torch's allocator gives to a CPU tensor

_MAKES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_READS = {
    getattr(Tensor, name)
    for name in (
        "__array__", "__bool__", "__complex__", "__contains__", "__dlpack__", "__float__", "__format__", "__index__",
        "__int__", "__repr__", "data_ptr", "item", "nonzero", "numpy", "tolist",
    )
}  # fmt: skip


class StepGraph:
    """A captured step. `inputs` and `outputs` keep their memory: a replay reads the former and writes the latter."""

    def __init__(self, ops: list[str], inputs: Sequence[Tensor], outputs: Any, run: Callable[[], None],
                 kept: object) -> None:  # fmt: skip
        self.inputs, self.outputs, self.ops = tuple(inputs), outputs, ops
        self._run, self._kept = run, kept  # what is kept must live as long as the recording

    def replay(self, *inputs: Tensor) -> Any:
        """Run the step again, on `inputs` copied into those it was captured with, if they are given. Raises
        LongcatShapeError for inputs of other shapes or dtypes. One replay at a time.
        """
        if inputs:
            _require_alike(self.inputs, inputs)
        for mine, given in zip(self.inputs, inputs, strict=False):
            if mine is not given:
                mine.copy_(given)
        self._run()
        return self.outputs


def capture(step: Callable[..., Any], *inputs: Tensor, device: torch.device | str = "cpu") -> StepGraph:
    """Run step(*inputs) once, on `device`, and record it. Unless that is a GPU, it must run ops of this library alone,
    without other ranks, and views. Of the emulator's recordings a thread has one: the last.

    Raises: LongcatUnsupportedError for another op, a read by the host, both with their line, or no kernels.
    """
    kind = torch.device(device).type
    if (obstacle := _obstacle(kind)) is not None:
        raise LongcatUnsupportedError(f"capture: {obstacle}")
    if kind == "cuda":
        return _launched(step, inputs, _cuda_graph, lambda op, _: op in CUDA_KERNELS, records="cuda")
    if _environment.backend() == "emu":
        return _launched(step, inputs, emulated.capture, is_emulated)
    recorder = _Recorder(lambda op, _: op in CPU_KERNELS)
    with _NoHostReads(), recorder:
        outputs = step(*inputs)
    calls, recording = recorder.planned(outputs), _library.load().Recording()
    for op, arguments in calls:
        if not recording.add(op, *arguments):
            raise LongcatError(f"capture: the call of {op} cannot be recorded")

    def run() -> None:
        if not recording.run():
            raise LongcatError("replay: a kernel of the step failed")

    return StepGraph([op for op, _ in calls], inputs, outputs, run, calls)


def _launched(step: Callable[..., Any], inputs: Sequence[Tensor],
              recording: Callable[[], AbstractContextManager[Callable[[], None]]],
              has_kernel: Callable[[str, tuple], bool], records: str = "") -> StepGraph:  # fmt: skip
    """A step whose kernels are launched once more by what `recording` hands out; inside it they are recorded only."""
    recorder = _Recorder(has_kernel, records)
    with recording() as run, _NoHostReads(), recorder:
        outputs = step(*inputs)
    run()
    # A graph of a GPU has memory of its own for what the step made; what it was given lives with the step.
    kept = step if records else (recorder.calls, recorder.kept)
    return StepGraph([op for op, _ in recorder.calls], inputs, outputs, run, kept)


@contextmanager
def _cuda_graph() -> Iterator[Callable[[], None]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph.replay


def _require_alike(own: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> None:
    def described(tensors: tuple[Tensor, ...]) -> list[str]:
        return [f"{t.dtype} {list(t.shape)}" for t in tensors]

    if described(own) != described(given):
        raise LongcatShapeError(message("replay", "inputs", described(given), described(own)))


def obstacle_to_capture(model: LongcatFlashForCausalLM) -> str | None:
    """Why a step of the model cannot be captured; None: it can."""
    if model.row_by_row:
        return "some of its products have no kernel for this dtype and size, so its rows run one by one"
    if model.parallel is not None and model.parallel.no_graph:
        return model.parallel.no_graph
    if not model.decodes_on_kernels:
        return "its attention has no kernel for these widths, or a product for a number of columns off 8"
    return _obstacle(model.device.type)


def _obstacle(device: str) -> str | None:
    backend = _environment.backend()
    if device == "cuda":
        return None if CUDA_KERNELS else "this build has no CUDA kernels"
    if device != "cpu":
        return f"steps on {device} cannot be captured"
    if backend == "emu":
        return None
    if backend != "cpu":
        return f"only the backends cpu and emu record kernels, this is {backend}"
    return None if direct.is_connected() else "this torch lacks what direct calls need"


class _NoHostReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _READS:
            _refuse(f"the host reads a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """has_kernel: whether one takes a call, by its op and the schema's arguments. records: the type of device that
    records by itself whatever runs on it, exchanges with other ranks and torch's kernels included.
    """

    def __init__(self, has_kernel: Callable[[str, tuple], bool], records: str = "") -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []
        self.kept: list[Tensor] = []  # so that no address comes twice
        self._made: dict[int, int] = {}  # bytes of each storage made by the step, by its address
        self._has_kernel, self._records = has_kernel, records

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, kind = kwargs or {}, _kind(func)
        if kind == "own":
            args, op = (*args, *(kwargs[spec.name] for spec in func._schema.arguments[len(args) :])), func._opname
            if op not in OPS and not self._is_recorded(args):
                _refuse(f"{op} meets other ranks, which the host does here")
            if op in OPS and not self._has_kernel(op, args):
                if not OPS[op].chain:
                    _refuse(f"{op} has no kernel for this call")
                with self:
                    return python_kernel(op)(*args)
            func(*args)
            self.calls.append((op, () if self._records else args))
            return None
        if kind == "view":
            return func(*args, **kwargs)
        if kind == "new":
            made = func(*args, **kwargs)
            if not self._records:
                self._made[_place(made)] = made.untyped_storage().nbytes()
                self.kept.append(made)
            return made
        if kind == "composite":
            with self:
                return func.decompose(*args, **kwargs)
        if kind == "other" and self._is_recorded((args, kwargs)):
            return func(*args, **kwargs)
        _refuse("the host reads a tensor" if kind == "read" else f"{func} is no op of this library")

    def _is_recorded(self, arguments: Any) -> bool:
        """Whether the device that records by itself has all tensors of a call."""
        tensors = [t for t in pytree.tree_leaves(arguments) if isinstance(t, Tensor)]
        return bool(tensors) and all(t.device.type == self._records for t in tensors)

    def planned(self, outputs: Any) -> list[tuple[str, tuple]]:
        """The calls, with the step's own tensors in one arena; those of `outputs` stay where they are."""
        lives: dict[int, list[int]] = {}  # first and last call, by storage
        for i, (_, arguments) in enumerate(self.calls):
            for t in arguments:
                if isinstance(t, Tensor) and _place(t) in self._made:
                    lives.setdefault(_place(t), [i, i])[1] = i
        for t in pytree.tree_leaves(outputs):
            if isinstance(t, Tensor):
                lives.pop(_place(t), None)
        offsets, size = _arena(lives, self._made)
        arena = torch.empty(size, dtype=torch.uint8).untyped_storage()

        def moved(t: Any) -> Any:
            if not isinstance(t, Tensor) or _place(t) not in offsets:
                return t
            start = offsets[_place(t)] // t.element_size() + t.storage_offset()
            return torch.empty(0, dtype=t.dtype).set_(arena, start, t.shape, t.stride())

        return [(op, tuple(map(moved, arguments))) for op, arguments in self.calls]


def _place(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _arena(lives: dict[int, list[int]], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """(offset of each storage, size of the arena): first fit, in the order in which they are first used."""
    offsets: dict[int, int] = {}
    taken: list[tuple[int, int, int]] = []  # start, end, last call; in order
    total = 0
    for place, (first, last) in sorted(lives.items(), key=lambda entry: entry[1][0]):
        taken = [t for t in taken if t[2] >= first]
        start, wanted = 0, -(-sizes[place] // _ALIGNMENT) * _ALIGNMENT
        for begin, end, _ in taken:
            if start + wanted <= begin:
                break
            start = max(start, end)
        offsets[place] = start
        taken = sorted([*taken, (start, start + wanted, last)])
        total = max(total, start + wanted)
    return offsets, total


@functools.cache
def _kind(func: Any) -> str:
    """What a capture does with an op."""
    op, schema = func._opname, func._schema
    if func.namespace == "longcat_ops":
        return "own"
    if op in _MAKES:
        return "new"
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return "composite"
    aliases = any(r.alias_info is not None for r in schema.returns)
    if aliases and not schema.is_mutable and op != "lift_fresh":  # of torch.tensor
        return "view"
    return "read" if op == "_local_scalar_dense" else "other"


def _refuse(what: str) -> NoReturn:
    frames = traceback.extract_stack()
    own = {__file__, *(f.filename for f in frames if f"{Path(torch.__file__).parent}" in f.filename)}
    frame = next(f for f in reversed(frames) if f.filename not in own)
    raise LongcatUnsupportedError(
        f"capture: {what}, which a replay would not do.\n  at {frame.filename}:{frame.lineno}: {frame.line}"
    )
