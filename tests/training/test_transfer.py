"""Table 1 of the report by hand, and what it promises of wide networks."""

from __future__ import annotations

import pytest
import torch

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import transfer_hyperparameters

PROXY = [
    {"kind": "embedding", "init_var": 4e-4, "lr": 3e-3, "params": ["a"]},
    {"kind": "hidden", "init_var": 9e-4, "lr": 2e-3, "weight_decay": 0.1},
    {"kind": "output", "init_var": 1e-4, "lr": 1e-3},
    {"kind": "hidden", "lr": 5e-4},
    {"kind": "output", "init_var": 2e-4},
]


def test_a_ratio_of_8_is_that_of_the_table() -> None:
    found = transfer_hyperparameters(PROXY, 8)
    assert found == [
        {"kind": "embedding", "init_var": 4e-4, "lr": 3e-3, "params": ["a"]},
        {"kind": "hidden", "init_var": 9e-4 / 8, "lr": 2e-3 / 8, "weight_decay": 0.1},
        {"kind": "output", "init_var": 1e-4 / 8, "lr": 1e-3 / 8},
        {"kind": "hidden", "lr": 5e-4 / 8},
        {"kind": "output", "init_var": 2e-4 / 8},
    ]
    assert PROXY[1]["lr"] == 2e-3, "the groups of the proxy stay"


def test_one_transfer_after_another_is_one_by_their_product() -> None:
    assert transfer_hyperparameters(transfer_hyperparameters(PROXY, 2), 4) == transfer_hyperparameters(PROXY, 8)
    assert transfer_hyperparameters(transfer_hyperparameters(PROXY, 8), 0.125) == PROXY
    assert transfer_hyperparameters([], 8) == []


def test_a_wide_layer_begins_and_moves_as_the_narrow_one() -> None:
    """A hidden layer of 64 inputs of variance 1, and one 8 times as wide: the outputs begin with the same variance, and
    Adam's first step, the sign of the gradient, moves them by as much where the gradient is the input.
    """
    narrow = PROXY[1]
    (wide,) = transfer_hyperparameters([narrow], 8)
    generator = torch.Generator().manual_seed(0)
    spread, moved = [], []
    for size, group in ((64, narrow), (512, wide)):
        x = torch.randn(300, size, generator=generator, dtype=torch.float64)
        weight = torch.randn(200, size, generator=generator, dtype=torch.float64) * group["init_var"] ** 0.5
        spread.append((x @ weight.T).var().item())
        moved.append((group["lr"] * x.abs().sum(1)).mean().item())
    assert spread[1] == pytest.approx(spread[0], rel=0.05)
    assert moved[1] == pytest.approx(moved[0], rel=0.02)


@pytest.mark.parametrize(
    ("groups", "ratio", "argument"),
    [
        ([{"kind": "norm", "lr": 1.0}], 8, r"groups\[0\]\['kind'\]"),
        ([{"lr": 1.0}], 8, r"groups\[0\]\['kind'\]"),
        ([PROXY[0], {"kind": "hidden"}], 8, r"groups\[1\]"),
        ([{"kind": "hidden", "lr": 0.0}], 8, r"groups\[0\]\['lr'\]"),
        ([{"kind": "hidden", "init_var": "1"}], 8, r"groups\[0\]\['init_var'\]"),
        (["hidden"], 8, r"groups\[0\]"),
        (PROXY, 0, "width_ratio"),
        (PROXY, float("inf"), "width_ratio"),
    ],
)
def test_bad_arguments(groups: list, ratio: float, argument: str) -> None:
    with pytest.raises(LongcatShapeError, match=f"transfer_hyperparameters: argument `{argument}`"):
        transfer_hyperparameters(groups, ratio)
