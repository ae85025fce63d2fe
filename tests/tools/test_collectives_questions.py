"""The questions of a GPU check about collectives notice what is wrong: shown over the emulator, with planted errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from device_check import collective_calls, ranks
from device_check.machine import Machine
from device_check.questions import collectives
from device_check.ranks import Prepared, Ranks
from longcat_ops.ops import emulated
from support.emulated_kernels import library, one_thread, schedule  # noqa: F401

MACHINE = Machine("cpu", Path("none"), Path("none"))


def values() -> None:
    collectives.values(MACHINE, 4, [1024], [[3, 136]])


def rows() -> None:
    collectives.rows(MACHINE, 4, [24])


def in_a_row() -> None:
    collectives.in_a_row(MACHINE, 4, 24, 40)


def graphs() -> None:
    collectives.graphs(MACHINE, 4, 3, 24)


@pytest.mark.parametrize("ask", [values, rows, in_a_row, graphs])
def test_sums_in_another_order_are_noticed(ask: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    in_order = collective_calls.in_order
    monkeypatch.setattr(collective_calls, "in_order", lambda tensors: in_order(list(tensors)[::-1]))
    with pytest.raises(AssertionError, match="values differ"):
        ask()


def test_rows_behind_the_counts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(ranks, "hollow", zeros)
    with pytest.raises(AssertionError, match=r"counts on the device, rank 0 of 4, out: .* values differ"):
        rows()


def test_every_call_in_a_row_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Ranks.call

    def skipped(self: Ranks, prepared: Prepared, i: int = 0, ranks: Any = None) -> None:
        if i != 1:
            call(self, prepared, i, ranks)

    monkeypatch.setattr(Ranks, "call", skipped)
    with pytest.raises(AssertionError, match="values differ"):
        in_a_row()


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_missing_ranks_are_named_under_any_schedule(ranks: int, policy: str) -> None:
    for seed in range(6):
        emulated.configure(seed=seed, policy=policy)
        collectives.failures(MACHINE, ranks, 0.2)


def test_a_record_that_names_another_rank_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Ranks.call

    def without_rank_1(self: Ranks, prepared: Prepared, i: int = 0, ranks: Any = None) -> None:
        call(self, prepared, i, ranks and [0, 2, 3])

    monkeypatch.setattr(Ranks, "call", without_rank_1)
    with pytest.raises(AssertionError, match=r"timeout, ranks \[1\]"):
        collectives.failures(MACHINE, 4, 0.2)
