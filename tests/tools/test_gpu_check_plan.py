"""The plan of tools/gpu_check.py, its rehearsal in the emulator, and its command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gpu_check
from device_check import environment as environments
from device_check.answers import Answers
from device_check.environment import Environment
from device_check.plan import MATRICES, PLAN, gpu_benches, op_tests
from support.check_steps import counting, prints

ROOT = Path(__file__).resolve().parents[2]


def statuses(answers: Answers) -> dict[str, str]:
    return {name: line["status"] for name, line in answers.steps.items()}


def test_the_plan_is_whole() -> None:
    """Step names are unique, every question or command exists, arguments fit, and every command has a rehearsal."""
    from longcat_ops.ops.registry import OPS

    assert len({step.name for step in PLAN}) == len(PLAN)
    for step in PLAN:
        assert 0 < step.seconds <= step.limit_s <= 300 and bool(step.ask) != bool(step.command), step.name
        assert step.ask or step.rehearsal, step.name
        assert set(step.small) <= {*step.arguments, "hidden", "width"}, step.name
    order = list(dict.fromkeys(step.name.split("/")[0] for step in PLAN))
    assert order[:8] == [
        "facts", "smoke", "residency", "conformance", "collectives", "experts", "engine", "rates",
    ]  # fmt: skip
    before_long = [step.seconds for step in PLAN[: [step.name for step in PLAN].index("times/DeepGEMM-gate_up-G4-m8")]]
    assert sum(before_long) < 360 - 30  # all steps that need no compiler fit into the first call
    assert op_tests() == [f"tests/ops/test_{op}.py" for op in OPS if (ROOT / f"tests/ops/test_{op}.py").exists()]
    assert len(op_tests()) > 12 and all((ROOT / path).exists() for path in MATRICES)
    products = {"bench/products/bench_moe_gemm.py", "bench/products/bench_bf16_gemm.py"}
    assert products <= set(gpu_benches()) and "bench/ops/bench_ops.py" not in gpu_benches()


def test_every_kernel_is_asked_about() -> None:
    """Some smoke question calls every op that has a CUDA kernel."""
    text = " ".join(path.read_text() for path in (ROOT / "tools/device_check/questions").glob("smoke*.py"))
    launchers = " ".join(path.read_text() for path in (ROOT / "cuda").rglob("*.cu"))
    from longcat_ops.ops.registry import OPS

    with_kernel = [op for op in OPS if f"lc_{op}(" in launchers]
    assert len(with_kernel) > 10 and not [op for op in with_kernel if op not in text]


@pytest.mark.parametrize(
    "names",
    [
        "facts rates/memory rates/box-16 rates/multicast",
        "smoke/dispatch-T1 smoke/quantisers-T1 smoke/offset-down-G4 smoke/swiglu-G4 smoke/dense",
        "smoke/bf16- smoke/router smoke/rows smoke/latents smoke/queries smoke/attention-8x2",
        "residency/beside-128 residency/two residency/entry_times-T1-",
        "collectives/",
        "experts/",
        "times/attention-96 times/step-2",
        "times/layer-2048 times/gate_up-G4-m8 times/chain-EP128-T1 times/dispatch-T1 times/quantisation",
        "conformance sanitizer/memcheck-conformance",
    ],
)
def test_a_rehearsal(names: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wanted = [step.name for step in PLAN if step.name.startswith(tuple(names.split()))]
    arguments = ["--budget", "360", "--dry-run", "--out", str(tmp_path), "--only", *names.split()]
    assert gpu_check.main(arguments) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert f"for all {len(wanted)} steps" in printed and f"{len(wanted)} passed" in printed
    answers = Answers(tmp_path)
    assert statuses(answers) == dict.fromkeys(wanted, "passed") and answers.runs[0]["dry_run"]
    assert not (tmp_path / "golden.json").exists()  # results of the emulator are not golden
    with pytest.raises(SystemExit):  # a real run refuses a rehearsal's folder
        gpu_check.main(["--budget", "10", "--out", str(tmp_path)])


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gpu_check.main(["--budget", "360", "--dry-run", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    assert statuses(Answers(tmp_path)) == {step.name: "passed" for step in PLAN}


def test_the_command_line(tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess:
        words = [ROOT / "tools" / "gpu_check", *arguments]
        environment = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = call("--budget", "60", "--plan")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(PLAN) + 1 and "facts" in lines[0] and f"all {len(PLAN)} steps" in lines[-1]
    assert "beyond the budget" not in lines[0] and "beyond the budget" in lines[-2]
    assert "expected more than 0 seconds" in call("--budget", "0").stderr
    assert "no step's name begins so" in call("--budget", "9", "--only", "nothing").stderr


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """gpu_check with a plan of three steps."""
    steps = [counting("a/one", tmp_path), counting("a/two", tmp_path), prints("bad", "1 failed in 0s", status=1)]
    monkeypatch.setattr(gpu_check, "PLAN", steps)
    monkeypatch.setattr(environments, "rehearsal", lambda: Environment(tmp_path, tmp_path, tmp_path, "cpu"))
    monkeypatch.chdir(ROOT)
    return lambda *more: gpu_check.main(["--budget", "60", "--dry-run", *more])


def test_steps_again(tmp_path: Path, planted: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "out")
    assert planted("--out", out) == 1
    assert "2 passed, 1 failed" in capsys.readouterr().out
    assert planted("--out", out, "--again", "a/o") == 1
    assert [(tmp_path / "a" / name).read_text() for name in ("one", "two")] == ["xx", "x"]
    first = Answers(tmp_path / "out").steps["bad"]["date"]
    time.sleep(1.1)
    assert planted("--out", out, "--again", "failed") == 1
    assert Answers(tmp_path / "out").steps["bad"]["date"] > first
    assert (tmp_path / "a" / "two").read_text() == "x"


def test_a_later_call_goes_on_from_a_copy(tmp_path: Path, planted: Callable[..., int]) -> None:
    planted("--out", str(tmp_path / "first"), "--only", "a/one")
    planted("--out", str(tmp_path / "second"), "--from", str(tmp_path / "first"))
    assert [(tmp_path / "a" / name).read_text() for name in ("one", "two")] == ["x", "x"]
    assert len(Answers(tmp_path / "second").steps) == 3 and len(Answers(tmp_path / "first").steps) == 1
