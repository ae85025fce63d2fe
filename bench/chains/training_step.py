"""A training step of a layer's experts on a CPU: router, dense chain, loss, backward, SGD. Through the ops of
`longcat_ops.training.functional`, and in plain torch, whose autograd makes the gradients.

    python bench/chains/training_step.py [--size tiny|medium] [--threads N]

Of each size and dtype: the loss of 4 steps from the same weights, and how far the losses are apart; whether a second
run has the same bits; what the forward keeps for the backward, beside weights and data; the median time of a step, of 7
rounds in which the ways take turns; the peak of a process of its own above what it held with weights and data (VmHWM).
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "python")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from longcat_ops import reference  # noqa: E402
from longcat_ops.training import functional  # noqa: E402

STEPS, ROUNDS, RATE = 4, 7, 0.05


@dataclass(frozen=True)
class Size:
    tokens: int
    hidden: int
    width: int
    experts: int
    zero: int
    top_k: int


SIZES = {
    "tiny": Size(tokens=512, hidden=256, width=128, experts=32, zero=16, top_k=6),  # a layer of longcat-tiny
    "medium": Size(tokens=512, hidden=1024, width=512, experts=64, zero=32, top_k=12),  # of engine/networks.py
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SCALE = 6.0


class Layer:
    """Weights and data. gate_up lies as each way wants it, with the same values; the router's weight is float32."""

    def __init__(self, size: Size, dtype: torch.dtype, interleaved: bool) -> None:
        g = torch.Generator().manual_seed(0)

        def drawn(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=g) * scale

        s = self.size = size
        gate_up = drawn(s.experts, 2 * s.width, s.hidden, scale=s.hidden**-0.5)
        if interleaved:
            gate_up = reference.interleave_gate_up(gate_up)
        down = drawn(s.experts, s.hidden, s.width, scale=s.width**-0.5)
        router = drawn(s.experts + s.zero, s.hidden, scale=s.hidden**-0.5)
        self.bias = drawn(s.experts + s.zero, scale=1e-3)
        self.x = drawn(s.tokens, s.hidden).to(dtype)
        self.target = drawn(s.tokens, s.hidden).to(dtype)
        self.weights = [gate_up.to(dtype).requires_grad_(), down.to(dtype).requires_grad_(), router.requires_grad_()]

    def step(self, chain: Callable[[Layer, Tensor], Tensor]) -> float:
        """One step of SGD; the loss before it."""
        loss = F.mse_loss(chain(self, F.linear(self.x.float(), self.weights[2])).float(), self.target.float())
        loss.backward()
        with torch.no_grad():
            for weight in self.weights:
                weight.sub_(weight.grad, alpha=RATE)
                weight.grad = None
        return loss.item()


def ours(layer: Layer, logits: Tensor) -> Tensor:
    s = layer.size
    routing, _ = functional.moe_route(
        logits, layer.bias, top_k=s.top_k, num_experts=s.experts + s.zero, num_zero_experts=s.zero, scale=SCALE
    )
    return functional.fused_moe(layer.x, routing, *layer.weights[:2])


def plain(layer: Layer, logits: Tensor) -> Tensor:
    """The same in torch: rows of each expert gathered, weighted outputs added in float32. Weights are unbound, for the
    backward of an index would make a whole weight of zeros for each expert."""
    s, (gate_up, down, _) = layer.size, layer.weights
    probs = logits.softmax(-1)
    ids = torch.sort(probs.detach() + layer.bias, dim=-1, descending=True, stable=True).indices[:, : s.top_k]
    weights = probs.gather(1, ids) * SCALE
    zero = (weights * (ids >= s.experts)).sum(1)
    out = zero[:, None] * layer.x.float()
    for e, (w_gate_up, w_down) in enumerate(zip(gate_up.unbind(), down.unbind(), strict=True)):
        tokens, k = (ids == e).nonzero(as_tuple=True)
        if len(tokens):
            gate, up = F.linear(layer.x[tokens], w_gate_up).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, w_down)
            out = out.index_add(0, tokens, weights[tokens, k, None] * y.float())
    return out.to(layer.x.dtype)


WAYS = {"ours": ours, "plain": plain}


def losses(size: Size, dtype: torch.dtype, way: str, steps: int = STEPS) -> tuple[list[float], list[Tensor]]:
    """The loss before each step, and the weights behind the last."""
    layer = Layer(size, dtype, way == "ours")
    return [layer.step(WAYS[way]) for _ in range(steps)], [w.detach() for w in layer.weights]


def same_bits(size: Size, dtype: torch.dtype, way: str) -> bool:
    (first, weights), (again, others) = (losses(size, dtype, way) for _ in range(2))
    return first == again and all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def kept(size: Size, dtype: torch.dtype, way: str) -> float:
    """MB that autograd keeps from the forward to the backward, beside weights and data."""
    layer, found = Layer(size, dtype, way == "ours"), {}
    own = {t.untyped_storage().data_ptr() for t in (*layer.weights, layer.x, layer.target)}

    def keep(t: Tensor) -> Tensor:
        memory = t.untyped_storage()
        found[memory.data_ptr()] = memory  # held, or its address would serve another tensor
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer.step(WAYS[way])
    return sum(memory.nbytes() for place, memory in found.items() if place not in own) / 1e6


def status(field: str) -> float:
    """MB of this process."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


def memory(name: str, dtype: str, way: str) -> float:
    """MB that a step holds at most above weights and data. The first step, on a small layer, loads what torch loads."""
    Layer(Size(8, 64, 16, 4, 2, 2), DTYPES[dtype], way == "ours").step(WAYS[way])
    layer = Layer(SIZES[name], DTYPES[dtype], way == "ours")
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, or it would serve the step
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    layer.step(WAYS[way])
    return status("VmHWM") - held


def main() -> None:
    from report import cpu_time, devices

    options = argparse.ArgumentParser()
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--size", choices=SIZES)
    options.add_argument("--memory-of", nargs=3)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory_of:
        print(memory(*given.memory_of))
        return
    print(f"{devices.cpu_name()}, {given.threads} threads, torch {torch.__version__}")
    for name in [given.size] if given.size else SIZES:
        size = SIZES[name]
        print(f"{name}: {size}")
        for kind, dtype in DTYPES.items():
            found = {way: losses(size, dtype, way)[0] for way in WAYS}
            apart = max(abs(a - b) / b for a, b in zip(*found.values(), strict=True))
            layers = {way: Layer(size, dtype, way == "ours") for way in WAYS}
            runs = {way: lambda layer=layers[way], run=run: layer.step(run) for way, run in WAYS.items()}
            seconds = {way: cpu_time.quantiles(times) for way, times in cpu_time.in_turns(runs, ROUNDS).items()}
            for way in WAYS:
                command = [sys.executable, __file__, "--threads", str(given.threads), "--memory-of", name, kind, way]
                peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                low, median, high = (1e3 * s for s in seconds[way])
                again = "yes" if same_bits(size, dtype, way) else "no"
                print(
                    f"  {kind} {way:5s} losses {' '.join(f'{loss:.6f}' for loss in found[way])}, the same bits again: "
                    f"{again}; keeps {kept(size, dtype, way):.1f} MB, peak {peak:.1f} MB; "
                    f"{median:.1f} ms ({low:.1f} .. {high:.1f})"
                )
            ratio = seconds["plain"][1] / seconds["ours"][1]
            print(f"  {kind}: losses at most {apart:.1e} apart; plain takes {ratio:.2f} times the time of ours")


if __name__ == "__main__":
    main()
