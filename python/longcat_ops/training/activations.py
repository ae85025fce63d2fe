"""Activations that grow without bound: the loss that holds them down, and a monitor that sees them come.

LongCat-Flash technical report (arXiv:2509.01322), section 3.1.3, "Activation Stability via Hidden z-loss".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .checks import require, require_floats, require_int, require_number, wide

# A massive activation is above 100, and 1000 times the median of its hidden state (Sun et al., arXiv:2402.17762).
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0


def hidden_z_loss(z: Tensor, weight: float) -> Tensor:
    """Hidden z-loss: weight / T * sum over tokens of (log sum_i exp |z_ti|)^2 (report, equation 10).

    It grows with the largest elements of a row and hardly with the others. The report finds a very small weight enough.

    Args:
        z: [..., H] floating: the output of the last layer for each of T tokens, before the final norm, without padding.
        weight: lambda, at least 0.

    Returns:
        f32 [], or f64 for z in f64.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    require_floats("hidden_z_loss", "z", z, "[..., H]")
    require_number("hidden_z_loss", "weight", weight, least=0)
    return weight * torch.logsumexp(wide(z).abs(), -1).square().mean()


@dataclass(frozen=True)
class Activations:
    """What a monitor saw of a module's output.

    calls, elements: how many it looked at. largest: magnitude; NaN if an element was NaN. mean: of the elements.
    kurtosis: their fourth moment about the mean over the square of their variance, 3 for a normal distribution; NaN if
    all are equal. massive: elements above 100 in magnitude and at least 1000 times the median magnitude of their row.
    """

    calls: int
    elements: int
    largest: float
    mean: float
    kurtosis: float
    massive: int


class ActivationMonitor:
    """What `activation_monitor` hands out; sums stay on the device of the activations until `read`."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._met: dict[str, int] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # calls, elements
        self._middle: dict[
            str, Tensor
        ] = {}  # the mean of the first output, [1]: powers of the distance to it stay small
        self._sums: dict[str, Tensor] = {}  # f64 [6], see _sums

    def read(self) -> dict[str, Activations]:
        """Module name -> what was seen of it so far, of each module that was called; read on the host."""
        return {name: self._result(name) for name in self._sums}

    def _result(self, name: str) -> Activations:
        (calls, elements), middle = self._seen[name], self._middle[name].item()
        largest, massive, *powers = self._sums[name].tolist()
        m1, m2, m3, m4 = (total / elements for total in powers)
        variance = m2 - m1 * m1
        fourth = m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4
        kurtosis = fourth / variance**2 if variance > 0 else float("nan")
        return Activations(calls, elements, largest, middle + m1, kurtosis, int(massive))

    @torch.no_grad()
    def _look(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """The forward hook of a module."""
        x = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
            return
        met = self._met[name] = self._met.get(name, -1) + 1
        if met % self._every:
            return
        x, old = wide(x.detach()), self._sums.get(name)
        if old is None:
            self._middle[name] = x.mean().reshape(1)
        new, (calls, elements) = _sums(x, self._middle[name]), self._seen.get(name, (0, 0))
        self._seen[name] = calls + 1, elements + x.numel()
        if old is not None:  # out of place: under inference_mode, tensors cannot be written to later
            new = torch.cat((torch.maximum(old[:1], new[:1]), old[1:] + new[1:]))
        self._sums[name] = new


def _sums(x: Tensor, middle: Tensor) -> Tensor:
    """f64 [6] of activations [..., H]: largest magnitude, massive ones, sums of x - middle to the powers 1, 2, 3, 4."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)
    magnitude = rows.abs()
    largest = magnitude.amax()
    massive = torch.zeros((), dtype=torch.float64, device=x.device)
    if x.device.type != "cpu" or largest > MASSIVE:  # the median costs most, and on a CPU a look is free
        median = magnitude.median(-1, keepdim=True).values
        massive = ((magnitude > MASSIVE) & (magnitude >= MASSIVE_RATIO * median)).sum().double()
    away = rows - middle
    square = away * away
    powers = [term.sum(dtype=torch.float64) for term in (away, square, square * away, square * square)]
    return torch.stack((largest.double(), massive, *powers))


@contextmanager
def activation_monitor(
    model: nn.Module, names: Iterable[str] | None = None, *, every: int = 1
) -> Iterator[ActivationMonitor]:
    """Watches the outputs of modules, by forward hooks that are gone when the context ends.

    The report ties massive activations to spikes of the loss. A look at an output costs some ten passes over it, in f32
    and summed in f64, on its device; nothing is read on the host before `read`, but for a CPU. Of an output that is
    a tuple or a list the first element counts; outputs that are no floating tensors are passed over. Activations that a
    checkpoint recomputes are seen twice.

    Args:
        model: any module. names: of the submodules to watch, as `model.named_modules()` has them; None: all of them.
        every: looks at the first of so many calls of each module, at least 1.

    Returns:
        A context whose value is an ActivationMonitor: `read()` gives {name: Activations}, during and after it.

    Raises:
        LongcatShapeError: model is no module, a name is none of its submodules, or every is below 1.
    """
    op = "activation_monitor"
    require(isinstance(model, nn.Module), op, "model", f"of type {type(model).__name__}", "a torch.nn.Module")
    require_int(op, "every", every, 1)
    modules = dict(model.named_modules())
    wanted = list(modules) if names is None else list(names)
    unknown = [name for name in wanted if name not in modules]
    require(not unknown, op, "names", f"with {unknown[:1]}", f"names of the {len(modules)} modules of the model")
    monitor, hooks = ActivationMonitor(every), []
    try:
        for name in dict.fromkeys(wanted):
            hooks.append(modules[name].register_forward_hook(partial(monitor._look, name)))
        yield monitor
    finally:
        for hook in hooks:
            hook.remove()
