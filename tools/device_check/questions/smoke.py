"""Does every kernel compute what it should, at the model's sizes? Kernels must have the bits of the CPU kernels, norms
and SwiGLU must be within a rounding of fp64, and products must be within their bound of a float32 product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import longcat_ops
from device_check.machine import Machine
from longcat_ops import Placement, Plan, Routing, reference
from longcat_ops.testing.op_results import tensors, to_device
from products import moe_gemm_problem
from products.moe_gemm_problem import Cell

SPLITS = (2, 4)


def same_bits(name: str, ours: Any, expected: Any) -> None:
    """Raises AssertionError with the first difference of two results."""
    for index, (one, other) in enumerate(zip(tensors(ours), tensors(expected), strict=True)):
        one, other = one.cpu().contiguous(), other.cpu().contiguous()
        assert one.shape == other.shape and one.dtype == other.dtype, f"{name}[{index}]: {one.shape}, {other.shape}"
        if not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            wide = torch.float32 if one.dtype.is_floating_point else torch.int64
            wrong = (one.to(wide) != other.to(wide)).nonzero()
            at = wrong[0].tolist() if len(wrong) else "NaN or zeros"
            raise AssertionError(f"{name}[{index}]: {len(wrong)} of {one.numel()} values differ, the first at {at}")


def against_cpu(machine: Machine, op: str, *args: Any, **kwargs: Any) -> Any:
    """The result of `op` on the machine, which must have the bits of the CPU kernel."""
    run = getattr(longcat_ops, op)
    ours = run(*to_device(args, machine.device), **{k: to_device(v, machine.device) for k, v in kwargs.items()})
    machine.synchronize()
    expected = run(*args, **kwargs)
    same_bits(op, ours, expected)
    return expected


def quantisers(machine: Machine, tokens: int, width: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(tokens)

    def rows(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=g).bfloat16()
        values[-1, :128] = 0  # a group of zeros
        return values

    x, weight = rows(tokens, width), torch.rand(width, generator=g) + 0.5
    pair = against_cpu(machine, "per_token_group_quant_fp8", x)
    against_cpu(machine, "per_token_group_quant_fp8", x, column_major_scales=True)
    against_cpu(machine, "dequant_fp8", *pair)
    against_cpu(machine, "per_block_quant_fp8", rows(tokens + 128, width))
    for residual in (None, rows(tokens, width)):
        norms(machine, x, weight, residual)
    gate_up = rows(tokens, 2 * width)
    swiglu_codes(*longcat_ops.silu_and_mul_quant_fp8(gate_up.to(machine.device)), gate_up)
    return {"ops": 5}


def norms(machine: Machine, x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    """rms_norm_quant_fp8: y beside fp64, since a GPU sums in an order of its own; codes and scales are those of y."""
    there = to_device((x, weight), machine.device)
    other = None if residual is None else residual.to(machine.device)
    q, s, y, total = longcat_ops.rms_norm_quant_fp8(*there, 1e-5, other)
    if residual is not None:
        same_bits("x + residual", total, x + residual)
        x = x + residual
    near("rms_norm_quant_fp8", y, reference.rms_norm(x.double(), weight.double(), 1e-5))
    same_bits("codes of the norm", (q, s), longcat_ops.per_token_group_quant_fp8(y.cpu()))


def swiglu_codes(q: Tensor, s: Tensor, gate_up: Tensor) -> None:
    """Scales within float32's rounding of fp64's, and codes within half a step, since a GPU has an exp of its own."""
    h = reference.silu_and_mul(gate_up.double())
    groups = torch.nn.functional.pad(h, (0, -h.shape[1] % 128)).unflatten(1, (-1, 128))
    scale = groups.abs().amax(-1).clamp(min=1e-4) / 448
    s, codes = s.cpu().double(), q.cpu().float().double()
    assert ((s - scale).abs() <= 2.0**-20 * scale).all(), "silu_and_mul_quant_fp8: a scale is off"
    each = s.repeat_interleave(128, 1)[:, : h.shape[1]]
    wrong = ~((codes * each - h).abs() <= (2.0**-4 + 2.0**-12) * h.abs() + 2.0**-9 * each)
    assert not wrong.any(), f"silu_and_mul_quant_fp8: {int(wrong.sum())} of {h.numel()} codes are off"


def routed(tokens: int, experts: int, zero: int, top_k: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(tokens)
    sizes = {"top_k": top_k, "num_experts": experts, "num_zero_experts": zero, "scale": 6.0}
    return torch.randn(tokens, experts, generator=g), torch.randn(experts, generator=g) * 0.05, sizes


def doubled(experts: int) -> Placement:
    """Two replicas of each expert."""
    slots = torch.arange(2 * experts, dtype=torch.int32)
    return Placement(slots.view(2, experts).t().contiguous(), torch.full_like(slots[:experts], 2), slots % experts)


def dispatch(machine: Machine, tokens: int, width: int, experts: int, zero: int, top_k: int) -> dict[str, Any]:
    """Route, place, plan, permute, combine."""
    logits, bias, sizes = routed(tokens, experts, zero, top_k)
    routing: Routing = against_cpu(machine, "moe_route", logits, bias, **sizes)
    plan: Plan = against_cpu(machine, "moe_plan", routing.ids, experts - zero, routing.weights)
    against_cpu(machine, "moe_place", routing.ids, doubled(experts - zero), 27)
    named = routing.ids.clamp(min=0)  # a zero expert as expert 0 of weight 0
    same_bits("moe_plan of id 0, weight 0", longcat_ops.moe_plan(named, experts - zero, routing.weights), plan)
    against_cpu(machine, "moe_plan", routing.ids, max(1, (experts - zero) // 8))
    used = int(plan.offsets[-1])
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1)).bfloat16()
    there = to_device((x, plan), machine.device)
    for op in (longcat_ops.moe_permute, longcat_ops.moe_permute_quant):
        ours, expected = tensors(op(*there)), tensors(op(x, plan))
        same_bits(op.__name__, [t[:used] for t in ours], [t[:used] for t in expected])
    y = torch.randn(len(plan.src_of), width, generator=torch.Generator().manual_seed(2)).bfloat16()
    against_cpu(machine, "moe_combine", y, plan, routing, x)
    against_cpu(machine, "moe_combine", y, plan, routing, x, x.flip(0))
    return {"rows": used}


def latents(machine: Machine, tokens: int, latent: int, width: int) -> dict[str, Any]:
    """Latent rows of tokens of as many sequences, each at a position of its own, and of one token without a place. CPU
    and GPU sum squares in orders of their own."""
    g = torch.Generator().manual_seed(tokens)
    position = 37 * torch.arange(tokens, dtype=torch.int32) % 5000
    position[-1] = -1
    pages = torch.randperm(79 * tokens, generator=g).int().view(tokens, 79)
    angle = torch.rand(5000, width // 2, generator=g)
    kv, weight = torch.randn(tokens, latent + width, generator=g).bfloat16(), torch.rand(latent, generator=g) + 0.5
    rope, sequence = torch.stack([angle.cos(), angle.sin()], -1).flatten(1), torch.arange(tokens, dtype=torch.int32)
    rows = torch.zeros(79 * tokens, 64, latent + width, dtype=torch.bfloat16)
    arguments = kv, weight, 1e-6, rope, pages, sequence, position, rows
    ours, expected = (longcat_ops.mla_write(*to_device(arguments, to)).cpu() for to in (machine.device, "cpu"))
    same_bits("mla_write, turned", ours[..., latent:], expected[..., latent:])
    at = pages[sequence, position // 64][:-1], position[:-1] % 64
    near("mla_write", ours[at][:, :latent], reference.rms_norm(kv[:-1, :latent].double(), weight.double(), 1e-6))
    ours[at] = 0
    assert not ours[..., :latent].any(), "mla_write: another row was written"
    return {"rows": tokens}


def queries(machine: Machine, tokens: list[int], heads: int, nope: int, latent: int, width: int) -> dict[str, Any]:
    """On 16 bytes and off them; the bits of a token are its own. The last one is padding."""
    most, g = max(tokens), torch.Generator().manual_seed(heads)
    angle = torch.rand(5000, width // 2, generator=g)
    rope, position = torch.stack([angle.cos(), angle.sin()], -1).flatten(1), 37 * torch.arange(most).int() % 5000
    position[-1] = -1
    values = torch.randn(most, heads, nope + width + 8, generator=g).bfloat16()
    w_k = torch.randn(heads, latent, nope, generator=g).bfloat16()
    there = to_device((values, w_k, rope, position), machine.device)
    for first in (0, 1):
        q, device_q = (t[..., first : first + nope + width] for t in (values, there[0]))
        whole = longcat_ops.mla_query(device_q, *there[1:])
        for m in tokens:
            same_bits(f"{m} tokens", longcat_ops.mla_query(device_q[:m], *there[1:3], there[3][:m]), whole[:m])
        ours, x, w = whole.cpu(), q[:-1, :, :nope].double(), w_k.double()
        same_bits("turned", ours[..., latent:], longcat_ops.mla_query(q, w_k[:, :8], rope, position)[..., 8:])
        truth, terms = (torch.einsum("thk,hnk->thn", *both) for both in ((x, w), (x.abs(), w.abs())))
        error = (ours[:-1, :, :latent].double() - truth).abs()
        assert bool((error <= 2.0**-18 * terms + 2.0**-8 * truth.abs()).all()), "mla_query"
        assert not ours[-1].any(), "mla_query: padding"
    return {"rows": tokens}


def rows(machine: Machine, tokens: int, width: int) -> dict[str, Any]:
    """What stands between the products, over rows on 16 bytes and off them. CPU and GPU sum and exponentiate in ways
    of their own, so norms and SwiGLU are compared with fp64."""
    g = torch.Generator().manual_seed(tokens)
    values = torch.randn(2 * tokens, 2 * width + 8, generator=g).bfloat16()
    weight = torch.rand(width, generator=g) + 0.5
    ids = torch.randint(-2, tokens + 2, (2 * tokens,), generator=g)  # of the table's rows, and a few of none
    device_values, device_weight, device_ids = to_device((values, weight, ids), machine.device)
    for first in (0, 1):
        here, there = (t[:, first : first + 2 * width] for t in (values, device_values))
        (one, other), (x, residual) = (t[:, :width].split(tokens) for t in (here, there))
        same_bits("embed_rows", longcat_ops.embed_rows(x, device_ids), reference.embed_rows(one, ids))
        same_bits("add_rows", longcat_ops.add_rows(x, residual), one + other)
        y, total = longcat_ops.rms_norm(x, device_weight, 1e-5, residual)
        same_bits("x + residual", total, one + other)
        near("rms_norm of a sum", y, reference.rms_norm(total.cpu().double(), weight.double(), 1e-5))
        y = longcat_ops.rms_norm(x, device_weight, 1e-5)
        near("rms_norm", y, reference.rms_norm(one.double(), weight.double(), 1e-5))
        near("silu_and_mul", longcat_ops.silu_and_mul(there), reference.silu_and_mul(here.double()))
    return {"ops": 4}


def near(name: str, ours: Tensor, truth: Tensor) -> None:
    """Raises AssertionError unless `ours`, bf16, is `truth` but for errors of float32 and one rounding."""
    error = (ours.cpu().double() - truth).abs()
    wrong = (~(error <= (2.0**-8 + 2.0**-15) * truth.abs() + 2.0**-120)).nonzero()
    assert not len(wrong), f"{name}: {len(wrong)} of {truth.numel()} values are wrong, the first at {wrong[0].tolist()}"


def decode_step(machine: Machine, sequences: int, drafts: int, vocabulary: int) -> dict[str, Any]:
    """The rows of a step, tokens of packed logits in which every third draft is wrong, and the state after them."""
    g = torch.Generator().manual_seed(sequences)
    num_drafts = (torch.arange(sequences, dtype=torch.int32) + 1) % (drafts + 2) - 1
    tokens = torch.randint(vocabulary, (sequences, drafts + 1), generator=g)
    lengths = torch.randint(5000, (sequences,), generator=g).int()
    rows = against_cpu(machine, "pack_rows", tokens, num_drafts, lengths, copies=3)
    logits = torch.randn(sequences, drafts + 1, vocabulary, generator=g)
    best = logits.flatten(0, 1).argmax(-1)
    at = (rows.first_row[:, None].clamp(min=0) + torch.arange(drafts)).clamp(max=len(best) - 1)
    judged = best[at] + (torch.arange(sequences * drafts).view(sequences, drafts) % 3 == 0)
    new, count = against_cpu(machine, "verify_greedy", logits, judged, num_drafts, rows.first_row)
    limits, stop_ids = lengths + 2 + torch.arange(sequences, dtype=torch.int32) % 9, new[:1, 0].clone()
    advance(machine, new, count, rows.first_row, limits, stop_ids, (lengths, num_drafts, torch.arange(sequences)))
    return {"rows": int(rows.num_rows[0])}


def advance(machine: Machine, *args: Any) -> None:
    """advance_lengths on the machine and on the CPU; the last of args is its state, which it writes."""
    results = []
    for device in (machine.device, "cpu"):
        *read, state = to_device(args, device)
        state = tuple(t.clone() for t in state)
        results.append((longcat_ops.advance_lengths(*read, *state), state))
        machine.synchronize()
    same_bits("advance_lengths", *results)


def problem(machine: Machine, n: int, k: int, groups: int, tokens: int) -> moe_gemm_problem.Problem:
    name = f"{n}x{k}"
    moe_gemm_problem.SHAPES.setdefault(name, (n, k))
    return moe_gemm_problem.Problem(Cell(name, groups, tokens), machine.device)


def product(machine: Machine, layout: str, n: int, k: int, groups: int, tokens: list[int]) -> dict[str, Any]:
    """One grouped product in each number of rows an expert."""
    for m in tokens:
        p = problem(machine, n, k, groups, m)
        o, out = p.copies[0], p.empty_out().fill_(torch.nan)
        a, b = (o.x, o.xs), (o.w, o.ws)
        if layout == "masked":
            stacked = tuple(t.view(groups, m, -1) for t in a)
            counts = torch.full((groups,), m, dtype=torch.int32, device=machine.device)
            longcat_ops.m_grouped_fp8_gemm_nt_masked(stacked, b, out.view(groups, m, n), counts, m)
        elif layout == "contiguous":
            of_row = torch.arange(groups, device=machine.device).repeat_interleave(m).int()
            longcat_ops.m_grouped_fp8_gemm_nt_contiguous(a, b, out, of_row)
        elif layout == "unmapped":  # rows of weights that no tensor map describes
            w = torch.empty(groups * n * k + 1, dtype=torch.uint8, device=machine.device)[1:]
            w = w.copy_(o.w.view(torch.uint8).flatten()).view(groups, n, k).view(o.w.dtype)
            longcat_ops.m_grouped_fp8_gemm_nt_offset(a, (w, o.ws), out, p.offsets, max_m_hint=m)
        else:
            longcat_ops.m_grouped_fp8_gemm_nt_offset(a, b, out, p.offsets, max_m_hint=m)
        machine.synchronize()
        assert not (wrong := p.disagreement(out)), f"{layout}, {m} rows an expert: {wrong}"
    return {"rows": [m * groups for m in tokens]}


def dense(machine: Machine, n: int, k: int, tokens: list[int]) -> dict[str, Any]:
    """fp8_gemm_nt, whole and split."""
    for m in tokens:
        p = problem(machine, n, k, 1, m)
        o = p.copies[0]
        for split in (1, *SPLITS):
            out = longcat_ops.fp8_gemm_nt((o.x, o.xs), (o.w[0], o.ws[0]), split_k=split)
            machine.synchronize()
            assert not (wrong := p.disagreement(out)), f"{m} rows, split_k = {split}: {wrong}"
    return {"rows": tokens}


def swiglu(machine: Machine, width: int, k: int, groups: int, tokens: list[int]) -> dict[str, Any]:
    """The fused product has the bits of the product in float32 and SwiGLU with quantisation behind it."""
    for m in tokens:
        p = problem(machine, 2 * width, k, groups, m)
        o = p.copies[0]
        a, halves = (o.x, o.xs), (o.w, o.ws * 2.0**-8)
        wide = torch.empty(groups * m, 2 * width, device=machine.device)
        longcat_ops.m_grouped_fp8_gemm_nt_offset(a, halves, wide, p.offsets, max_m_hint=m)
        expected = longcat_ops.silu_and_mul_quant_fp8(wide)
        gate_up = longcat_ops.interleave_gate_up(*halves)
        ours = longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset(a, gate_up, p.offsets, max_m_hint=m)
        machine.synchronize()
        same_bits(f"{m} rows an expert", ours, expected)
    return {"rows": [m * groups for m in tokens]}
