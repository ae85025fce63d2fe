"""Decodes a checkpoint whose experts are shared out over ranks, each with prompts of its own.

torchrun --nproc-per-node 2 examples/parallel_generate.py [--checkpoint DIR] [--max-new-tokens N] [--prompts N]

On GPUs rows travel by the kernels over NVLink or by NCCL, elsewhere by gloo. The text does not depend on the number of
ranks.
"""

from __future__ import annotations

import argparse
import os
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
    args = parser.parse_args()

    on_gpus = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokenizer = load_tokenizer(args.checkpoint)

    model = longcat_ops.LongcatFlashForCausalLM.from_pretrained(
        args.checkpoint, device=device, ep_group=dist.group.WORLD
    )
    texts = [OPENINGS[i % len(OPENINGS)] for i in range(max(args.prompts, ranks))]
    own = [torch.tensor([model.config.bos_token_id, *tokenizer.encode(text).ids]) for text in texts[rank::ranks]]
    start = time.perf_counter()
    out = longcat_ops.generate(model, own, args.max_new_tokens)
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
        report(model, everyones, seconds)
    model.parallel.close()
    dist.destroy_process_group()


def report(model: longcat_ops.LongcatFlashForCausalLM, ranks: list[dict], seconds: float) -> None:
    """What all ranks did, on the first one."""
    for r, one in enumerate(ranks):
        for text in one["texts"]:
            print(f"rank {r}: {' '.join(text.split())}")
    tokens = sum(one["tokens"] for one in ranks)
    accepted, drafted = (sum(one[name] for one in ranks) for name in ("accepted", "drafted"))
    experts = [n for one in ranks for n in one["experts"]]
    c = model.config
    print(f"ranks       {len(ranks)}, {len(model.parallel.experts)} of {c.n_routed_experts} FFN experts each, "
          f"rows by {', '.join(ranks[0]['backend'])}")  # fmt: skip
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
