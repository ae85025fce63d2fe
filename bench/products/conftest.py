"""What each bench of products starts with: its deadline, and which of its peers were asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from peers import Peer
from products.measuring import SHORT_SECONDS


@pytest.fixture(scope="module")
def deadline(request: pytest.FixtureRequest) -> float:
    grid, seconds = request.config.getoption("--grid"), request.config.getoption("--seconds")
    if seconds is None:
        seconds = 0.0 if grid == "full" else SHORT_SECONDS
    return time.monotonic() + (seconds or torch.inf)


@pytest.fixture(scope="session")
def wanted(request: pytest.FixtureRequest) -> Callable[[list[Peer]], list[Peer]]:
    """Those of some peers that --peers names."""
    parts = [name.strip().lower() for name in request.config.getoption("--peers").split(",")]
    return lambda peers: [peer for peer in peers if any(part in peer.name.lower() for part in parts)]
