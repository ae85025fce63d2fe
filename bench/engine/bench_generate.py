"""Decoding speed of the whole network on a CPU against `generate` of HF transformers: same weights, machine and run.

    python -m pytest bench/engine/bench_generate.py [-k tiny]   # tiny checkpoint, random medium one; 1, 2 threads

Every variant continues the same prompt by the same number of greedy tokens; tokens/s counts new tokens over the whole
call, prompt included. Variants take turns, round by round, so that a drift of the machine hits all of them. The peer is
HF in the faster of its two dtypes; ids are compared in fp32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import longcat_ops
from longcat_ops import LongcatFlashForCausalLM
from support import hf  # the oracle helpers of the tests
from support.hf_checkpoint import from_checkpoint

ROOT = Path(__file__).resolve().parents[2]

CHECKPOINT = ROOT / "checkpoints" / "longcat-tiny"
PROMPT, ROUNDS = 64, 5
MEDIUM = dict(
    vocab_size=4096, hidden_size=1024, num_layers=4, num_attention_heads=16, q_lora_rank=256, kv_lora_rank=128,
    qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, ffn_hidden_size=2048, expert_ffn_hidden_size=512,
    n_routed_experts=64, zero_expert_num=32, moe_topk=12, routed_scaling_factor=6.0, max_position_embeddings=2048,
)  # fmt: skip


def tiny_networks() -> dict[str, object]:
    ours = {
        "fp32": LongcatFlashForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32, precision="bf16"),
        "bf16": LongcatFlashForCausalLM.from_pretrained(CHECKPOINT, precision="bf16"),
        "fp8": LongcatFlashForCausalLM.from_pretrained(CHECKPOINT),
    }
    text = (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(text).ids
    prompt = torch.tensor([[1, *ids[: PROMPT - 1]]])
    return {
        "ours": ours,
        "hf": {d: from_checkpoint(CHECKPOINT, t) for d, t in DTYPES.items()},
        "prompt": prompt,
        "new": 128,
    }


def medium_networks() -> dict[str, object]:
    model, config = hf.build(std=0.02, attention="sdpa", **MEDIUM)
    tensors = hf.published(model)
    ours = {d: LongcatFlashForCausalLM.from_state_dict(config, tensors, t) for d, t in DTYPES.items()}
    half, _ = hf.build(std=0.02, attention="sdpa", dtype=torch.bfloat16, **MEDIUM)
    prompt = torch.randint(3, config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    return {"ours": ours, "hf": {"fp32": model, "bf16": half}, "prompt": prompt, "new": 32}


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NETWORKS = {"tiny": tiny_networks, "medium": medium_networks}


@pytest.fixture(scope="module", params=list(NETWORKS))
def networks(request: pytest.FixtureRequest) -> dict[str, object]:
    if request.param == "tiny" and not CHECKPOINT.is_dir():
        pytest.skip(f"{CHECKPOINT} is not there")
    return {"name": request.param, **NETWORKS[request.param]()}


def run_hf(model: torch.nn.Module, ids: torch.Tensor, new: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
    return out[0].tolist()


def run_ours(model: LongcatFlashForCausalLM, ids: torch.Tensor, new: int, speculative: bool) -> list[int]:
    return longcat_ops.generate(model, ids, new, eos_token_id=-1, speculative=speculative).sequences[0].tolist()


@pytest.mark.parametrize("threads", [1, 2])
def test_generate(networks: dict, threads: int, benchmark: Callable) -> None:
    torch.set_num_threads(threads)
    ids, new, variants = networks["prompt"], networks["new"], {}
    for dtype, model in networks["hf"].items():
        variants[f"HF {dtype}"] = lambda model=model: run_hf(model, ids, new)
    for dtype, model in networks["ours"].items():
        variants[f"plain {dtype}"] = lambda model=model: run_ours(model, ids, new, False)
        if model.mtp is not None:
            variants[f"speculative {dtype}"] = lambda model=model: run_ours(model, ids, new, True)
    tokens = {name: run() for name, run in variants.items()}  # warm-up, and the check that the same text is timed
    if "speculative fp32" in tokens:
        assert tokens["plain fp32"] == tokens["speculative fp32"]
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rate = {name: new / statistics.median(s) for name, s in seconds.items()}
    peer = max((n for n in rate if n.startswith("HF")), key=rate.get)
    benchmark.group = f"{networks['name']}, {threads} threads"
    benchmark.extra_info.update(
        network=networks["name"], threads=threads, new_tokens=new, prompt=PROMPT, peer=peer,
        tokens_per_s={n: round(r, 1) for n, r in rate.items()},
        ratio_to_peer={n: round(r / rate[peer], 2) for n, r in rate.items() if not n.startswith("HF")},
        spread={n: round((max(s) - min(s)) / statistics.median(s), 2) for n, s in seconds.items()},
        same_ids_as_hf_fp32=tokens["HF fp32"] == tokens["plain fp32"],
    )  # fmt: skip
    benchmark.pedantic(variants["plain fp32"], rounds=1)
