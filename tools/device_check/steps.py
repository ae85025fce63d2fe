"""What a check does, part by part. Limits are far above what a step should take; parts fit into their budget or are
continued by the next call."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from .environment import ROOT, Environment
from .runner import Step

PART_BUDGET_S = 530.0
PARTS = {
    1: "device probe and conformance",
    2: "tests on the CUDA backend",
    3: "compute-sanitizer on small cases",
    4: "benches",
}
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
MATRICES = ("tests/ops/test_gemm_matrix.py", "tests/ops/test_swiglu_gemm_matrix.py")  # of the FP8 GEMMs, any backend
RUN_CASES = "tools/run_conformance.py"
# What a sanitizer, under which everything takes a hundred times as long, gets of the conformance cases.
SMALL_CASES = "thread/,memory/,mbarrier/,tma/load_2d,tma/store_swizzle_128,bulk/,matrix/,wgmma/e4m3_n16,sums/e4m3_near"


def pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def op_tests(root: Path = ROOT) -> list[str]:
    """The test files that are named after an op."""
    listed = re.findall(r'^    "(\w+)": Op\(', (root / "python/longcat_ops/ops/registry.py").read_text(), re.MULTILINE)
    return [f"tests/ops/test_{op}.py" for op in listed if (root / f"tests/ops/test_{op}.py").exists()]


def gpu_benches(root: Path = ROOT) -> list[str]:
    """Bench files that know of CUDA: on a machine that has it they measure there."""
    return [f"bench/{p.name}" for p in sorted((root / "bench").glob("bench_*.py")) if "torch.cuda" in p.read_text()]


def probe_steps(environment: Environment, out: Path) -> list[Step]:
    variables, library = environment.variables(), str(environment.conformance)
    probe = (sys.executable, RUN_CASES, library, "--probe")
    return [
        Step("probe_device", (*probe, "device"), 60, "json", variables),
        Step("probe_multicast", (*probe, "multicast"), 30, "json", variables),
        Step("probe_rates", (*probe, "rates"), 60, "json", variables),
        Step(
            "conformance",
            (sys.executable, RUN_CASES, library, str(out / "conformance.jsonl")),
            300,
            "conformance",
            variables,
            resumes=True,
        ),
    ]


def test_steps(environment: Environment, out: Path) -> list[Step]:
    variables = environment.variables()
    steps = [
        Step("pytest_gpu", pytest("-m", "gpu", "--continue-on-collection-errors", "tests"), 240, "pytest", variables)
    ]
    for path in (*op_tests(), *MATRICES):
        steps.append(Step(f"cuda_{Path(path).stem[5:]}", pytest("--backend", "cuda", path), 120, "pytest", variables))
    return steps


def sanitizer_steps(environment: Environment, out: Path) -> list[Step]:
    # Every allocation is cudaMalloc's own, so that what was never written is known as such.
    variables = environment.variables() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    steps = []
    for tool in SANITIZERS:
        sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "86")
        cases = (sys.executable, RUN_CASES, str(environment.conformance), "--in-process", "--only", SMALL_CASES)
        calls = (sys.executable, "tools/device_check/small_calls.py")
        steps.append(Step(f"{tool}_conformance", (*sanitizer, *cases), 120, "sanitizer", variables))
        steps.append(Step(f"{tool}_ops", (*sanitizer, *calls), 180, "sanitizer", variables))
    return steps


def bench_steps(environment: Environment, out: Path) -> list[Step]:
    variables, steps = environment.variables(), []
    for path in gpu_benches():
        # The numbers follow pytest's words, so that one output has both.
        result = out / f"{Path(path).stem}.json"
        command, file = shlex.join(pytest(path, f"--benchmark-json={result}")), shlex.quote(str(result))
        shell = f"{command}; status=$?; cat {file}; rm -f {file}; exit $status"
        steps.append(Step(Path(path).stem, ("bash", "-c", shell), 300, "benchmark", variables))
    return steps


def steps_of(part: int, environment: Environment, out: Path) -> list[Step]:
    return {1: probe_steps, 2: test_steps, 3: sanitizer_steps, 4: bench_steps}[part](environment, out)
