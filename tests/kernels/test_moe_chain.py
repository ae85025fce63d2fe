"""moe_route, moe_plan, moe_permute_quant and moe_combine in a row, around identity experts, in the host emulator
against fp64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from longcat_ops import Plan, Routing, reference
from longcat_ops.ops import emulated
from support.build_oracle import decode, quantise
from support.emulated_kernels import apart, run, scales
from support.routing_chain import EXPERTS, REAL, SCALE, ZERO, K, problem


def emulated_chain(x: Tensor, logits: Tensor, bias: Tensor, num_valid: Tensor) -> tuple[Tensor, Routing, Plan]:
    tokens, width = x.shape
    routing = Routing(
        ids=apart(tokens, K, torch.int32),
        weights=apart(tokens, K, torch.float32),
        zero_weight=apart(1, tokens, torch.float32)[0],
        num_real=apart(1, tokens, torch.uint8)[0],
        counts=apart(1, EXPERTS, torch.int32)[0],
        errors=torch.zeros(1, dtype=torch.int32),
    )
    run("moe_route", logits, bias, num_valid, K, EXPERTS, ZERO, SCALE, *routing)
    rows = tokens * min(K, REAL)
    plan = Plan(apart(1, REAL + 1, torch.int32)[0], apart(tokens, K, torch.int32), apart(1, rows, torch.int32)[0])
    run("moe_plan", routing.ids, REAL, routing.weights, *plan)
    q, s = apart(rows, width, torch.float8_e4m3fn), scales(rows, -(-width // 128), column_major=True)
    run("moe_permute_quant", x, plan.row_of, plan.src_of, q, s)
    y = reference.dequant_fp8(q, s, torch.bfloat16)
    y[int(plan.offsets[-1]) :] = torch.nan
    out = apart(tokens, width, x.dtype)
    run("moe_combine", y, plan.row_of, routing.weights, routing.zero_weight, x, None, out)
    return out, routing, plan


def expected_terms(x: Tensor, logits: Tensor, bias: Tensor) -> np.ndarray:
    """fp64 [K, T, H]: the term that each choice adds."""
    p = logits.double().softmax(-1).numpy()
    biased = p + bias.double().numpy()
    order = np.argsort(-biased, axis=1, kind="stable")
    ranked = np.take_along_axis(biased, order, 1)
    assert (ranked[:, K - 1] - ranked[:, K] > 1e-6).all()  # else float32 could choose another expert
    codes, s = quantise(x, 1, 128)
    image = decode(codes) * np.repeat(s.astype(np.float64), 128, axis=1)[:, : x.shape[1]]
    image = torch.from_numpy(image).float().bfloat16().double().numpy()
    identity = x.double().numpy()
    chosen = order[:, :K]
    weight = SCALE * np.take_along_axis(p, chosen, 1)
    return np.stack([weight[:, k, None] * np.where(chosen[:, k, None] < REAL, image, identity) for k in range(K)])


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize(("tokens", "width"), [(7, 160), (33, 576)])
def test_chain_against_fp64(tokens: int, width: int, policy: str) -> None:
    emulated.configure(5, policy, detectors=True)
    x, logits, bias, num_valid = problem(tokens, width)
    out, routing, plan = emulated_chain(x, logits, bias, num_valid)
    valid = [t for t in range(tokens - 3) if t != 2]
    assert out[2].isnan().all() and routing.errors.item() == 1
    assert not out[tokens - 3 :].any()
    assert routing.num_real[:2].tolist() == [K, 0]
    assert int(plan.offsets[-1]) == int(routing.num_real.sum())
    terms = expected_terms(x[valid], logits[valid], bias)
    # A weight is within 2e-6 of its fp64 value (test_moe_route.py), a sum of 13 terms within 13 * 2^-24; then one
    # rounding, which is monotone.
    slack = (2e-6 + 14 * 2.0**-24) * np.abs(terms).sum(0)
    low, high = (torch.from_numpy(terms.sum(0) + side * slack).float().bfloat16() for side in (-1, 1))
    assert ((low <= out[valid]) & (out[valid] <= high)).all()
