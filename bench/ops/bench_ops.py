"""What a call of each op costs above the work of its kernel, on CPU tensors, beside a bare torch op as the yardstick.

    python -m pytest bench/ops/bench_ops.py [-k moe_route]

Two ways in: the Python function of `longcat_ops` (which allocates outputs) and `torch.ops.longcat_ops` (which does
not). For an op that runs its reference, the kernel's work is a direct call of that on the same arguments. A C++
kernel has no work, since the case without tokens is timed (interleave_gate_up has no such case: its copy is counted).
Calls take turns, round by round, so that a drift of the machine hits all of them; medians of 25 rounds of 200 calls on
one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from longcat_ops.ops import registration
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import CASES, public, schema_call

ROUNDS, CALLS = 25, 200


def microseconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median time of one call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                run()
            seconds[name].append((time.perf_counter() - start) / CALLS)
    return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}


@pytest.mark.parametrize("op", OPS)
def test_call_overhead(op: str, benchmark: Callable) -> None:
    torch.set_num_threads(1)
    native = op in registration.CPU_KERNELS
    names = list(CASES[op])
    overload, arguments, made = schema_call(op, "empty" if native and "empty" in names else names[0])
    function, small, out = public(op), torch.zeros(8), torch.zeros(8)
    ways = {
        "function": lambda: function(*made.args, **made.kwargs),
        "torch.ops": lambda: overload(*arguments),
        "torch.neg": lambda: torch.neg(small, out=out),
    }
    if not native:
        kernel = registration.python_kernel(op)
        ways["kernel"] = lambda: kernel(*arguments)
    with torch.inference_mode():
        for run in ways.values():
            run()
        us = microseconds(ways)
        benchmark.pedantic(ways["function"], rounds=1)
    work = us.get("kernel", 0.0)
    benchmark.group = "call overhead"
    benchmark.extra_info.update(
        op=op, backend="C++" if native else "reference", kernel_us=round(work, 1),
        function_us=round(us["function"] - work, 1), torch_ops_us=round(us["torch.ops"] - work, 1),
        torch_neg_us=round(us["torch.neg"], 2),
    )  # fmt: skip
