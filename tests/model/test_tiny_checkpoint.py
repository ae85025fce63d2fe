"""The committed checkpoint has the quality, drafts and expert use that its metrics state, on the held-out excerpt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn import functional as F

from longcat_ops import LongcatFlashForCausalLM

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "checkpoints" / "longcat-tiny"
METRICS = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
BOS, EOS, LONGEST = 1, 2, 1024


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """Teacher-forced metrics over each held-out chapter, cut to the trained length."""
    model = LongcatFlashForCausalLM.from_pretrained(FOLDER, progress=False)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    text = (FOLDER / "heldout.txt").read_text(encoding="utf-8")
    loss, tokens, agreed, rows, real = 0.0, 0, 0, 0, []
    for chapter in text.split("\n\n"):
        ids = torch.tensor([BOS, *tokenizer.encode(chapter.rstrip("\n") + "\n").ids, EOS][:LONGEST])
        cache = model.new_cache(1, len(ids))
        with torch.inference_mode():
            step = model.prefill(cache, 0, ids[:-1])
            draft = model.head(model.draft_prefill(cache, 0, ids[1:], step.hidden)).argmax(-1)
        loss += F.cross_entropy(step.logits, ids[1:], reduction="sum").item()
        # The head at row p, given token p+1, predicts token p+2; so does the target at row p+1.
        agreed += int((draft[:-1] == step.logits[1:].argmax(-1)).sum())
        tokens, rows = tokens + len(ids) - 1, rows + len(ids) - 2
        real.append(step.num_real)
    return {"nats": loss / tokens, "agreement": agreed / rows, "real": torch.cat(real).double().mean(0).tolist()}


def test_it_is_small_and_fp8() -> None:
    file = FOLDER / "model.safetensors"
    assert file.stat().st_size <= 12_000_000
    with safe_open(file, framework="pt") as handle:
        names = set(handle.keys())
        scaled = {n.removesuffix("_scale_inv") for n in names if n.endswith("_scale_inv")}
        assert len(names) == 496 and len(scaled) == 233
        for name in names:
            fp8 = handle.get_slice(name).get_dtype() == "F8_E4M3"
            assert fp8 == (name in scaled), name
    assert not any("router" in n or "norm" in n or "embed" in n or "lm_head" in n for n in scaled)


def test_quality_on_the_excerpt(measured: dict) -> None:
    assert measured["nats"] <= 2.6
    assert (
        abs(measured["nats"] - METRICS["fp8"]["excerpt_256"]["nats_per_token"]) <= 0.1
    )  # measured over longer windows and whole chapters


def test_drafts_on_the_excerpt(measured: dict) -> None:
    assert measured["agreement"] >= 0.71
    assert abs(measured["agreement"] - METRICS["fp8"]["excerpt_256"]["mtp_agreement"][0]) <= 0.02


def test_zero_experts_are_used_as_trained(measured: dict) -> None:
    target = METRICS["training"]["target_real_experts_per_token"]
    assert all(abs(real - target) <= 0.15 for real in measured["real"])


def test_experts_share_the_load() -> None:
    for part in METRICS["fp8"].values():
        assert max(part["expert_load_max_over_mean"]) <= 1.6
        assert min(part["expert_load_min_over_mean"]) >= 0.5  # no dead expert
