"""The plan of a check: the most valuable answers for their time come first. A new kernel needs a row in `PLAN`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from .environment import ROOT, Environment
from .plan_attention import attention, engine
from .plan_ranks import collectives, experts
from .steps import Command, Step

GATE_UP, DOWN = {"n": 4096, "k": 6144}, {"n": 6144, "k": 2048}  # a product of an expert
SMALL_PRODUCT = {"n": 136, "k": 256, "groups": 2}
MODEL = {"width": 6144, "experts": 768, "zero": 256, "top_k": 12}  # what moe_route and its successors see
SMALL_MODEL = {"width": 256, "experts": 24, "zero": 8, "top_k": 4}
SMALL_CHAIN = {"hidden": 256, "width": 128}
PEERS = "cuBLASLt,torch"  # those that compile nothing
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
MATRICES = ("tests/ops/test_gemm_matrix.py", "tests/ops/test_swiglu_gemm_matrix.py")  # of the FP8 GEMMs, any backend
RUN_CASES = "tools/run_conformance.py"
ON_CUDA = re.compile(r"torch\.cuda|measuring\.measured")  # what a bench on a GPU calls
# The conformance cases for a sanitizer, under which everything takes a hundred times as long.
SMALL_CASES = "thread/,memory/,mbarrier/,tma/load_2d,tma/store_swizzle_128,bulk/,matrix/,wgmma/e4m3_n16,sums/e4m3_near"


def smoke() -> list[Step]:
    steps = []
    for tokens in (1, 96, 192):
        small = {"tokens": min(tokens, 5)}
        rows = {"tokens": tokens, "width": 6144}
        steps.append(Step(f"smoke/quantisers-T{tokens}", 0.5, ask="smoke.quantisers", arguments=rows,
                          small=small | {"width": 256}))  # fmt: skip
        steps.append(Step(f"smoke/dispatch-T{tokens}", 1, ask="smoke.dispatch", arguments=MODEL | {"tokens": tokens},
                          small=SMALL_MODEL | small))  # fmt: skip
    steps.append(Step("smoke/latents", 0.5, ask="smoke.latents", arguments={"tokens": 24, "latent": 512, "width": 64},
                      small={"tokens": 3, "latent": 256, "width": 16}))  # fmt: skip
    queries = {"tokens": [1, 8, 9, 32, 96, 192], "heads": 64, "nope": 128, "latent": 512, "width": 64}
    steps.append(Step("smoke/queries", 1, ask="smoke.queries", arguments=queries,
                      small={"tokens": [1, 9], "heads": 2, "nope": 72, "latent": 72, "width": 8}))  # fmt: skip
    sizes = {"heads": 64, "latent": 512, "rope": 64}
    small = {"heads": 3, "latent": 64, "rope": 16, "context": 150, "splits": [64, 128]}
    for sequences, tokens in ((1, 1), (8, 2), (5, 3)):
        arguments = sizes | {"sequences": sequences, "tokens": tokens, "context": 5000, "splits": [512, 4096]}
        steps.append(Step(f"smoke/attention-{sequences}x{tokens}", 2, 30, "smoke_attention.decode", arguments,
                          small | {"sequences": min(sequences, 2)}))  # fmt: skip
    steps.append(Step("smoke/rows", 0.5, ask="smoke.rows", arguments={"tokens": 192, "width": 6144},
                      small={"tokens": 3, "width": 264}))  # fmt: skip
    for sequences in (1, 40, 192):
        sizes = {"sequences": sequences, "drafts": 1 + (sequences < 100), "vocabulary": 131072}
        small = sizes | {"sequences": min(sequences, 9), "vocabulary": 300}
        steps.append(
            Step(f"smoke/decode-step-B{sequences}", 0.5, ask="smoke.decode_step", arguments=sizes, small=small)
        )
    steps.append(Step("smoke/draws", 1, ask="smoke_sampling.draws",
                      arguments={"sequences": 24, "drafts": 2, "vocabulary": 131072},
                      small={"sequences": 9, "vocabulary": 300}))  # fmt: skip
    for groups in (4, 64):
        for name, shape in (("gate_up", GATE_UP), ("down", DOWN)):
            for layout in ("offset", "masked", "contiguous"):
                arguments = {"layout": layout, "groups": groups, "tokens": [1, 96, 192], **shape}
                small = SMALL_PRODUCT | {"tokens": [3, 40]}
                steps.append(Step(f"smoke/{layout}-{name}-G{groups}", 2, ask="smoke.product", arguments=arguments,
                                  small=small))  # fmt: skip
        arguments = {"width": 2048, "k": 6144, "groups": groups, "tokens": [1, 96, 192]}
        small = {"width": 128, "k": 256, "groups": 2, "tokens": [3, 40]}
        steps.append(Step(f"smoke/swiglu-G{groups}", 2, ask="smoke.swiglu", arguments=arguments, small=small))
    arguments = {"layout": "unmapped", "groups": 4, "tokens": [1, 96], **DOWN}
    steps.append(Step("smoke/unmapped-down-G4", 1, ask="smoke.product", arguments=arguments,
                      small=SMALL_PRODUCT | {"tokens": [3]}))  # fmt: skip
    small = {"n": 136, "k": 640, "tokens": [3]}
    steps.append(Step("smoke/dense", 1, ask="smoke.dense", arguments={"tokens": [1, 96, 192], **GATE_UP}, small=small))
    return [*steps, *smoke_bf16()]


def smoke_bf16() -> list[Step]:
    tokens, few = {"tokens": [1, 96, 192]}, {"tokens": [3, 40]}
    swiglu = {"width": 2048, "k": 6144, "groups": 4}
    return [
        Step("smoke/bf16-gate_up-G4", 2, ask="smoke_bf16.products", arguments=GATE_UP | tokens | {"groups": 4},
             small=SMALL_PRODUCT | few),
        Step("smoke/bf16-down-G4", 2, ask="smoke_bf16.products", arguments=DOWN | tokens | {"groups": 4},
             small=SMALL_PRODUCT | few),
        Step("smoke/bf16-swiglu-G4", 2, ask="smoke_bf16.swiglu", arguments=swiglu | tokens,
             small={"width": 128, "k": 128, "groups": 2} | few),
        Step("smoke/router", 1, ask="smoke_bf16.router", arguments={"experts": 768, "hidden": 6144} | tokens,
             small={"experts": 72, "hidden": 264, "tokens": [1, 9]}),
    ]  # fmt: skip


def residency() -> list[Step]:
    product = {"groups": 4, "tokens": 8, **DOWN}
    beside = [
        Step(f"residency/beside-{128 * j}", 1, 20, "residency.beside", product | {"smem": 128 * j},
             SMALL_PRODUCT | {"tokens": 3})
        for j in range(1, 9)
    ]  # fmt: skip
    entries = [
        Step(f"residency/entry_times-T{tokens}-carveout{carveout}", 2, ask="residency.entry_times",
             arguments={"tokens": tokens, "ranks": 128, "carveout": carveout}, small=SMALL_CHAIN | {"tokens": 1})
        for tokens in (1, 96)
        for carveout in (-1, 100)
    ]  # fmt: skip
    return [
        *beside,
        Step("residency/two_launches_back", 1, 30, "residency.two_launches_back", {"rounds": 3000}),
        *entries,
    ]


def conformance(environment: Environment, out: Path) -> tuple[str, ...]:
    return (sys.executable, RUN_CASES, str(environment.conformance), str(out / "conformance.jsonl"))


def some_conformance(environment: Environment, out: Path) -> tuple[str, ...]:
    return (*conformance(environment, out), "--only", "thread/,launches/,box_ring/")


def rates() -> list[Step]:
    steps = [
        Step("rates/memory", 2, ask="rates.memory", arguments={"megabytes": 4096}, small={"megabytes": 1}),
        Step("rates/peaks", 3, ask="rates.probe", arguments={"what": "rates"}),
        Step("rates/multicast", 0.5, 30, "rates.probe", {"what": "multicast"}),
    ]
    for sms in (1, 16, 32, 48, 64, 132):
        steps.append(Step(f"rates/box-{sms}", 0.5, 30, "rates.probe", {"what": "box_rate", "number": sms}))
    return steps


def times() -> list[Step]:
    steps = []
    for groups, tokens in ((4, 8), (16, 8), (4, 96), (8, 8), (32, 8), (16, 96), (4, 32), (4, 192), (16, 32), (16, 192),
                           (8, 32), (8, 96), (8, 192), (32, 32), (32, 96), (32, 192)):  # fmt: skip
        for name, shape in (("gate_up", GATE_UP), ("down", DOWN)):
            arguments = {"groups": groups, "tokens": tokens, "peers": PEERS, **shape}
            steps.append(Step(f"times/{name}-G{groups}-m{tokens}", 1.5, 30, "times.product", arguments,
                              SMALL_PRODUCT | {"tokens": 3}))  # fmt: skip
    chains = [
        Step(f"times/chain-EP{ranks}-T{tokens}", 1.5, ask="times.chain", arguments={"tokens": tokens, "ranks": ranks},
             small=SMALL_CHAIN | {"tokens": 1, "ranks": 128})
        for ranks, tokens in ((128, 1), (128, 8), (128, 96), (32, 8), (32, 96), (8, 8), (8, 96))
    ]  # fmt: skip
    small = {"hidden": 256, "width": 128, "experts": 8, "top_k": 2, "tokens": 4}
    layers = [
        Step(f"times/layer-{name}", 3, ask="times.layer",
             arguments={"hidden": hidden, "width": width, "experts": 128, "top_k": 8, "tokens": 128}, small=small)
        for name, hidden, width in (("2048x768", 2048, 768), ("6144x2048", 6144, 2048))
    ]  # fmt: skip
    others = [
        Step("times/quantisation-T8192", 2, ask="times.quantisation", arguments={"tokens": 8192, "width": 6144},
             small={"tokens": 3, "width": 256}),
        *(Step(f"times/dispatch-T{tokens}", 1.5, ask="times.dispatch", arguments=MODEL | {"tokens": tokens},
               small=SMALL_MODEL | {"tokens": 3}) for tokens in (1, 96, 8192)),
    ]  # fmt: skip
    return [*attention(), *layers, *steps[:8], *chains[:3], *others, *steps[8:], *chains[3:]]


def deep_gemm() -> list[Step]:
    """Steps with DeepGEMM, which compiles each configuration with nvcc: slow, and only where the package is."""
    return [
        Step(f"times/DeepGEMM-{name}-G{groups}-m{tokens}", 15, 60, "times.product",
             {"groups": groups, "tokens": tokens, "peers": "DeepGEMM masked", **shape}, SMALL_PRODUCT | {"tokens": 3})
        for groups, tokens in ((4, 8), (16, 96))
        for name, shape in (("gate_up", GATE_UP), ("down", DOWN))
    ]  # fmt: skip


def pytest(*arguments: str) -> Command:
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    return lambda environment, out: command


def tests(name: str, seconds: float, *arguments: str, rehearsed: Command | None = None) -> Step:
    return Step(name, seconds, 240, command=pytest(*arguments), rehearsal=rehearsed or collected(*arguments),
                parser="pytest")  # fmt: skip


def collected(*arguments: str) -> Command:
    """What a rehearsal does if every test needs a GPU: it only collects them."""

    def command(environment: Environment, out: Path) -> tuple[str, ...]:
        words = shlex.join(pytest("--collect-only", *arguments)(environment, out))
        return ("bash", "-c", f"{words} && echo '1 passed in 0s'")

    return command


def op_tests(root: Path = ROOT) -> list[str]:
    """The test files that are named after an op."""
    listed = re.findall(r'^    "(\w+)": Op\(', (root / "python/longcat_ops/ops/registry.py").read_text(), re.MULTILINE)
    return [f"tests/ops/test_{op}.py" for op in listed if (root / f"tests/ops/test_{op}.py").exists()]


def gpu_benches(root: Path = ROOT) -> list[str]:
    """Bench files that mention CUDA, or what measures products on it: on a machine with a GPU they measure there."""
    benches = sorted((root / "bench").glob("*/bench_*.py"))
    return [path.relative_to(root).as_posix() for path in benches if ON_CUDA.search(path.read_text())]


def graphs() -> list[Step]:
    sample = "replays_with_other_routing and not fp8 or 33-True"
    return [
        tests("graphs/replays", 15, "-m", "gpu", "tests/ops/test_moe_graph.py", "-k", sample),
        tests("graphs/gpu", 60, "-m", "gpu", "--continue-on-collection-errors", "tests"),
    ]


def watched(tool: str, name: str, seconds: float, program: Command) -> Step:
    """A program under compute-sanitizer; a rehearsal runs the program alone."""
    sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "86")

    def alone(environment: Environment, out: Path) -> tuple[str, ...]:
        words = shlex.join(program(environment, out))
        return ("bash", "-c", f"{words} && echo '========= ERROR SUMMARY: 0 errors'")

    # Every allocation is a cudaMalloc of its own, so that the sanitizer can tell which bytes were never written.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(f"sanitizer/{tool}-{name}", seconds, 180, command=lambda e, out: (*sanitizer, *program(e, out)),
                rehearsal=alone, parser="sanitizer", variables=variables)  # fmt: skip


def sanitizers() -> list[Step]:
    def calls(environment: Environment, out: Path) -> tuple[str, ...]:
        return (sys.executable, "tools/device_check/small_calls.py", environment.device)

    def cases(environment: Environment, out: Path) -> tuple[str, ...]:
        return (sys.executable, RUN_CASES, str(environment.conformance), "--in-process", "--only", SMALL_CASES)

    ops = [watched(tool, "ops", 45, calls) for tool in SANITIZERS]
    return [*ops, *(watched(tool, "conformance", 30, cases) for tool in SANITIZERS)]


def rest() -> list[Step]:
    ops = [tests(f"cuda/{Path(p).stem[5:]}", 20, "--backend", "cuda", p, rehearsed=pytest(p)) for p in op_tests()]
    matrices = [tests(f"cuda/{Path(p).stem[5:]}", 60, "--backend", "cuda", p, rehearsed=collected(p)) for p in MATRICES]
    return [*ops, *matrices, *(bench(path) for path in gpu_benches())]


def bench(path: str) -> Step:
    """The numbers follow pytest's own output, so that one output has both. Without a GPU a bench predicts."""
    name = Path(path).stem

    def command(environment: Environment, out: Path) -> tuple[str, ...]:
        result = out / f"{name}.json"
        options = ("-p", "pytest_benchmark.plugin", path, f"--benchmark-json={result}")
        words, file = shlex.join(pytest(*options)(environment, out)), shlex.quote(str(result))
        return ("bash", "-c", f"{words}; status=$?; cat {file}; rm -f {file}; exit $status")

    return Step(f"bench/{name}", 240, 300, command=command, rehearsal=pytest(path), parser="benchmark")


PLAN: list[Step] = [
    Step("facts", 1, ask="rates.facts"),
    *smoke(),
    *residency(),
    Step("conformance", 25, 150, command=conformance, rehearsal=some_conformance, parser="conformance", resumes=True),
    *collectives(),
    *experts(),
    *engine(),
    *rates(),
    *times(),
    *graphs()[:1],
    *sanitizers()[:1],
    *deep_gemm(),
    *graphs()[1:],
    *sanitizers()[1:],
    *rest(),
]
