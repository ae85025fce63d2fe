"""tools/gpu_check.py without a GPU: order, budget, limits, resuming, and the cost of a crash, a hang and a kill."""

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
from device_check.answers import ANSWER_LIMIT, Answers, read_lines
from device_check.environment import Environment
from device_check.runner import Run
from device_check.steps import Step
from support.check_steps import command, counting, prints, python, sleeps_once

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here() -> Environment:
    """An environment whose steps need no library."""
    return Environment(ROOT / "python", Path("none"), Path("none"), "cpu")


def run(steps: list[Step], out: Path, environment: Environment, budget_s: float = 60) -> tuple[Answers, list[str]]:
    answers = Answers(out)
    return answers, Run(answers, environment, out, budget_s, lambda _: None).steps(steps)


def statuses(answers: Answers) -> dict[str, str]:
    return {name: line["status"] for name, line in answers.steps.items()}


def test_a_failing_step_and_one_over_its_limit_cost_themselves_alone(tmp_path: Path, here: Environment) -> None:
    mark = tmp_path / "grandchild"
    # The step's own child would write the mark, so it must be killed with the step.
    code = f"import time; time.sleep(2.5); open({str(mark)!r}, 'w')"
    slow = f"import subprocess, sys; print('began', flush=True); subprocess.run([sys.executable, '-c', {code!r}])"
    steps = [
        prints("first", "1 failed, 3 passed in 0.20s", status=1),
        command("slow", slow, 0.6),
        replace(prints("absent"), rehearsal=lambda *_: ("no-such-program",)),
        prints("killed_itself", status=-9),
        prints("last", "4 passed, 1 skipped in 0.2s"),
    ]
    answers, left = run(steps, tmp_path / "out", here)
    assert not left and statuses(answers) == {
        "first": "failed", "slow": "timed out", "absent": "failed", "killed_itself": "failed", "last": "passed",
    }  # fmt: skip
    kept = Answers(tmp_path / "out").steps
    assert kept["first"]["answer"] == {"counts": {"failed": 1, "passed": 3}, "failed": []}
    assert kept["slow"]["text"] == "began\n" and kept["slow"]["exit_status"] is None
    assert "no-such-program" in kept["absent"]["text"]
    assert kept["last"]["command"][0] == sys.executable and kept["last"]["date"] and kept["last"]["seconds"] >= 0
    assert "== slow" in (tmp_path / "out" / "log.txt").read_text()
    time.sleep(2.5)
    assert not mark.exists()


QUESTIONS = """
import os, time
def answers(machine, number): return {"number": number, "process": os.getpid(), "device": machine.device}
def refuses(machine): raise AssertionError("3 of 8 values differ")
def crashes(machine): os.abort()
def hangs(machine): time.sleep(60)
def breaks(machine): object.__setattr__(machine, "device", "gone"); type(machine).synchronize = _lost
def _lost(self): raise RuntimeError("an illegal memory access was encountered")
def long(machine): return {"text": "x" * 100000}
"""


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a module of questions where a worker finds it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "planted.py").write_text(QUESTIONS)
    # The worker imports device_check.questions.planted, so this folder joins that package's search path.
    (folder / "sitecustomize.py").write_text(
        f"import device_check.questions as questions\nquestions.__path__.append({str(folder)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT / 'tools'}")


def test_a_question_that_crashes_hangs_or_loses_the_device_costs_itself_alone(
    tmp_path: Path, here: Environment, questions: None
) -> None:
    def ask(name: str, function: str, limit: float = 20, **arguments: int) -> Step:
        return Step(name, 0, limit, f"planted.{function}", arguments)

    steps = [
        ask("a", "answers", number=1), ask("refused", "refuses"), ask("b", "answers", number=2),
        ask("crash", "crashes"), ask("c", "answers", number=3), ask("hang", "hangs", 1), ask("d", "answers", number=4),
        ask("break", "breaks"), ask("e", "answers", number=5), ask("long", "long"), ask("absent", "no_such"),
    ]  # fmt: skip
    _, left = run(steps, tmp_path / "out", here, 90)
    assert not left
    found = Answers(tmp_path / "out").steps
    assert list(found) == [step.name for step in steps]
    assert [found[name]["answer"]["number"] for name in "abcde"] == [1, 2, 3, 4, 5]
    process = {name: found[name]["answer"]["process"] for name in "abcde"}
    assert process["a"] == process["b"] and len(set(process.values())) == 4  # a worker lives until it is lost
    assert (found["refused"]["status"], found["refused"]["text"]) == ("failed", "AssertionError: 3 of 8 values differ")
    assert found["crash"]["status"] == "crashed" and "status -6" in found["crash"]["text"]
    assert found["hang"]["status"] == "timed out" and found["hang"]["text"] == "the question: no answer in 1 s"
    assert found["break"]["status"] == "failed" and "illegal memory access" in found["break"]["text"]
    assert "was dropped" in found["long"]["text"] and (tmp_path / "out/answers.jsonl").stat().st_size < ANSWER_LIMIT
    assert "no_such" in found["absent"]["text"] and "Traceback" in (tmp_path / "out/log.txt").read_text()


def test_a_worker_that_cannot_start_is_a_failure_of_each_question(
    tmp_path: Path, here: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers, left = run([Step("q", 0, 20, "rates.facts")], tmp_path / "out", here)
    assert not left and answers.status("q") == "crashed"
    assert "no torch here" in (tmp_path / "out/log.txt").read_text()


def test_what_is_finished_is_not_repeated(tmp_path: Path, here: Environment) -> None:
    steps = [counting("a", tmp_path), prints("b", "1 failed in 0.1s", status=1)]
    run(steps, tmp_path, here)
    run([*steps, counting("c", tmp_path)], tmp_path, here)
    assert (tmp_path / "a").read_text() == (tmp_path / "c").read_text() == "x"


def test_what_does_not_fit_is_passed_over_and_what_the_end_cut_off_is_run_again(
    tmp_path: Path, here: Environment
) -> None:
    long, cut = replace(counting("long", tmp_path), seconds=50), replace(sleeps_once("cut", tmp_path), limit_s=90)
    steps = [counting("a", tmp_path), long, cut, counting("c", tmp_path)]
    answers, left = run(steps, tmp_path, here, 3)
    assert left == ["long", "cut", "c"] or left == ["long", "cut"]
    assert statuses(answers)["cut"] == "interrupted"
    answers, left = run(steps, tmp_path, here)
    assert not left and set(statuses(answers).values()) == {"passed"}
    assert [(tmp_path / name).read_text() for name in ("a", "long", "cut", "c")] == ["x", "x", "xx", "x"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_keeps_its_answers_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tools")!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
import gpu_check
from support import check_steps
folder = Path({str(tmp_path)!r})
gpu_check.PLAN = [check_steps.counting("a", folder), check_steps.sleeps_once("b", folder)]
gpu_check.environments.rehearsal = lambda: gpu_check.Environment(folder, folder, folder, "cpu")
gpu_check.stop_on_sigterm()
raise SystemExit(gpu_check.main(["--budget", "100", "--dry-run", "--out", str(folder)]))
"""
    process = subprocess.Popen(python(code), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "b").exists() and (tmp_path / "b").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) == (-9 if how == signal.SIGKILL else 143)
    assert statuses(Answers(tmp_path)) == {"a": "passed"}
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"step": "b", "sta')  # a line that the kill cut off
    subprocess.run(python(code), check=True, stdout=subprocess.DEVNULL)
    answers = Answers(tmp_path)
    assert statuses(answers) == {"a": "passed", "b": "passed"} and len(answers.runs) == 2
    assert [(tmp_path / name).read_text() for name in "ab"] == ["x", "xx"]


def test_without_bundle_and_build_the_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(environments, "build_command", lambda: python("raise SystemExit('no nvcc here')"))
    monkeypatch.setattr(environments, "BUILT", tmp_path / "nowhere")
    monkeypatch.chdir(ROOT)
    assert gpu_check.main(["--budget", "60", "--out", str(tmp_path), "--bundle", str(ROOT / "none")]) == 1
    printed = capsys.readouterr().out
    assert "the bundle is not used: there is no " in printed and "none/manifest.json" in printed
    assert "no libraries" in printed and "no nvcc here" in printed
    assert "no nvcc here" in Answers(tmp_path).runs[0]["libraries"]


def test_a_bundle_of_other_sources_or_one_that_does_not_load_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "cuda").mkdir(parents=True)
    (root / "cuda" / "a.cuh").write_text("int a;")
    folder = root / ".device"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"sources": environments.source_hash(root)}))
    problem = environments.bundle_problem(folder, root)
    assert "_C for Python" in problem and "does not compile" in problem, problem
    (root / "cuda" / "a.cuh").write_text("int b;")
    assert "other sources" in environments.bundle_problem(folder, root)


def test_golden_file(tmp_path: Path) -> None:
    given = {"a/b": b"\x01\x02" * 500, "a/c": b"\xff"}
    lines = [{"case": name, "status": "ok", "text": "", "bytes": golden.pack(value)} for name, value in given.items()]
    lines.append({"case": "a/d", "status": "hung", "text": "no result"})
    (tmp_path / "conformance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = Answers(tmp_path)
    answers.add({"run": {"date": "2026-11-22 10:00:00"}})
    answers.add({"step": "facts", "status": "passed",
                 "answer": {"device": "NVIDIA H100", "driver_version": "580.1", "runtime_cuda": 13010}})  # fmt: skip
    gpu_check.write_golden(answers, tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "golden.json").rename(tmp_path / "folder" / "h100.json")
    (read,) = golden.read(tmp_path / "folder")
    assert {name: golden.unpack(packed) for name, packed in read["cases"].items()} == given
    origin = tuple(read[fact] for fact in ("device", "driver", "cuda", "date"))
    assert origin == ("NVIDIA H100", "580.1", "13.1", "2026-11-22")
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


def test_lines_survive_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_lines(path) == []
    path.write_text('{"case": "a", "status": "ok", "text": ""}\n{"case": "b", "stat')
    assert list(run_conformance.read_results(path)) == ["a"]
