"""Chunks of prompts take torch's products or the library's, whichever is faster here; either is as near to fp64."""

from __future__ import annotations

import pytest
import torch

from longcat_ops.model import products, prompt_experts
from support import models


@pytest.mark.parametrize("length", [1, 7, 300])
def test_either_product_is_as_near_to_fp64(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both round each product to bf16 once, so their errors are alike: neither is 1.5 times the other's."""
    exact = models.build(torch.float64, precision=None)
    for name, tensor in exact.state_dict().items():
        if "bias" not in name:
            tensor.copy_(tensor.bfloat16())
    narrow = models.build(torch.bfloat16)
    ids = models.prompt(length)
    want = exact.prefill(exact.new_cache(1, 400), 0, ids).hidden
    errors = []
    for by_torch in (False, True):
        monkeypatch.setattr(products, "torch_multiplies", lambda *_, by_torch=by_torch: by_torch)
        monkeypatch.setattr(prompt_experts, "torch_multiplies", lambda *_, by_torch=by_torch: by_torch)
        got = narrow.prefill(narrow.new_cache(1, 400), 0, ids).hidden
        errors.append(float((got.double() - want).norm() / want.norm()))
    assert max(errors) < 1.5 * min(errors) and errors[1] < 0.1, errors  # a choice of experts may turn over in bf16


def test_bf16_without_instructions_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, dtype, device, by_torch in (
        ("AVX2", torch.bfloat16, "cpu", False), ("DEFAULT", torch.bfloat16, "cpu", False),
        ("AVX512", torch.bfloat16, "cpu", True), ("AVX2", torch.float32, "cpu", True),
        ("AVX2", torch.bfloat16, "cuda", True),
    ):  # fmt: skip
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        products.torch_multiplies.cache_clear()
        assert products.torch_multiplies(dtype, device) == by_torch
    products.torch_multiplies.cache_clear()
