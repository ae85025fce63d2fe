"""The whole step of a small network, captured in the host emulator as one stream of CUDA kernels that overlap as far as
programmatic dependent launch allows: bit for bit the eager step, which runs them one after the other.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import longcat_ops
from longcat_ops import _environment
from longcat_ops.engine.step import DecodeStep, Sampling
from longcat_ops.engine.step_graph import capture, obstacle_to_capture
from longcat_ops.ops import emulated
from support import models
from support.pytests import run_pytest

IN_EMULATOR = _environment.backend() == "emu"
in_emulator = pytest.mark.skipif(not IN_EMULATOR, reason="for the backend emu")
LENGTHS = [70, 3, 64]
GREEDY, SAMPLED = Sampling(0.0, 0, 1.0, False), Sampling(0.8, 20, 0.95, True)


@pytest.mark.long
@pytest.mark.skipif(IN_EMULATOR, reason="starts the tests below")
def test_in_the_emulator() -> None:
    done = run_pytest("--backend", "emu", "-rA", __file__)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout[-4000:] + done.stderr[-2000:]


# A score that grows with the probability of the head's likeliest token; some drafts of the tests below pass.
FILTER = longcat_ops.DraftFilter([[8.0, 0.0, 0.0, 0.0]], [1.0, -0.45], 0.5)


def begun(model: longcat_ops.LongcatFlashForCausalLM, sampling: Sampling,
          draft_filter: longcat_ops.DraftFilter | None) -> DecodeStep:  # fmt: skip
    """A step whose three sequences have their prompts in the cache, a first token, and a draft that may be wrong; one
    of them ends within a few tokens."""
    prompts, cache = torch.stack([models.prompt(max(LENGTHS), seed=s) for s in range(3)]), model.new_cache(3, 140)
    model(prompts, cache, lengths=LENGTHS)
    step = DecodeStep(model, cache, sampling, [11, 12, 13], [140, 6, 140], [], speculative=True,
                      around=lambda *_: nullcontext(), draft_filter=draft_filter)  # fmt: skip
    logits = torch.randn(3, model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    for b, length in enumerate(LENGTHS):
        cache.reserve(b, 140)
        step.begin(b, length, logits[b : b + 1])
    step.draft(logits.flip(0))
    return step


def state(step: DecodeStep) -> list[torch.Tensor]:
    return [t.clone() for t in (step.inputs, step.num_drafts, step.cache.lengths, step.cache.rows)]


@in_emulator
@pytest.mark.parametrize(
    ("precision", "sampling", "draft_filter"), [(None, GREEDY, FILTER), ("fp8", SAMPLED, None)],
    ids=["greedy-c2t", "sampled-fp8"],
)  # fmt: skip
def test_a_captured_step_is_the_eager_one(
    precision: str | None, sampling: Sampling, draft_filter: longcat_ops.DraftFilter | None
) -> None:
    model = models.build(torch.bfloat16, precision=precision, num_layers=1, kv_lora_rank=32, qk_rope_head_dim=16,
                         vocab_size=64)  # fmt: skip
    assert obstacle_to_capture(model) is None
    with torch.inference_mode():
        emulated.configure(seed=1)
        eager, captured = (begun(model, sampling, draft_filter) for _ in range(2))
        graph, turns = None, 0
        for policy in ("lazy", "random"):
            emulated.configure(seed=2 + turns, policy=policy, sms=3)
            want = eager()
            if graph is None:
                graph = capture(captured)
            else:
                graph.replay()
            made, turns = graph.outputs, turns + 1
            live = int(want.num_tokens.clamp(min=0).sum() > 0)
            assert live and torch.equal(made.tokens, want.tokens) and torch.equal(made.kept, want.kept)
            for ours, theirs in zip(state(captured), state(eager), strict=True):
                assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
        assert "fused_moe" not in graph.ops and graph.ops[0] == "pack_rows"
        assert ("filter_drafts" in graph.ops) == (draft_filter is not None)
        if draft_filter is not None:
            assert sorted(captured.num_drafts.tolist()) == [-1, 0, 1]  # one passes, one does not, one is idle
