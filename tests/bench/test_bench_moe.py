"""The bench of routing and dispatch without a GPU: the router's calls."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from products import router_calls
from products.problem import COLD


def test_calls_of_the_router() -> None:
    """Copies of the weight are 4 times L2 together, and each call of ours has its twin."""
    experts, hidden, l2_bytes = 24, 64, 10_000
    ours, theirs = router_calls.router_calls(5, experts, hidden, "cpu", l2_bytes)
    assert len(ours) == len(theirs) == -(-COLD * l2_bytes // (4 * experts * hidden)) == 7
    results = [run() for run in ours]
    for result, run in zip(results, theirs, strict=True):
        assert result.shape == (5, experts) and result.dtype == torch.float32
        torch.testing.assert_close(result, run(), rtol=0, atol=2**-18)
    assert not torch.equal(results[0], results[1])


def test_a_wrong_router_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = longcat_ops.router_gemm
    monkeypatch.setattr(longcat_ops, "router_gemm", lambda x, w, split: right(x, split[0].float()))
    with pytest.raises(AssertionError, match="off torch's"):
        router_calls.router_calls(5, 24, 64, "cpu")
