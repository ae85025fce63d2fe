"""FP8 costs the tiny checkpoint what its recorded figures say, as measured again on the first held-out chapter."""

from __future__ import annotations

import json

import pytest

import tiny_precision

RECORD = json.loads((tiny_precision.FOLDER / "precision.json").read_text(encoding="utf-8"))
README = (tiny_precision.FOLDER / "README.md").read_text(encoding="utf-8")
NEW_TOKENS = 24
# Another summation order, as on another CPU, changes these by less than one more rounding of everything to bf16.
BITS_PER_BYTE, AGREEMENT = 2e-3, 0.01


@pytest.fixture(scope="module")
def measured() -> dict:
    return tiny_precision.measure(1, NEW_TOKENS, ("f32", "bf16", "fp8"))


@pytest.mark.parametrize("name", ["f32", "bf16", "fp8"])
def test_the_first_chapter_gives_the_recorded_figures(measured: dict, name: str) -> None:
    ours, record = measured["variants"][name][0], RECORD["variants"][name][0]
    positions, size = measured["positions"][0], measured["bytes"][0]
    assert (positions, size) == (RECORD["positions"][0], RECORD["bytes"][0])
    assert abs(ours["bits"] - record["bits"]) <= BITS_PER_BYTE * size
    assert abs(ours["agreed"] - record["agreed"]) <= AGREEMENT * positions


def test_fp8_is_not_bf16(measured: dict) -> None:
    """Quantised activations change some tokens, and bf16 changes fewer."""
    agreed = {name: rows[0]["agreed"] for name, rows in measured["variants"].items()}
    assert agreed["f32"] == measured["positions"][0] > agreed["bf16"] > agreed["fp8"]


def test_what_the_page_says_of_it_is_the_record() -> None:
    assert tiny_precision.table(RECORD) in README
    assert RECORD["command"] in README and RECORD["date"] in README
    cost = {name: tiny_precision.summary(RECORD, name) for name in tiny_precision.VARIANTS}
    assert RECORD["variants"].keys() == cost.keys()
    for name in ("fp8", "fp8_f32", "requantised"):
        assert abs(cost[name]["bits_per_byte"] - cost["f32"]["bits_per_byte"]) <= 0.005
        assert cost[name]["agreement"] >= 0.97


def test_the_requantised_weights_are_on_another_grid() -> None:
    """Requantising changes nearly every weight, none by more than half a step: the cost is that of one quantisation."""
    tensors = tiny_precision.load_file(tiny_precision.FOLDER / "model.safetensors")
    again = tiny_precision.requantised(tensors)
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    before, after = (
        tiny_precision.dequant_fp8(t[name], t[f"{name}_scale_inv"], tiny_precision.F32) for t in (tensors, again)
    )
    moved = (before - after).abs()
    assert (moved == 0).double().mean() <= 0.02
    smallest = again[f"{name}_scale_inv"].max() * 2.0**-10
    assert bool((moved <= (2.0**-4 * before.abs()).clamp(min=smallest.item()) * (1 + 2.0**-20)).all())
    relative = (moved.norm() / before.norm()).item()
    assert 0.02 <= relative <= 0.035  # a first quantisation of such weights: 2.6 % rms
