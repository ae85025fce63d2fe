"""The FP8 expert chain as one captured stream of real kernels in the host emulator: launches overlap as far as
programmatic dependent launch allows, and the GEMMs read offsets and weights before the kernel ahead of them ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from longcat_ops import Plan, Routing, reference
from longcat_ops.ops import emulated
from longcat_ops.reference.gemm import _reorder
from longcat_ops.testing.op_cases import gate_up as random_gate_up
from longcat_ops.testing.op_cases import stacked_weight
from longcat_ops.testing.op_results import bits
from support.chain_oracle import quantised_chain, widened, worst
from support.emulated_kernels import apart, run
from support.kernel_mutations import Mutation, planted

REAL, ZERO, K, HIDDEN, WIDTH, SCALE = 5, 3, 4, 160, 136, 6.0


class Chain(NamedTuple):
    """Inputs, weights and all intermediate tensors, at fixed addresses."""

    x: Tensor
    logits: Tensor
    bias: Tensor
    num_valid: Tensor
    routing: Routing
    plan: Plan
    gate_up: tuple[Tensor, Tensor]  # interleaved
    down: tuple[Tensor, Tensor]
    permuted: tuple[Tensor, Tensor]
    hidden: tuple[Tensor, Tensor]
    y: Tensor
    out: Tensor


def make_chain(tokens: int) -> Chain:
    torch.manual_seed(tokens)
    rows, experts = tokens * min(K, REAL), REAL + ZERO
    routing = Routing(
        torch.empty(tokens, K, dtype=torch.int32),
        torch.empty(tokens, K),
        torch.empty(tokens),
        torch.empty(tokens, dtype=torch.uint8),
        torch.empty(experts, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
    )
    tables = ((REAL + 1,), (tokens, K), (rows,))
    return Chain(
        x=torch.empty(tokens, HIDDEN, dtype=torch.bfloat16),
        logits=torch.empty(tokens, experts),
        bias=torch.randn(experts) * 0.05,
        num_valid=torch.empty(1, dtype=torch.int32),
        routing=routing,
        plan=Plan(*(torch.empty(shape, dtype=torch.int32) for shape in tables)),
        gate_up=reference.interleave_gate_up(*random_gate_up(REAL, WIDTH, HIDDEN)),
        down=stacked_weight(REAL, HIDDEN, WIDTH),
        permuted=(apart(rows, HIDDEN, torch.float8_e4m3fn), torch.empty(rows, 2)),
        hidden=(torch.zeros(rows, WIDTH).to(torch.float8_e4m3fn), torch.zeros(rows, 2)),
        y=torch.zeros(rows, HIDDEN, dtype=torch.bfloat16),
        out=torch.empty(tokens, HIDDEN, dtype=torch.bfloat16),
    )


def change_inputs(c: Chain, seed: int, num_valid: int) -> None:
    g = torch.Generator().manual_seed(seed)
    c.x.copy_(torch.randn(c.x.shape, generator=g))
    c.logits.copy_(torch.randn(c.logits.shape, generator=g) * 2)
    c.num_valid.fill_(num_valid)


def launch_route(c: Chain) -> None:
    run("moe_route", c.logits, c.bias, c.num_valid, K, REAL + ZERO, ZERO, SCALE, *c.routing)


def launch_plan(c: Chain) -> None:
    run("moe_plan", c.routing.ids, REAL, c.routing.weights, *c.plan)


def launch_permute(c: Chain) -> None:
    run("moe_permute_quant", c.x, c.plan.row_of, c.plan.src_of, *c.permuted)


def launch_gate_up(c: Chain) -> None:
    run("m_grouped_fp8_swiglu_gemm_nt_offset", *c.permuted, *c.gate_up, c.plan.offsets, len(c.x), True, *c.hidden)


def launch_down(c: Chain) -> None:
    run("m_grouped_fp8_gemm_nt_offset", *c.hidden, *c.down, c.plan.offsets, len(c.x), True, 1, c.y)


def launch_combine(c: Chain) -> None:
    run("moe_combine", c.y, c.plan.row_of, c.routing.weights, c.routing.zero_weight, c.x, None, c.out)


LAUNCHES = (launch_route, launch_plan, launch_permute, launch_gate_up, launch_down, launch_combine)


@pytest.mark.parametrize(
    ("tokens", "policy", "mma"),
    [
        (7, "random", "exact"),
        (7, "eager", "exact"),
        (7, "lazy", "hopper"),
        (19, "eager", "exact"),
        pytest.param(8192 // K + 1, "eager", "exact", marks=pytest.mark.slow),  # moe_plan takes a cluster
        pytest.param(16384 // K + 1, "eager", "exact", marks=pytest.mark.slow),  # moe_plan takes three launches
    ],
)
def test_replayed_with_other_inputs_it_gives_what_single_launches_give(tokens: int, policy: str, mma: str) -> None:
    """A captured chain, replayed after x, logits and num_valid changed in place, has the bits of single launches and is
    within its fp64 bound; the host reads nothing until the end."""
    emulated.configure(3, policy, mma=mma, sms=2)
    chain = make_chain(tokens)
    with emulated.capture() as replay:
        for launch in LAUNCHES:
            launch(chain)
    experts, outs = widened(_reorder(*chain.gate_up, undo=True), chain.down), set()
    for seed, valid in ((1, tokens), (2, tokens - 3), (3, 1), (4, 0)):
        change_inputs(chain, seed, valid)
        replay()
        out = chain.out.clone()
        assert not out[valid:].any() and out[:valid].isfinite().all()
        assert int(chain.plan.offsets[-1]) == int(chain.routing.num_real.sum())
        value, limit = quantised_chain(chain.x, chain.routing, experts, tensor_cores=mma == "hopper")
        assert worst((out.double() - value).abs(), limit) <= 1
        for launch in LAUNCHES:
            launch(chain)
        assert bits(out) == bits(chain.out)
        outs.add(bits(out)[0])
    assert len(outs) == 4


def test_offsets_are_not_ready_behind_the_plan_alone() -> None:
    """counts_ready must be false right behind moe_plan; moe_permute_quant in between allows true."""
    chain = make_chain(7)
    change_inputs(chain, 1, 7)
    for launch in LAUNCHES:
        launch(chain)
    with emulated.capture() as replay:
        launch_plan(chain)
        launch_down(chain)
    with pytest.raises(emulated.EmulatorError, match=r"race|uninitialised"):
        replay()
    with emulated.capture() as replay:
        launch_plan(chain)
        launch_permute(chain)
        launch_down(chain)
    replay()


WAIT, TRIGGER = "  ptx::grid_dependency_wait();\n", "  ptx::grid_dependency_launch();\n"
EARLY = Mutation(
    "triggers_before_it_waits", "moe_dispatch/moe_permute_quant.cu", "moe_dispatch/moe_permute_quant.cuh", WAIT,
    TRIGGER + WAIT,
)  # fmt: skip


def test_a_permute_that_triggers_before_it_waits_makes_counts_ready_wrong(tmp_path: Path) -> None:
    """Such a kernel is right by itself, so single launches pass and only the chain shows the bug."""
    chain = make_chain(7)
    change_inputs(chain, 1, 7)
    with planted(EARLY, tmp_path, whole=True):
        emulated.configure(1)
        for launch in LAUNCHES:
            launch(chain)
        with emulated.capture() as replay:
            for launch in LAUNCHES:
                launch(chain)
        with pytest.raises(emulated.EmulatorError, match=r"race|uninitialised"):
            replay()


PREFETCH = "for (const ptx::TensorMap& map : p.token_map) ptx::prefetch_tensormap(&map);\n"
PRODUCT_EARLY = Mutation(
    "triggers_before_it_waits", "gemm/moe_swiglu_gemm.cu", "gemm/producer.cuh", PREFETCH + WAIT,
    PREFETCH + TRIGGER + WAIT,
)  # fmt: skip


@pytest.mark.slow
def test_when_the_first_product_triggers_does_not_matter(tmp_path: Path) -> None:
    """The second GEMM may start before the first has waited, but not before the first has started."""
    chain = make_chain(7)
    change_inputs(chain, 1, 7)
    with planted(PRODUCT_EARLY, tmp_path, whole=True):
        for policy in emulated.POLICIES:
            emulated.configure(2, policy)
            with emulated.capture() as replay:
                for launch in LAUNCHES:
                    launch(chain)
            replay()
