"""Decoding speed of the whole network on a CPU against `generate` of HF transformers: same weights, machine and run.

    python -m pytest bench/engine/bench_generate.py [-k "tiny and decode"]

The networks are the tiny checkpoint and a random medium one, on one thread and on two. decode: one sequence, greedy, a
prompt of 64 tokens. batch: 16 of them. Both count new tokens a second over the whole call, prompts included. prefill:
512 tokens, until the logits of the last one.

Ways take turns in 15 rounds; figures are medians, with the 10th and the 90th percentile. The peer is HF in the faster
of its two dtypes; `same_precision` compares with HF in ours. A second peer of the tiny network is our model in plain
torch under torch.compile. `read_share` is the rate at which a plain decode reads its weights, of what the same threads
read from memory in the same run; weights that fit into a cache can pass 1. Ids are compared in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from engine import networks
from engine.networks import Networks
from longcat_ops import LongcatFlashForCausalLM
from peers.compiled_model import CompiledModel
from report import cpu_time

PROMPT, BATCH, PREFILL = 64, 16, 512
NEW = {"tiny": 128, "medium": 32}
BUILDERS = {"tiny": networks.tiny, "medium": networks.medium}

Ways = dict[str, Callable[[], object]]


@pytest.fixture(scope="module", params=BUILDERS)
def nets(request: pytest.FixtureRequest) -> Networks:
    if request.param == "tiny" and not networks.CHECKPOINT.is_dir():
        pytest.skip(f"{networks.CHECKPOINT} is not there")
    return BUILDERS[request.param]()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def decoding_ways(nets: Networks, batch: int) -> Ways:
    ids, new = nets.prompts(batch, PROMPT), NEW[nets.name]
    ways: Ways = {f"HF {dtype}": lambda m=model: networks.run_hf(m, ids, new) for dtype, model in nets.hf.items()}
    for precision, model in nets.ours.items():
        ways[f"plain {precision}"] = lambda m=model: networks.run_ours(m, ids, new, False)
        if model.mtp is not None:
            ways[f"speculative {precision}"] = lambda m=model: networks.run_ours(m, ids, new, True)
    return ways


def report(benchmark, nets: Networks, threads: int, what: str, tokens: int, seconds: dict[str, list[float]]) -> None:
    """Tokens a second of each way, and the ratios of ours to HF."""
    quantiles = {name: cpu_time.quantiles([tokens / s for s in values]) for name, values in seconds.items()}
    rate = {name: median for name, (_, median, _) in quantiles.items()}
    hf = [name for name in rate if name.startswith("HF")]
    peer = max(hf, key=rate.get)
    ours = [name for name in rate if name not in hf]
    same = {name: f"HF {name.split()[-1]}" for name in ours if f"HF {name.split()[-1]}" in hf}
    benchmark.group = f"{what}, {nets.name}, {threads} threads"
    benchmark.extra_info.update(
        network=nets.name, what=what, threads=threads, peer=peer,
        tokens_per_s={name: round(r, 1) for name, r in rate.items()},
        p10_p90={name: (round(low, 1), round(high, 1)) for name, (low, _, high) in quantiles.items()},
        ratio_to_peer={name: round(rate[name] / rate[peer], 2) for name in ours},
        same_precision={name: round(rate[name] / rate[other], 2) for name, other in same.items()},
    )  # fmt: skip


def test_decode(nets: Networks, threads: int, benchmark) -> None:
    ways, new = decoding_ways(nets, 1), NEW[nets.name]
    first = {name: run() for name, run in ways.items()}  # warm-up, and the check that the same text is timed
    if "speculative fp32" in first:
        assert torch.equal(first["plain fp32"].sequences[0], first["speculative fp32"].sequences[0])
    if nets.name == "tiny":
        ids = nets.prompts(1, PROMPT)[0].tolist()
        with CompiledModel(networks.CHECKPOINT, threads) as compiled:
            assert compiled.generate(ids, new) == first["plain fp32"].sequences[0].tolist()
            rounds = cpu_time.in_turns(ways | {"torch.compile fp32": lambda: compiled.generate(ids, new)})
    else:
        rounds = cpu_time.in_turns(ways)
    report(benchmark, nets, threads, "decode", new, rounds)
    read = {p: networks.bytes_of_token(m, first[f"plain {p}"]) for p, m in nets.ours.items()}
    rate, memory = benchmark.extra_info["tokens_per_s"], cpu_time.read_bytes_per_second()
    benchmark.extra_info.update(
        mb_per_token={p: round(b / 1e6, 2) for p, b in read.items()},
        read_share={p: round(rate[f"plain {p}"] * b / memory, 2) for p, b in read.items()},
        memory_gb_per_s=round(memory / 1e9, 1),
        same_ids_as_hf_fp32=first["HF fp32"][0] == first["plain fp32"].sequences[0].tolist(),
    )
    benchmark.pedantic(ways["plain fp32"], rounds=1)


def test_batch(nets: Networks, threads: int, benchmark) -> None:
    ways = decoding_ways(nets, BATCH)
    report(benchmark, nets, threads, f"batch {BATCH}", BATCH * NEW[nets.name], cpu_time.in_turns(ways))
    benchmark.pedantic(ways["plain fp32"], rounds=1)


def test_prefill(nets: Networks, threads: int, benchmark) -> None:
    ids = nets.prompts(1, PREFILL)

    def ours(model: LongcatFlashForCausalLM) -> torch.Tensor:
        return model.prefill(model.new_cache(1, PREFILL), 0, ids[0], last_only=True).logits

    ways: Ways = {f"HF {d}": lambda m=m: m(ids, use_cache=True, logits_to_keep=1).logits for d, m in nets.hf.items()}
    ways |= {f"prefill {precision}": lambda m=m: ours(m) for precision, m in nets.ours.items()}
    with torch.inference_mode():
        rounds = cpu_time.in_turns(ways)
        benchmark.pedantic(ways["prefill fp32"], rounds=1)
    report(benchmark, nets, threads, "prefill", PREFILL, rounds)
