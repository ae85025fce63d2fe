"""The benches of collectives and of experts over ranks and the tests of a node run end to end here, on two ranks of
torchrun over gloo: one start of the ranks for all. What they say of speed means nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = "bench/comm/bench_comm.py::test_beside_peers"
CELLS = ("all_reduce-even-4K-eager", "reduce_scatter-ragged-16K-eager", "all_gather-2^i-4K-eager",
         "broadcast-even-4K-graph", "all_reduce_residual_rmsnorm-even-4K-eager")  # fmt: skip
EXPERTS = "bench/comm/bench_ep.py::test_beside_peers[dispatch and combine-1]"
VALUES, SEQUENCES, FAULTS = (f"tests/multi_gpu/test_{name}.py::" for name in ("values", "sequences", "faults"))
NODE = (
    f"{VALUES}test_all_reduce[gloo-bfloat16-symmetric, off by one]",
    f"{VALUES}test_all_reduce[multimem-float32-new]",
    f"{VALUES}test_reduce_scatter[gloo-float16-on the device]",
    f"{VALUES}test_all_gather[gloo-float8_e4m3fn-in place]",
    f"{VALUES}test_all_reduce_residual_rmsnorm[gloo-bfloat16-fp8_1x128]",
    f"{VALUES}test_deterministic_sums_have_the_same_bits[gloo]",
    f"{SEQUENCES}test_mixed_calls[gloo]",
    f"{SEQUENCES}test_replays_with_other_rows[gloo]",
    f"{FAULTS}test_an_abort_from_the_host[gloo]",
)


@dataclass
class Run:
    text: str
    measured: list[dict]
    experts: list[dict]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    kept = tmp_path_factory.mktemp("comm") / "comm.json"
    plugins = ["-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "-rs"]
    tests = [*(f"{BENCH}[{cell}]" for cell in CELLS), EXPERTS]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pytest"]
    command = [*launch, "-q", *plugins, f"--benchmark-json={kept}", *tests, *NODE]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LONGCAT_OPS_", "PYTEST_", "RANK", "WORLD_SIZE"))}
    clean |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "python"), "CUDA_VISIBLE_DEVICES": "",
              "LONGCAT_OPS_COMM": "gloo", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
              "RES_OPTIONS": "timeout:1 attempts:1"}  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    infos = [bench["extra_info"] for bench in json.loads(kept.read_text())["benchmarks"]]
    return Run(done.stdout, *([info for info in infos if key in info] for key in ("collective", "expert_call")))


def test_the_bench(run: Run) -> None:
    ours = "longcat_ops, ordinary tensors"
    assert [info["collective"] for info in run.measured] == [
        "all_reduce", "reduce_scatter", "all_gather", "all_reduce_residual_rmsnorm",
    ]  # fmt: skip
    for info in run.measured:
        assert info["harness"] and info["ranks"] == 2 and info["backend"] == "gloo" and info["rounds"] == 3
        assert info["measured"][ours]["us"] > 0 and "wire_share" not in info["measured"][ours]
        assert info["lacks"]["longcat_ops"] == "the rung gloo has no memory that every rank reaches"
        assert info["absent"]["MSCCL++"] == info["absent"]["NCCL registered"] == "needs a GPU"
        us = {name: row["us"] for name, row in info["measured"].items()}
        assert info["ratio"] == {name: pytest.approx(us[name] / us[ours], rel=1e-3) for name in us if name != ours}
    assert {"gloo", "gloo, padded"} <= run.measured[1]["measured"].keys()
    assert run.measured[2]["lacks"]["gloo"] == "no all-gather of unequal tensors"
    assert "the harness, not speed: ranks on the host, over gloo" in run.text


def test_the_bench_of_experts(run: Run) -> None:
    (info,) = run.experts
    assert (info["cell"], info["ranks"], info["backend"]) == ("dispatch and combine, 1 tokens a rank", 2, "torch")
    assert info["measured"].keys() == {"longcat_ops", "gloo all-to-all, 12", "gloo all-to-all, 8 in the mean"}
    assert info["absent"]["DeepEP"] == "CUDA tensors only: this process group has no GPU"
    assert info["measured"]["longcat_ops"]["counted"] == info["measured"]["longcat_ops"]["sent"] == info["sent"] > 0


def test_the_tests_of_a_node(run: Run) -> None:
    passed, skipped = re.search(r"(\d+) passed, (\d+) skipped", run.text).groups()
    assert (int(passed), int(skipped)) == (5 + len(NODE) - 1, 2)
    assert "no rung multimem: LONGCAT_OPS_COMM=gloo" in run.text
    assert "on the host the harness alone is tried: eager, up to 64K" in run.text
    assert "  rung gloo: Caps(backend='gloo'" in run.text


def test_only_one_rank_reports(run: Run) -> None:
    assert len(re.findall(r"^\d+ passed", run.text, flags=re.M)) == 1
    assert run.text.count("collectives on 2 ranks") == run.text.count("experts over 2 ranks") == 1
