"""tools/gpu_check.py without a GPU: order, limits, resuming, parsing, where the libraries come from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import gpu_check
import run_conformance
from conformance import golden
from device_check import environment as environments
from device_check import runner
from device_check.runner import Report, Step, run_part
from device_check.steps import MATRICES, PARTS, gpu_benches, op_tests, steps_of
from support.check_steps import PASSED, counting, python, sleeps_once

ROOT = Path(__file__).resolve().parents[2]


def prints(name: str, text: str = PASSED, limit: float = 20, status: int = 0) -> Step:
    return Step(name, python(f"print({text!r}); raise SystemExit({status})"), limit, "pytest")


def statuses(report: Report, part: int = 1) -> dict[str, str]:
    return {name: entry["status"] for name, entry in report.steps(part).items()}


def quiet(_: str) -> None:
    pass


def test_a_failing_step_and_one_over_its_limit_do_not_end_the_part(tmp_path: Path) -> None:
    mark = tmp_path / "grandchild"
    # The step's own child would write the mark: it must end with the step.
    code = f"import time; time.sleep(2.5); open({str(mark)!r}, 'w')"
    slow = f"import subprocess, sys; print('began', flush=True); subprocess.run([sys.executable, '-c', {code!r}])"
    steps = [
        prints("first", "1 failed, 3 passed in 0.20s", status=1),
        Step("slow", python(slow), 0.6, "pytest"),
        Step("absent", ("no-such-program",), 5, "sanitizer"),
        prints("killed_itself", status=-9),
        prints("last", "4 passed, 1 skipped in 0.2s"),
    ]
    report = Report(tmp_path / "out")
    assert run_part(report, 1, steps, 60, quiet)
    assert statuses(report) == {
        "first": "failed", "slow": "timed out", "absent": "failed", "killed_itself": "failed", "last": "passed",
    }  # fmt: skip
    kept = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]["1"]
    assert kept["first"]["result"] == {"counts": {"failed": 1, "passed": 3}, "failed": []}
    assert kept["slow"]["tail"] == "began\n" and kept["slow"]["exit_status"] is None
    assert "no-such-program" in kept["absent"]["tail"] and kept["absent"]["exit_status"] == 127
    assert kept["last"]["command"] == list(steps[-1].command) and kept["last"]["date"]
    assert "== slow" in (tmp_path / "out" / "log.txt").read_text()
    time.sleep(2.5)
    assert not mark.exists()


def test_what_is_finished_is_not_repeated(tmp_path: Path) -> None:
    steps = [counting("a", tmp_path), prints("b", "1 failed in 0.1s", status=1)]
    assert run_part(Report(tmp_path), 1, steps, 60, quiet)
    assert run_part(Report(tmp_path), 1, [*steps, counting("c", tmp_path)], 60, quiet)
    assert (tmp_path / "a").read_text() == (tmp_path / "c").read_text() == "x"


def test_a_part_that_is_out_of_time_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "WORTH_STARTING_S", 0)
    steps = [counting("a", tmp_path), replace(sleeps_once("b", tmp_path), limit_s=90), counting("c", tmp_path)]
    assert not run_part(Report(tmp_path), 1, steps, 4, quiet)
    assert statuses(Report(tmp_path)) == {"a": "passed", "b": "interrupted"}
    assert run_part(Report(tmp_path), 1, steps, 60, quiet)
    assert [(tmp_path / name).read_text() for name in "abc"] == ["x", "xx", "x"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_keeps_its_results_and_is_resumed(tmp_path: Path, how: signal.Signals) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tools")!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
import gpu_check
from support import check_steps
folder = Path({str(tmp_path)!r})
steps = [check_steps.counting("a", folder), check_steps.sleeps_once("b", folder)]
gpu_check.steps_of = lambda *_: steps
gpu_check.environments.bundle_problem = lambda *_: ""
gpu_check.stop_on_sigterm()
raise SystemExit(gpu_check.main(["--part", "2", "--out", str(folder)]))
"""
    process = subprocess.Popen(python(code), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "b").exists() and (tmp_path / "b").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) == (-9 if how == signal.SIGKILL else 143)
    assert statuses(Report(tmp_path), 2) == {"a": "passed", "b": "running"}
    subprocess.run(python(code), check=True, stdout=subprocess.DEVNULL)
    assert statuses(Report(tmp_path), 2) == {"a": "passed", "b": "passed"}
    assert [(tmp_path / name).read_text() for name in "ab"] == ["x", "xx"]


@pytest.fixture
def no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"date": "2026-11-22", "device": "NVIDIA H100", "driver": "580.1"}
    monkeypatch.setattr(gpu_check, "gather_facts", lambda dry_run: facts | {"dry_run": dry_run})
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("part", PARTS)
def test_dry_run(part: int, tmp_path: Path, no_nvidia_smi: None, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--part", str(part), "--dry-run", "--out", str(tmp_path), "--bundle", str(ROOT / "none")]
    assert gpu_check.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "the bundle is not used: there is no " in printed and "none/manifest.json" in printed
    report = Report(tmp_path)
    real = steps_of(part, environments.built(), tmp_path)
    assert set(statuses(report, part).values()) <= {"passed"}
    assert list(report.steps(part)) == [step.name for step in real]
    for step in real:  # the report shows the command that a real run would execute
        assert report.steps(part)[step.name]["command"][-len(step.command) :] == list(step.command)
        assert 0 < step.limit_s <= 300
    with pytest.raises(SystemExit):  # a dry run's folder is not taken for a real one's
        gpu_check.main(["--part", str(part), "--out", str(tmp_path)])


def test_the_command_line(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    command = [ROOT / "tools" / "gpu_check", "--part", "4", "--dry-run", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "part 4: benches" in done.stdout and (tmp_path / "out" / "report.json").exists()


def test_steps_again(tmp_path: Path, no_nvidia_smi: None) -> None:
    arguments = ["--part", "1", "--dry-run", "--out", str(tmp_path), "--bundle", str(ROOT / "none")]
    assert gpu_check.main(arguments) == 0
    first = Report(tmp_path).steps(1)["conformance"]["date"]
    time.sleep(1.1)
    assert gpu_check.main([*arguments, "--again", "conformance"]) == 0
    assert Report(tmp_path).steps(1)["conformance"]["date"] > first
    with pytest.raises(SystemExit):
        gpu_check.main([*arguments, "--again", "nothing"])


def test_without_bundle_and_build_the_check_says_so(
    tmp_path: Path, no_nvidia_smi: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(environments, "build_command", lambda: python("raise SystemExit('no nvcc here')"))
    monkeypatch.setattr(environments, "BUILT", tmp_path / "nowhere")
    assert gpu_check.main(["--part", "1", "--out", str(tmp_path), "--bundle", str(ROOT / "none")]) == 1
    report = Report(tmp_path).content
    assert "no nvcc here" in report["parts"]["0"]["build"]["tail"]
    assert "none/manifest.json" in report["facts"]["libraries"]
    assert "no libraries" in capsys.readouterr().out


def test_a_bundle_of_other_sources_or_one_that_does_not_load_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "cuda").mkdir(parents=True)
    (root / "cuda" / "a.cuh").write_text("int a;")
    folder = root / ".device"
    folder.mkdir()
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"sources": environments.source_hash(root)}))
    problem = environments.bundle_problem(folder, root)
    assert "longcat_ops" in problem or "liblongcat_conformance" in problem, problem
    (root / "cuda" / "a.cuh").write_text("int b;")
    assert "other sources" in environments.bundle_problem(folder, root)


def test_every_op_test_file_and_gpu_bench_is_run() -> None:
    from longcat_ops.ops.registry import OPS

    assert op_tests() == [f"tests/ops/test_{op}.py" for op in OPS if (ROOT / f"tests/ops/test_{op}.py").exists()]
    assert len(op_tests()) > 12
    assert all((ROOT / path).exists() for path in MATRICES)
    assert "bench/bench_moe_gemm.py" in gpu_benches() and "bench/bench_ops.py" not in gpu_benches()


def test_golden_file(tmp_path: Path, no_nvidia_smi: None) -> None:
    given = {"a/b": b"\x01\x02" * 500, "a/c": b"\xff"}
    lines = [{"case": name, "status": "ok", "text": "", "bytes": golden.pack(value)} for name, value in given.items()]
    lines.append({"case": "a/d", "status": "hung", "text": "no result"})
    (tmp_path / "conformance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = Report(tmp_path)
    report.content["facts"] = gpu_check.gather_facts(False)
    report.steps(1)["probe_device"] = {"result": {"device": "NVIDIA H100", "runtime_cuda": 13010}}
    gpu_check.write_golden(report, tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "golden.json").rename(tmp_path / "folder" / "h100.json")
    (read,) = golden.read(tmp_path / "folder")
    assert {name: golden.unpack(packed) for name, packed in read["cases"].items()} == given
    assert (read["device"], read["driver"], read["cuda"], read["date"]) == (
        "NVIDIA H100",
        "580.1",
        "13.1",
        "2026-11-22",
    )
    (tmp_path / "folder" / "anonymous.json").write_text(json.dumps({"cases": {}}))
    with pytest.raises(ValueError, match="does not say its device"):
        golden.read(tmp_path / "folder")


CHILD = """
import json, os, sys, time
for line in sys.stdin:
    name = line.strip()
    print("start", flush=True)
    if name == "hang": time.sleep(60)
    if name == "crash": os.abort()
    status = "error" if name == "error" else "ok"
    print(json.dumps({"case": name, "status": status, "text": str(os.getpid())}), flush=True)
    if status == "error": break
"""


def test_a_case_that_hangs_or_crashes_costs_only_itself() -> None:
    results: list[dict] = []
    names = ["a", "hang", "b", "crash", "c", "error", "d", "e"]
    run_conformance.run_all(names, list(python(CHILD)), results.append, 1.5)
    assert [r["case"] for r in results] == names
    by_name = {r["case"]: r for r in results}
    assert [by_name[n]["status"] for n in names] == ["ok", "hung", "ok", "crashed", "ok", "error", "ok", "ok"]
    assert by_name["hang"]["text"] == "no result in 1.5 s" and "status -6" in by_name["crash"]["text"]
    assert by_name["d"]["text"] == by_name["e"]["text"] != by_name["a"]["text"]


def test_results_of_cases_survive_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert run_conformance.read_results(path) == {}
    path.write_text('{"case": "a", "status": "ok", "text": ""}\n{"case": "b", "stat')
    assert list(run_conformance.read_results(path)) == ["a"]
