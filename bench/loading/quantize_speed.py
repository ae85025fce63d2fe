"""How fast `quantize` writes the FP8 form of a bf16 checkpoint, how much memory it takes, and how fast `cp` copies it.

    python bench/loading/quantize_speed.py FOLDER [--gb 5] [--threads 1]     # FOLDER: on the disk that is asked about

The source is noise in the shapes of LongCat-Flash's layers. Each way is timed until the disk has the bytes, `quantize`
by its own syncs and `cp` with `sync` behind it; the source lies in the page cache for both. Memory: the most anonymous
memory (RssAnon) of the process during the run, above what it held after its imports.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

import torch  # noqa: E402

from longcat_ops import LongcatFlashConfig  # noqa: E402
from longcat_ops.loading.quantize import quantize  # noqa: E402
from support.quantizing import anonymous, large_source  # noqa: E402

EXPERT = 3 * 2 * 2048 * 6144  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layer = 2 * (90.6e6 + 226.5e6) * 2  # bytes of two attentions and two dense FFNs
    experts = max(1, round((args.gb * 1e9 - layer) / EXPERT))
    config = LongcatFlashConfig(num_layers=1, n_routed_experts=experts, zero_expert_num=1, moe_topk=1, vocab_size=1024)
    args.folder.mkdir(parents=True, exist_ok=True)
    source = large_source(args.folder / "bf16", config)
    file, copy, made = source / "model.safetensors", args.folder / "copy", args.folder / "fp8"
    size = file.stat().st_size
    print(f"source: {size / 1e9:.2f} GB, largest tensor 151 MB, {args.threads} threads")
    for _ in range(args.rounds):
        start = perf_counter()
        subprocess.run(["cp", file, copy], check=True)
        subprocess.run(["sync", copy], check=True)
        copied = perf_counter() - start
        copy.unlink()
        before, most = anonymous(), 0

        def look(*_: object) -> None:
            nonlocal most
            most = max(most, anonymous())

        start = perf_counter()
        quantize(source, made, progress=look)
        took = perf_counter() - start
        shutil.rmtree(made)
        rates = [size / seconds / 1e9 for seconds in (took, copied)]
        print("GB of source a second: quantize {:.2f}, cp and sync {:.2f};".format(*rates), end=" ")
        print(f"growth of RssAnon {(most - before) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
