"""How long things take, beside a named peer in the same run: replays of CUDA graphs that take turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import longcat_ops
from chains import bench_fused_moe
from device_check.machine import Machine
from device_check.questions.smoke import doubled, routed
from device_check.questions.smoke_attention import paged
from longcat_ops import reference
from longcat_ops.perf import attention as counts
from longcat_ops.perf import by_name, predict
from longcat_ops.perf.chain import Share
from longcat_ops.testing.op_results import to_device
from peers import OURS, PEERS, Peer, latent_attention
from products import moe_gemm_problem
from products.moe_gemm_problem import Cell
from products.router_calls import router_calls

Run = Callable[[], object]


def product(machine: Machine, n: int, k: int, groups: int, tokens: int, peers: str = "") -> dict[str, Any]:
    """A grouped product beside peers. peers: parts of their names, separated by commas. Calls take turns on copies of
    the operands, 4 times L2 in all."""
    name = f"{n}x{k}"
    moe_gemm_problem.SHAPES.setdefault(name, (n, k))
    cell = Cell(name, groups, tokens)
    problem = moe_gemm_problem.Problem(cell, machine.device, machine.l2_bytes)
    chosen = [OURS, *(peer for peer in PEERS if any(part and part in peer.name for part in peers.split(",")))]
    ways, reasons = {}, {}
    for peer in chosen:
        found = _prepared(peer, problem, machine)
        (reasons if isinstance(found, str) else ways)[peer.name] = found
    assert OURS.name in ways, reasons[OURS.name]
    times = machine.times(ways)
    ours = times[OURS.name]["us"]
    ratios = {name: round(t["us"] / ours, 3) for name, t in times.items() if name != OURS.name}
    rate = round(1e-3 * cell.bytes / ours, 1)
    return {"bytes": cell.bytes, "flops": cell.flops, "gb_per_s": rate, "times": times, "peer_over_ours": ratios,
            "absent": reasons}  # fmt: skip


def _prepared(peer: Peer, problem: moe_gemm_problem.Problem, machine: Machine) -> list[Run] | str:
    """The calls, after a check of the first one's values; or why there are none."""
    if (machine.real or peer is not OURS) and (reason := peer.available()):
        return reason
    try:
        calls = peer.prepare(problem)
        for call in calls:
            call.run()
        return problem.disagreement(calls[0].rows(), peer.rounding) or [call.run for call in calls]
    except Exception as error:  # a peer must not end the question
        return f"{type(error).__name__}: {str(error)[:200]}"


def chain(
    machine: Machine, tokens: int, ranks: int, hidden: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """fused_moe by a plan, beside the same experts unfused."""
    share = Share(tokens, ranks)
    problem = bench_fused_moe.Problem(share, machine.device, hidden, width)
    ways = {name: bench_fused_moe.CHAINS[name](problem) for name in bench_fused_moe.OURS}
    expected = ways["fused"]()
    for name, run in ways.items():
        assert not (wrong := bench_fused_moe.disagreement(run(), expected)), f"{name}: {wrong}"
    times = machine.times({name: [run] for name, run in ways.items()})
    ratio = round(times["unfused"]["us"] / times["fused"]["us"], 3)
    active, rows = int((problem.counts > 0).sum()), int(problem.counts.sum())
    weights = active * sum(t[0].nbytes for t in (*problem.gate_up, *problem.down))
    rate = round(1e-3 * weights / times["fused"]["us"], 1)
    return {"experts": active, "rows": rows, "weight_bytes": weights, "gb_per_s": rate, "times": times,
            "unfused_over_fused": ratio}  # fmt: skip


def layer(machine: Machine, hidden: int, width: int, experts: int, top_k: int, tokens: int) -> dict[str, Any]:
    """Routing and experts of a whole layer on one device: route, plan, permute, gate_up, down, combine. All experts
    have the same number of rows: token t takes the experts t, t + 1, ... in rounds."""
    g = torch.Generator(machine.device).manual_seed(0)
    halves = moe_gemm_problem.random_weights(experts, 2 * width, hidden, machine.device, g)
    gate_up = longcat_ops.interleave_gate_up(*halves)
    down = moe_gemm_problem.random_weights(experts, hidden, width, machine.device, g)
    x = torch.randn(tokens, hidden, device=machine.device, generator=g).bfloat16()
    first = torch.arange(tokens, device=machine.device)[:, None] * top_k
    chosen = (first + torch.arange(top_k, device=machine.device)) % experts
    logits = torch.zeros(tokens, experts, device=machine.device).scatter_(1, chosen, 8.0)
    bias = torch.zeros(experts, device=machine.device)
    sizes = {"top_k": top_k, "num_experts": experts, "num_zero_experts": 0, "scale": 1.0}

    def run() -> Tensor:
        return longcat_ops.fused_moe(x, longcat_ops.moe_route(logits, bias, **sizes), gate_up, down)

    assert bool(run().isfinite().all()), "the layer's result is not finite"
    us = machine.times({"layer": [run]})["layer"]
    weights = sum(t.nbytes for t in (*gate_up, *down))
    rate = round(1e-3 * weights / us["us"], 1)
    return {"rows_an_expert": tokens * top_k / experts, "weight_bytes": weights, "gb_per_s": rate, "times": us}


def quantisation(machine: Machine, tokens: int, width: int) -> dict[str, Any]:
    """Each quantiser at one size; bytes read and written, each once."""
    x = torch.randn(tokens, width, device=machine.device).bfloat16()
    wide = torch.randn(tokens, 2 * width, device=machine.device).bfloat16()
    weight = torch.rand(width, device=machine.device)
    fp8, elements = 1 + 4 / 128, tokens * width
    ops: dict[str, tuple[float, Run]] = {
        "per_token_group_quant_fp8": (2 + fp8, partial(longcat_ops.per_token_group_quant_fp8, x)),
        "silu_and_mul_quant_fp8": (4 + fp8, partial(longcat_ops.silu_and_mul_quant_fp8, wide)),
        "rms_norm_quant_fp8": (4 + fp8, partial(longcat_ops.rms_norm_quant_fp8, x, weight, 1e-5)),
        "per_block_quant_fp8": (3, partial(longcat_ops.per_block_quant_fp8, x)),
    }
    for _, run in ops.values():
        run()
    times = machine.times({name: [run] for name, (_, run) in ops.items()})
    rates = {name: round(1e-3 * elements * ops[name][0] / t["us"], 1) for name, t in times.items()}
    return {"times": times, "gb_per_s": rates}


def dispatch(machine: Machine, tokens: int, width: int, experts: int, zero: int, top_k: int) -> dict[str, Any]:
    """moe_route, moe_place, moe_plan, both permutes, moe_combine, beside the reference in torch where it reads nothing
    on the host; and router_gemm, beside torch's product in float32."""
    logits, bias, sizes = routed(tokens, experts, zero, top_k)
    logits, bias = logits.to(machine.device), bias.to(machine.device)
    routing = longcat_ops.moe_route(logits, bias, **sizes)
    plan = longcat_ops.moe_plan(routing.ids, experts - zero, routing.weights)
    x = torch.randn(tokens, width, device=machine.device).bfloat16()
    y = torch.randn(len(plan.src_of), width, device=machine.device).bfloat16()
    calls: dict[str, tuple[tuple, dict]] = {
        "moe_route": ((logits, bias), sizes),
        "moe_place": ((routing.ids, to_device(doubled(experts - zero), machine.device), 27), {}),
        "moe_plan": ((routing.ids, experts - zero, routing.weights), {}),
        "moe_permute": ((x, plan), {}),
        "moe_permute_quant": ((x, plan), {}),
        "moe_combine": ((y, plan, routing, x), {}),
    }
    ways: dict[str, list[Run]] = {}
    for op, (args, kwargs) in calls.items():
        for name, module in ((op, longcat_ops), (f"torch {op}", reference)):
            ways[name] = [partial(getattr(module, op), *args, **kwargs)]
            ways[name][0]()
    ways["router_gemm"], ways["torch router_gemm"] = (
        list(runs) for runs in router_calls(tokens, experts, width, machine.device, machine.l2_bytes)
    )
    for run in (*ways["router_gemm"], *ways["torch router_gemm"]):
        run()
    return {"times": machine.times(ways)}


def attention(machine: Machine, sequences: int, rows: int, context: int, splits: list[int], heads: int, latent: int,
              rope: int) -> dict[str, Any]:  # fmt: skip
    """mla_decode by split_rows, beside public kernels of it, whose results must agree."""
    q, pages, table, sequence, position = to_device(paged(sequences, rows, context, heads, latent, rope),
                                                    machine.device)  # fmt: skip
    pages.nan_to_num_()  # peers read what lies past the position
    scale = (latent + rope) ** -0.5
    call = {"latent": latent, "scale": scale}
    ways: dict[str, list[Run]] = {
        f"split_rows {split}": [partial(longcat_ops.mla_decode, q, pages, table, sequence, position, **call,
                                        split_rows=split)] for split in splits
    }  # fmt: skip
    results, absent = [run() for (run,) in ways.values()], {}
    ours = results[0].float()
    lengths = position.view(-1, rows)[:, -1] + 1
    for name, (available, prepare) in latent_attention.PEERS.items():
        if reason := available():
            absent[name] = reason
            continue
        try:
            run = prepare(latent_attention.Problem(q, pages, table, lengths.contiguous(), rows, scale))
            off = float((run().float() - ours).abs().max() / ours.abs().max())
            ways[name], absent[name] = [run], f"differs by {off:.4f} of the largest value"
            if off > 0.02:
                del ways[name]
        except Exception as error:  # a peer must not end the question
            absent[name] = f"{type(error).__name__}: {str(error)[:200]}"
    times = machine.times(ways)
    shape = counts.Call(sequences, rows, context)
    least = counts.floor_counts(shape)
    predicted = str(
        predict(counts.mla_decode(shape), by_name(torch.cuda.get_device_name() if machine.real else "H100"))
    )
    return {"bytes": least.bytes, "flops": least.flops, "times": times, "predicted_us_at_512": predicted,
            "peers": absent}  # fmt: skip
