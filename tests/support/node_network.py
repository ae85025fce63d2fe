"""Jobs of a node: a network over all ranks, beside one process that has all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

import longcat_ops
from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.model.stages import serial
from longcat_ops.testing.op_results import bits
from support.node import Node
from support.parallel_jobs import decoded, prompts
from support.tensor_jobs import moved, parted

TINY = Path(__file__).parents[2] / "checkpoints" / "longcat-tiny"
NEW = 20  # tokens, enough that `generate` replays where it can


def pairs(node: Node) -> Any:
    """The group of ranks 0 and 1, 2 and 3, .. that this rank is in. Collective."""
    found = [dist.new_group([r, r + 1]) for r in range(0, node.ranks - 1, 2)]
    return found[node.rank // 2]


def texts(node: Node, form: str | None) -> list[str]:
    """Greedy texts and logits of one process, or within what its sums may move where dense weights are shared out
    (form); on two streams as on one, and replayed where steps can be captured."""
    device, tp = node.device, None if form is None else pairs(node)
    alone = LongcatFlashForCausalLM.from_pretrained(TINY, device=device)
    model = LongcatFlashForCausalLM.from_pretrained(TINY, device=device, ep_group=dist.group.WORLD, tp_group=tp,
                                                    tp_form=form or "token")  # fmt: skip
    try:
        same = 2 if form == "all_reduce" else 1
        own = prompts(alone.config.vocab_size)[node.rank // same :: node.ranks // same]
        right = longcat_ops.generate(alone, own, NEW, eos_token_id=-1, graph=False).sequences
        bound = moved(alone, right, cut=False) if tp else 0.0
        wrong = []
        for graph in (False, not model.parallel.no_graph):
            got = longcat_ops.generate(model, own, NEW, eos_token_id=-1, graph=graph).sequences
            wrong += [f"text, graph={graph}: {why}" for a, b in zip(right, got, strict=True)
                      if (why := parted(alone, a, b, bound))]  # fmt: skip
        found, want = decoded(model, own).logits, decoded(alone, own).logits
        off = float((found - want).abs().max())
        wrong += [f"logits are off by {off}, expected at most {bound}"] * (not off <= bound)
        model.execute = serial
        wrong += ["one stream"] * (bits(decoded(model, own).logits) != bits(found))
        return wrong
    finally:
        model.parallel.close()
