"""The engine on a CPU beside one-by-one decoding and HF transformers' batched `generate`: same weights, machine, run.

    python -m pytest bench/engine/bench_engine.py

The tiny checkpoint, 16 prompts of 64 tokens, greedy, 128 new tokens each, as in bench_generate.py; an engine of 16
requests, prompts included in its time. Ways take turns in 15 rounds; figures are medians, with the 10th and the 90th
percentile. The peer is HF at the same batch, in the faster of its two dtypes; `ratio_to_one_by_one` compares with our
`generate` for one prompt after the other, in the same precision, with drafts or without alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch

from engine import bench_generate, networks
from engine.bench_generate import BATCH, NEW, PROMPT, Ways
from engine.networks import Networks
from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.engine.engine import Engine
from report import cpu_time

threads = bench_generate.threads  # the fixture
PRECISIONS = ("bf16", "FP8")


@pytest.fixture(scope="module")
def nets() -> Iterator[Networks]:
    if not networks.CHECKPOINT.is_dir():
        pytest.skip(f"{networks.CHECKPOINT} is not there")
    return networks.tiny()


def one_by_one(model: LongcatFlashForCausalLM, ids: torch.Tensor, new: int, drafts: bool) -> list[list[int]]:
    return [networks.run_ours(model, row[None], new, drafts).sequences[0].tolist() for row in ids]


def together(engine: Engine, ids: torch.Tensor, new: int) -> list[list[int]]:
    requests = [engine.submit(row, new) for row in ids]
    engine.run()
    return [request.prompt + request.tokens for request in requests]


def test_engine(nets: Networks, threads: int, benchmark) -> None:
    ids, new = nets.prompts(BATCH, PROMPT), NEW[nets.name]
    ways: Ways = {f"HF {dtype}": lambda m=model: networks.run_hf(m, ids, new) for dtype, model in nets.hf.items()}
    alone: dict[str, str] = {}
    with ExitStack() as engines:
        for precision in PRECISIONS:
            model = nets.ours[precision]
            for drafts in (False, True):
                name = f"{'drafts' if drafts else 'plain'} {precision}"
                engine = engines.enter_context(
                    Engine(model, max_batch=BATCH, max_tokens=BATCH * (PROMPT + new), speculative=drafts,
                           eos_token_id=-1)
                )  # fmt: skip
                run_alone: Callable[[], object] = lambda m=model, d=drafts: one_by_one(m, ids, new, d)  # noqa: E731
                ways[f"1 by 1 {name}"] = run_alone
                ways[f"engine {name}"] = lambda e=engine: together(e, ids, new)
                assert ways[f"engine {name}"]() == run_alone(), name  # the same texts are timed
                alone[f"engine {name}"] = f"1 by 1 {name}"
        seconds = cpu_time.in_turns(ways)
        bench_generate.report(benchmark, nets, threads, f"engine, batch {BATCH}", BATCH * new, seconds)
        rate = benchmark.extra_info["tokens_per_s"]
        benchmark.extra_info["ratio_to_one_by_one"] = {
            name: round(rate[name] / rate[other], 2) for name, other in alone.items()
        }
        benchmark.pedantic(ways["engine plain bf16"], rounds=1)
