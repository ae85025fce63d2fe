"""fused_moe with the caller's plan, and the launches of its chain: four ops, and no host code in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import longcat_ops
from longcat_ops import Plan, Routing, _environment, fused_moe, reference
from longcat_ops.ops import expert_chain, registration
from longcat_ops.testing.op_cases import schema_call
from longcat_ops.testing.op_results import bits
from support.fused_moe_cases import fp8_weights, make

CHAIN = [
    "moe_permute_quant",
    "m_grouped_fp8_swiglu_gemm_nt_offset",
    "m_grouped_fp8_gemm_nt_offset",
    "moe_combine",
]
DENSE = [
    "moe_permute",
    "m_grouped_bf16_swiglu_gemm_nt_offset",
    "m_grouped_bf16_gemm_nt_offset",
    "moe_combine",
]


class _Calls(TorchDispatchMode):
    """Records (name, arguments) of every op except those that allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "longcat_ops":
            self.calls.append((func._schema.name.split("::")[1], args))
        elif func._schema.name not in ("aten::empty", "aten::new_empty", "prim::device"):
            self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


def calls_on_cuda(case: str) -> list[tuple[str, tuple]]:
    """The calls of fused_moe's CUDA path on tensors without memory: reading one on the host is an error."""
    _, arguments, _ = schema_call("fused_moe", case)
    with FakeTensorMode():
        fake = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a
            for a in arguments
        ]
        with _Calls() as recorded:
            registration.python_kernel("fused_moe")(*fake)
    assert recorded.calls[-1][1][-1] is fake[-1]  # the combine writes the caller's output
    return recorded.calls


def test_four_launches_by_a_plan_and_no_host_code_between_them() -> None:
    assert [name for name, _ in calls_on_cuda("planned")] == CHAIN
    assert [name for name, _ in calls_on_cuda("fp8")] == ["moe_plan", *CHAIN]
    assert [name for name, _ in calls_on_cuda("dense")] == ["moe_plan", *DENSE]
    assert [name for name, _ in calls_on_cuda("fp8_gate_up")] == ["moe_plan", *CHAIN[:2], *DENSE[2:]]
    assert [name for name, _ in calls_on_cuda("fp8_down")] == ["moe_plan", *DENSE[:2], *CHAIN[2:]]


class _HostReads(TorchFunctionMode):
    """Refuses what a dispatch mode does not see on a CPU: values that Python takes out of a tensor."""

    READS = ("tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu", "nonzero")

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert getattr(func, "__name__", "") not in self.READS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["fp8", "dense", "fp8_gate_up", "fp8_down"])
def test_no_value_is_read_on_the_host(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that a GPU takes, on tensors that have values; the same watch notices the check of ids."""
    _, arguments, _ = schema_call("fused_moe", case)
    run = registration.python_kernel("fused_moe")
    monkeypatch.setattr(_environment, "backend", lambda: "cpu")
    with pytest.raises(AssertionError), _HostReads():
        run(*arguments)
    monkeypatch.setattr(_environment, "backend", lambda: "emu")
    with _HostReads(), _Calls() as recorded:
        run(*arguments)
    assert [name for name, _ in recorded.calls if name == "moe_combine"]


@pytest.mark.parametrize(
    ("tokens", "experts", "hint"), [(5, 6, 5), (5, 160, 3), (64, 512, 5), (200, 512, 10), (4096, 32, 648), (1, 1, 1)]
)
def test_both_products_know_that_the_counts_are_ready_and_how_many_rows_there_can_be(
    tokens: int, experts: int, hint: int
) -> None:
    """The hint is ceil(m + 6 sqrt(m)) for m = 4 T / G rows on average, and at most T."""
    ids = torch.full((tokens, 4), -1, dtype=torch.int32)
    x, q, s = torch.zeros(tokens, 8), torch.zeros(experts, 16, 8), torch.zeros(experts, 2, 1)
    routing = Routing(ids, torch.zeros(tokens, 4), torch.zeros(tokens), *[torch.zeros(1)] * 3)
    gate_up, down = (q.to(torch.float8_e4m3fn), s), (q[:, :8].contiguous().to(torch.float8_e4m3fn), s[:, :1])
    with _Calls() as recorded:
        plan = longcat_ops.moe_plan(ids, experts)
        expert_chain.fused_moe(x, routing, gate_up, down, plan=plan, out=torch.empty_like(x))
    arguments = {name: args for name, args in recorded.calls if "gemm" in name}
    assert len(arguments) == 2
    for args in arguments.values():
        assert args[5:7] == (hint, True)


@pytest.mark.parametrize("tokens", [0, 1, 9, 40])
def test_a_plan_gives_the_same_bits_and_ids_are_not_read(tokens: int) -> None:
    x, routing, gate_up, down = make(tokens, 160, 136, dtype=torch.bfloat16)
    weights = fp8_weights(gate_up, down)
    plan = longcat_ops.moe_plan(routing.ids, len(gate_up))
    blind = routing._replace(ids=torch.full_like(routing.ids, 2**31 - 1))
    for run in (fused_moe, reference.fused_moe):
        assert bits(run(x, blind, *weights, plan=plan)) == bits(run(x, routing, *weights))


def test_a_plan_of_the_experts_that_are_here() -> None:
    """Ids of experts elsewhere have no row in the plan: the result lacks their share, but not the zero experts'."""
    x, routing, gate_up, down = make(33, 128, 64)
    gate_up, down = fp8_weights(gate_up[:2], down[:2])
    plan: Plan = longcat_ops.moe_plan(routing.ids, 2)
    here = routing._replace(ids=routing.ids.masked_fill(routing.ids >= 2, -1))
    assert (here.ids != routing.ids).any()
    assert bits(fused_moe(x, routing, gate_up, down, plan=plan)) == bits(fused_moe(x, here, gate_up, down))
