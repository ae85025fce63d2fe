"""The copies of `pytest --backend cuda` to the GPU and back, tested between two places on the CPU."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from support.carried import carried

longcat_ops._library.load()


def test_strides_gaps_and_offsets_arrive() -> None:
    generator = torch.Generator().manual_seed(0)
    storage = torch.randn(6, 320, generator=generator).bfloat16()
    x = storage[1:, 3:163]
    q = torch.full((5, 176), 7.0).to(torch.float8_e4m3fn)
    s = torch.full((2, 8), 7.0).T[:5]
    before = storage.clone()
    seen: list[torch.Tensor] = []

    def op(*arguments: object) -> None:
        seen.extend(a for a in arguments if isinstance(a, torch.Tensor))
        torch.ops.longcat_ops.per_token_group_quant_fp8(*arguments)

    carried(op, "cpu")(x, 128, q[:, 8:168], s)
    expected, scales = longcat_ops.per_token_group_quant_fp8(x)
    assert [(t.shape, t.stride(), t.storage_offset()) for t in seen] == [
        (t.shape, t.stride(), t.storage_offset()) for t in (x, q[:, 8:168], s)
    ]
    assert all(there.data_ptr() != here.data_ptr() for there, here in zip(seen, (x, q, s), strict=True))
    assert torch.equal(q[:, 8:168].view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(s, scales)
    # The bytes around the outputs come back unchanged, and so does the input.
    assert (q[:, :8].float() == 7).all()
    assert (q[:, 168:].float() == 7).all()
    assert (s.as_strided((2, 3), (8, 1), 5) == 7).all()
    assert torch.equal(storage, before)


def test_memory_shared_by_arguments_is_still_shared() -> None:
    x = torch.zeros(4, 128)
    q = x.view(torch.float8_e4m3fn)[:, :128]
    with pytest.raises(RuntimeError, match="in memory shared with"):
        carried(torch.ops.longcat_ops.per_token_group_quant_fp8, "cpu")(x, 128, q, torch.empty(4, 1))


def test_none_and_empty_tensors() -> None:
    x, weight = torch.empty(0, 128), torch.ones(128)
    q, s = torch.empty(0, 128, dtype=torch.float8_e4m3fn), torch.empty(0, 1)
    carried(torch.ops.longcat_ops.rms_norm_quant_fp8, "cpu")(x, weight, 1e-5, None, q, s, torch.empty(0, 128), None)
