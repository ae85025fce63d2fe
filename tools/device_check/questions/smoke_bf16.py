"""Do the bf16 products and the router's compute what they should, at the model's sizes? Within a bound of float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import longcat_ops
from device_check.machine import Machine
from device_check.questions.smoke import SPLITS, same_bits


def normal(machine: Machine, *shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(machine.device).manual_seed(seed)
    return torch.randn(shape, device=machine.device, generator=generator).to(dtype)


def assert_near(name: str, out: Tensor, a: Tensor, b: Tensor) -> None:
    """Sums of [M,K] @ [N,K].T may be off by 2^-18 of the sum of absolute products, and by their rounding."""
    value, total = a.double() @ b.double().mT, a.double().abs() @ b.double().abs().mT
    rounding = {torch.bfloat16: 2.0**-8, torch.float32: 0.0}[out.dtype]
    off = (out.double() - value).abs() / (2.0**-18 * total + rounding * value.abs())
    assert out.shape == value.shape and bool((off <= 1).all()), f"{name}: {float(off.nan_to_num(torch.inf).max()):.3g}"


def products(machine: Machine, n: int, k: int, groups: int, tokens: list[int]) -> dict[str, Any]:
    """All layouts, whose rows have the same bits; a split; outputs in float32 and bf16."""
    b = normal(machine, groups, n, k, seed=1)
    for m in tokens:
        a = normal(machine, groups, m, k, seed=m)
        rows, hint = a.flatten(0, 1), {"max_m_hint": m}
        offsets = torch.arange(groups + 1, device=machine.device, dtype=torch.int32) * m
        counts = torch.full((groups,), m, dtype=torch.int32, device=machine.device)
        of_row = torch.arange(groups, device=machine.device).repeat_interleave(m).int()
        out = torch.full((groups, m, n), torch.nan, device=machine.device)
        longcat_ops.m_grouped_bf16_gemm_nt_masked(a, b, out, counts, m)
        machine.synchronize()
        for g in range(groups):
            assert_near(f"{m} rows, group {g}", out[g], a[g], b[g])
        flat = out.flatten(0, 1)
        others = {
            "offset": longcat_ops.m_grouped_bf16_gemm_nt_offset(rows, b, torch.empty_like(flat), offsets, **hint),
            "contiguous": longcat_ops.m_grouped_bf16_gemm_nt_contiguous(rows, b, torch.empty_like(flat), of_row),
            "dense": torch.cat([longcat_ops.bf16_gemm_nt(a[g], b[g], torch.empty_like(out[g])) for g in range(groups)]),
        }
        narrow = longcat_ops.bf16_gemm_nt(a[0], b[0])
        machine.synchronize()
        for name, other in others.items():
            same_bits(f"{m} rows, {name}", other, flat)
        same_bits(f"{m} rows, bf16", narrow, out[0].bfloat16())
        for split in SPLITS:
            pieces = longcat_ops.bf16_gemm_nt(a[0], b[0], split_k=split)
            machine.synchronize()
            assert_near(f"{m} rows, split_k = {split}", pieces, a[0], b[0])
    return {"rows": [m * groups for m in tokens]}


def swiglu(machine: Machine, width: int, k: int, groups: int, tokens: list[int]) -> dict[str, Any]:
    """h quantised has the bits of the product in float32 with SwiGLU and quantisation behind it; h in bf16 is near."""
    w = normal(machine, groups, 2 * width, k, seed=2) * k**-0.5
    gate_up = longcat_ops.interleave_gate_up(w)
    for m in tokens:
        a = normal(machine, groups * m, k, seed=m)
        offsets = torch.arange(groups + 1, device=machine.device, dtype=torch.int32) * m
        wide = torch.empty(groups * m, 2 * width, device=machine.device)
        longcat_ops.m_grouped_bf16_gemm_nt_offset(a, w, wide, offsets, max_m_hint=m)
        run = longcat_ops.m_grouped_bf16_swiglu_gemm_nt_offset
        quantised, h = (run(a, gate_up, offsets, quantise=q, max_m_hint=m) for q in (True, False))
        machine.synchronize()
        same_bits(f"{m} rows an expert", quantised, longcat_ops.silu_and_mul_quant_fp8(wide))
        gate, up = wide.double().chunk(2, -1)
        value = torch.nn.functional.silu(gate) * up
        assert bool(((h.double() - value).abs() <= 2.0**-7.9 * value.abs() + 1e-30).all()), f"{m} rows: h"
    return {"rows": [m * groups for m in tokens]}


def router(machine: Machine, experts: int, hidden: int, tokens: list[int]) -> dict[str, Any]:
    """bf16 and float32 rows; the bits of a row are its own."""
    w = normal(machine, experts, hidden, seed=3, dtype=torch.float32) * hidden**-0.5
    split = longcat_ops.split_bf16x3(w)
    for dtype in (torch.bfloat16, torch.float32):
        x = normal(machine, max(tokens), hidden, seed=4, dtype=dtype)
        whole = longcat_ops.router_gemm(x, w, split=split)
        machine.synchronize()
        value, total = x.double() @ w.double().mT, x.double().abs() @ w.double().abs().mT
        assert bool(((whole.double() - value).abs() <= 2.0**-21 * total).all()), f"router, {dtype}"
        for m in tokens:
            part = longcat_ops.router_gemm(x[:m], w, split=split)
            machine.synchronize()
            same_bits(f"router, {m} rows", part, whole[:m])
    return {"rows": tokens}
