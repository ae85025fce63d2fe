"""Decodes a checkpoint over ranks that share its experts, and in groups of --tp its dense weights.

torchrun --nproc-per-node 4 examples/parallel_generate.py [--tp N] [--tp-form token|all_reduce]

Each rank has prompts of its own; in all-reduce form each group has. On GPUs rows travel by kernels over NVLink or by
NCCL, elsewhere by gloo. Without --tp the text does not depend on the number of ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import longcat_ops
from longcat_ops.engine.text import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
OPENINGS = (
    "And God said", "In the beginning", "The LORD is my shepherd", "Now these are the names of",
    "And it came to pass", "Blessed are the", "Hear, O Israel", "The words of",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "longcat-tiny")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=8, help="of all ranks together, at least one a rank")
    parser.add_argument("--tp", type=int, default=1, help="ranks that share dense weights, a divisor of all ranks")
    parser.add_argument("--tp-form", default="token", choices=("token", "all_reduce"), help="see docs/parallel.md")
    args = parser.parse_args()

    on_gpus = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokenizer = load_tokenizer(args.checkpoint)

    tp_group = dist.new_subgroups(args.tp)[0] if args.tp > 1 else None
    model = longcat_ops.LongcatFlashForCausalLM.from_pretrained(
        args.checkpoint, device=device, ep_group=dist.group.WORLD, tp_group=tp_group, tp_form=args.tp_form
    )
    same = args.tp if args.tp_form == "all_reduce" else 1  # ranks that have the same prompts
    texts = [OPENINGS[i % len(OPENINGS)] for i in range(max(args.prompts, ranks))][rank // same :: ranks // same]
    own = [torch.tensor([model.config.bos_token_id, *tokenizer.encode(text).ids]) for text in texts]
    progress = Progress(len(own) * args.max_new_tokens) if rank == 0 else None
    start = time.perf_counter()
    out = longcat_ops.generate(model, own, args.max_new_tokens, on_token=progress)
    seconds = time.perf_counter() - start

    mine = {
        "texts": [tokenizer.decode(ids.tolist()) for ids in out.sequences],
        "tokens": sum(len(ids) - len(prompt) for ids, prompt in zip(out.sequences, own, strict=True)),
        "accepted": sum(out.accepted),
        "drafted": sum(out.drafted),
        "experts": [int(n) for rows in out.num_real for n in rows.flatten()],
        "counts": {name: exchange.counts() for name, exchange in model.parallel.exchanges.items()},
        "backend": [exchange.backend for exchange in model.parallel.exchanges.values()],
    }
    everyones: list[dict] = [{} for _ in range(ranks)]
    dist.all_gather_object(everyones, mine)
    if rank == 0:
        report(model, everyones[::same], everyones, seconds)
    model.parallel.close()
    dist.destroy_process_group()


class Progress:
    """Counts the tokens of one rank on stderr, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.tokens = total, 0

    def __call__(self, sequence: int, token: int, from_draft: bool) -> None:
        self.tokens += 1
        if sys.stderr.isatty():
            end = "" if self.tokens < self.total else "\n"
            print(f"\rrank 0: {self.tokens} of up to {self.total} tokens", end=end, file=sys.stderr, flush=True)


def report(model: longcat_ops.LongcatFlashForCausalLM, groups: list[dict], ranks: list[dict], seconds: float) -> None:
    """What all ranks did, on the first one. groups: the first of those that had the same prompts."""
    for one in groups:
        for text in one["texts"]:
            print(f"rank {ranks.index(one)}: {' '.join(text.split())}")
    tokens = sum(one["tokens"] for one in groups)
    accepted, drafted = (sum(one[name] for one in groups) for name in ("accepted", "drafted"))
    experts = [n for one in groups for n in one["experts"]]
    c, tp = model.config, model.parallel.tp
    print(f"ranks       {len(ranks)}, {len(model.parallel.experts)} of {c.n_routed_experts} FFN experts each, "
          f"rows by {', '.join(ranks[0]['backend'])}")  # fmt: skip
    if tp.ranks > 1:
        print(f"            dense weights in {tp.ranks} parts, {tp.form} form, sums by {tp.comm.backend}")
    print(f"tokens      {tokens} in {seconds:.2f} s, {tokens / seconds:.1f} a second")
    print(f"accepted    {accepted} of {drafted} drafts")
    print(f"experts     {sum(experts) / len(experts):.2f} FFN experts of {c.moe_topk} a token and layer")
    for payload in ranks[0]["counts"]:
        rows, remote, saved, moved = (sum(one["counts"][payload][name] for one in ranks) for name in
                                      ("rows", "remote rows", "slots saved", "bytes"))  # fmt: skip
        print(f"wire        {payload}: {remote} of {rows} rows to other ranks, {moved:,} bytes")
        print(f"            {saved} choices of zero experts, or of none, cost nothing")


if __name__ == "__main__":
    main()
