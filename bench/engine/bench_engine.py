"""The engine on a CPU beside one-by-one decoding and HF transformers' batched `generate`: same weights, machine, run.

    python -m pytest bench/engine/bench_engine.py

The tiny checkpoint in fp32 and bf16, 16 prompts of 64 tokens, greedy, 32 and 128 new tokens each; an engine of 16
requests, prompts included in its time. Ways take turns in 5 rounds, some minutes for each number of threads; figures
are medians, with the 10th and the 90th percentile. The peer is HF at the same batch, in the faster of its two dtypes;
`ratio_to_one_by_one` compares with our `generate` for one prompt after the other, drafts or none alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from engine import bench_generate, networks
from engine.bench_generate import BATCH, PROMPT, Ways
from engine.networks import Networks
from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.engine.engine import Engine
from report import cpu_time

threads = bench_generate.threads  # the fixture
NEW, ROUNDS = (32, 128), 5


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


@pytest.mark.parametrize("new", NEW)
def test_engine(nets: Networks, threads: int, new: int, benchmark) -> None:
    ids = nets.prompts(BATCH, PROMPT)
    ways: Ways = {f"HF {dtype}": lambda m=model: networks.run_hf(m, ids, new) for dtype, model in nets.hf.items()}
    alone: dict[str, str] = {}
    with ExitStack() as engines:
        for precision, drafts in itertools.product(("fp32", "bf16"), (False, True)):
            model, name = nets.ours[precision], f"{'drafts' if drafts else 'plain'} {precision}"
            engine = Engine(
                model, max_batch=BATCH, max_tokens=BATCH * (PROMPT + new), speculative=drafts, eos_token_id=-1
            )
            engines.enter_context(engine)
            ways[f"1 by 1 {name}"] = lambda m=model, d=drafts: one_by_one(m, ids, new, d)
            ways[f"engine {name}"] = lambda e=engine: together(e, ids, new)
            assert ways[f"engine {name}"]() == ways[f"1 by 1 {name}"](), name  # the same texts are timed
            alone[f"engine {name}"] = f"1 by 1 {name}"
        seconds = cpu_time.in_turns(ways, ROUNDS)
        bench_generate.report(benchmark, nets, threads, f"engine, batch {BATCH}, {new} tokens", BATCH * new, seconds)
        rate = benchmark.extra_info["tokens_per_s"]
        benchmark.extra_info["ratio_to_one_by_one"] = {
            name: round(rate[name] / rate[other], 2) for name, other in alone.items()
        }
        benchmark.pedantic(ways["engine plain bf16"], rounds=1)
