"""The steps of a check that time attention and the whole decode step, and that run an engine."""

from __future__ import annotations

from .steps import Step

TINY = {  # sizes of a network that a rehearsal runs
    "hidden_size": 128, "vocab_size": 128, "num_attention_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 64, "max_position_embeddings": 512,
}  # fmt: skip


def attention() -> list[Step]:
    """mla_decode, and the whole step of one rank, in 2 layers and in all."""
    batches = ((96, 2, 5000), (1, 1, 5000), (8, 2, 5000), (96, 1, 5000), (1, 1, 131072), (192, 1, 5000))
    sizes = {"heads": 64, "latent": 512, "rope": 64, "splits": [256, 512, 1024, 2048, 4096]}
    small = {"sequences": 2, "context": 150, "splits": [64, 128], "heads": 3, "latent": 64, "rope": 16}
    found = [
        Step(f"times/attention-{sequences}x{rows}-{context}", 2, 30, "times.attention",
             {"sequences": sequences, "rows": rows, "context": context, **sizes}, small)
        for sequences, rows, context in batches
    ]  # fmt: skip
    step = {"sequences": 96, "rows": 2, "context": 5000, "sizes": {}}
    small = {"layers": 1, "sequences": 2, "context": 70, "sizes": TINY}
    return [
        *found[:2],
        Step("times/step-2-layers", 6, 60, "step.whole", {"layers": 2, **step}, small),
        Step("times/step-28-layers", 25, 120, "step.whole", {"layers": 28, **step}, small),
        *found[2:],
    ]


def engine() -> list[Step]:
    """Requests of an engine beside each of them alone."""
    sizes = {"vocab_size": 1024, "max_position_embeddings": 1024}
    return [
        Step("engine/texts", 4, 60, "engine.texts",
             {"layers": 2, "prompts": [1, 600, 17, 64, 3, 200], "new": 24, "batch": 4, "steps": [1, 4], "sizes": sizes},
             {"layers": 1, "prompts": [3, 1, 9], "new": 4, "batch": 2, "steps": [2], "sizes": TINY}),
    ]  # fmt: skip
