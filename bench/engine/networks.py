"""The networks that the decoding benches run: ours in each precision, and HF transformers with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

import longcat_ops
from longcat_ops import Generation, LongcatFlashConfig, LongcatFlashForCausalLM
from support import hf  # the oracle helpers of the tests
from support.hf_checkpoint import from_checkpoint

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "longcat-tiny"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEDIUM = dict(
    vocab_size=4096, hidden_size=1024, num_layers=4, num_attention_heads=16, q_lora_rank=256, kv_lora_rank=128,
    qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, ffn_hidden_size=2048, expert_ffn_hidden_size=512,
    n_routed_experts=64, zero_expert_num=32, moe_topk=12, routed_scaling_factor=6.0, max_position_embeddings=2048,
)  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """One network: models by precision, and ids that prompts are cut from."""

    name: str
    ours: dict[str, LongcatFlashForCausalLM]
    hf: dict[str, torch.nn.Module]
    ids: torch.Tensor  # i64[n]

    def prompts(self, count: int, length: int) -> torch.Tensor:
        """i64[count, length], from places of their own."""
        return self.ids[: count * length].view(count, length)


TINY = {"fp32": dict(dtype=torch.float32, precision="bf16"), "bf16": dict(precision="bf16"), "FP8": {}}


def tiny() -> Networks:
    """checkpoints/longcat-tiny over its held-out text; FP8 as it is stored."""
    ours = {p: LongcatFlashForCausalLM.from_pretrained(CHECKPOINT, **options) for p, options in TINY.items()}
    text = (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")
    ids = torch.tensor(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(text).ids)
    return Networks("tiny", ours, {d: from_checkpoint(CHECKPOINT, t) for d, t in DTYPES.items()}, ids)


def medium() -> Networks:
    """A random network of 0.5 B parameters; its FP8 weights are quantised from the same ones."""
    model, config = hf.build(std=0.02, attention="sdpa", **MEDIUM)
    half, _ = hf.build(std=0.02, attention="sdpa", dtype=torch.bfloat16, **MEDIUM)
    tensors = hf.published(model)
    ours = {d: LongcatFlashForCausalLM.from_state_dict(config, tensors, t) for d, t in DTYPES.items()}
    ours["FP8"] = LongcatFlashForCausalLM.from_state_dict(config, tensors, torch.bfloat16, precision="fp8")
    ids = torch.randint(3, config.vocab_size, (2048,), generator=torch.Generator().manual_seed(0))
    return Networks("medium", ours, {"fp32": model, "bf16": half}, ids)


def one(network: str, whose: str, precision: str) -> torch.nn.Module:
    """A network alone, of "ours" or of "HF"; the medium one with weights of its own."""
    dtype = DTYPES.get(precision, torch.bfloat16)
    if network == "tiny":
        if whose == "HF":
            return from_checkpoint(CHECKPOINT, dtype)
        return LongcatFlashForCausalLM.from_pretrained(CHECKPOINT, progress=False, **TINY[precision])
    if whose == "HF":
        return hf.build(std=0.02, attention="sdpa", dtype=dtype, **MEDIUM)[0]
    fp8 = "fp8" if precision == "FP8" else None
    return LongcatFlashForCausalLM.random(LongcatFlashConfig(**MEDIUM), dtype, precision=fp8)


def run_hf(model: torch.nn.Module, ids: torch.Tensor, new: int) -> list[list[int]]:
    """`generate` of HF, greedy, by exactly `new` tokens."""
    length = dict(max_new_tokens=new, min_new_tokens=new)
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **length)
    return out.tolist()


def run_ours(model: LongcatFlashForCausalLM, ids: torch.Tensor, new: int, speculative: bool = False) -> Generation:
    """`generate` of ours, greedy, by exactly `new` tokens."""
    return longcat_ops.generate(model, ids, new, eos_token_id=-1, speculative=speculative)


def bytes_of_token(model: LongcatFlashForCausalLM, decoded: Generation) -> float:
    """Bytes of weights that a plain step of one sequence reads: all but the embedding, the MTP head and the experts
    that its tokens did not choose.
    """
    experts = model.config.n_routed_experts
    used = float(torch.cat(decoded.num_real).double().mean()) / experts
    total = 0.0
    for name, weight in model.state_dict().items():
        if not name.startswith(("mtp.", "embed_tokens")):
            is_expert = name.rpartition(".")[2] in ("gate_up", "gate_up_scale", "down", "down_scale")
            total += weight.nbytes * (used if is_expert else 1)
    return total
