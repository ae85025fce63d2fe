"""The adapter to FlashMLA over a stand-in with its two functions, which computes as they are documented."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from longcat_ops import LongcatShapeError, LongcatUnsupportedError, ops, reference
from longcat_ops.integrations import flash_mla
from longcat_ops.model import products
from support.mla_oracle import cache, drawn

SCALE = 576**-0.5


def get_mla_metadata(lengths: Tensor, tokens_a_head: int, heads_k: int) -> tuple[Tensor, Tensor]:
    assert lengths.dtype == torch.int32 and bool((lengths > 0).all()) and heads_k == 1
    return torch.tensor([tokens_a_head]), lengths


def flash_mla_with_kvcache(q: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, width: int, metadata: Tensor,
                           num_splits: Tensor, softmax_scale: float, causal: bool) -> tuple[Tensor, None]:  # fmt: skip
    assert q.is_contiguous() and pages.shape[1:] == (64, 1, 576) and causal and num_splits is lengths
    assert table.dtype == torch.int32 and table.is_contiguous() and int(metadata) == q.shape[2]
    out = q.new_empty(*q.shape[:3], width)
    for b, n in enumerate(lengths.tolist()):
        past = pages[table[b, : -(-n // 64)].long(), :, 0].flatten(0, 1)[:n].float()
        out[b] = (((softmax_scale * q[b].float() @ past.T).softmax(-1)) @ past[:, :width]).to(q.dtype)
    return out, None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_mla")
    module.get_mla_metadata, module.flash_mla_with_kvcache = get_mla_metadata, flash_mla_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_mla", module)


def test_it_attends_as_mla_decode_does(stand_in: None) -> None:
    """Tokens in any order, several of a sequence, padding, and no place at all."""
    c = cache([130, 1, 64], 576, torch.bfloat16)
    sequence, position = (
        torch.tensor(t, dtype=torch.int32) for t in ([0, 2, 0, 1, 0, 3, 0], [129, 63, 64, 0, -1, 0, 200])
    )
    q = drawn(len(sequence), 5, 576, seed=1, dtype=torch.bfloat16)
    call = q, *c, sequence, position
    found = flash_mla.mla_decode(*call, latent=512, scale=SCALE)
    want = reference.mla_decode(*call, latent=512, scale=SCALE)
    assert (found[4] == 0).all() and found[5:].isnan().all()
    torch.testing.assert_close(found[:4], want[:4], rtol=2**-7, atol=2**-9)


def test_models_on_a_gpu_take_it_while_it_is_enabled(stand_in: None) -> None:
    q, there = (
        drawn(1, 2, 576, seed=2, dtype=torch.bfloat16),
        torch.empty(1, 2, 576, dtype=torch.bfloat16, device="meta"),
    )
    assert products.attention_of(q, 512) is ops
    with flash_mla.enabled(), flash_mla.enabled():
        assert products.attention_of(there, 512).mla_decode is flash_mla.mla_decode
        assert products.attention_of(q, 512) is ops  # a CPU keeps its own
        assert products.attention_of(there.double(), 512) is reference
        assert not products.attends(torch.bfloat16, "cuda", 576, 512)  # so no step is captured
    assert products.attends(torch.bfloat16, "cuda", 576, 512)
    with pytest.raises(ZeroDivisionError), flash_mla.enabled():
        1 / 0  # noqa: B018
    assert products.replace_attention(None) is None


def test_what_it_refuses(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    c, at = cache([5], 48, torch.bfloat16), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(LongcatShapeError, match=r"\[1, 2, 48\], latent 32, expected torch.bfloat16 \[T, h, 576\], 512"):
        flash_mla.mla_decode(drawn(1, 2, 48, seed=3, dtype=torch.bfloat16), *c, at, at, latent=32, scale=1.0)
    monkeypatch.setitem(sys.modules, "flash_mla", None)
    with pytest.raises(LongcatUnsupportedError, match="FlashMLA cannot be imported"), flash_mla.enabled():
        pass
