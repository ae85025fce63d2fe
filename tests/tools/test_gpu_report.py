"""tools/gpu_report.py writes pages of answers beside the recorded predictions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpu_report
from conformance import golden
from device_check import predictions
from device_check.answers import Answers
from device_check.findings import QUESTIONS, answered
from device_check.plan import PLAN
from device_check.predictions import Band, look_up

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"device": "NVIDIA H200", "driver_version": "580.1", "runtime_cuda": 13000, "sms": 132, "torch": "2.11.0"}


def test_bands_are_sane() -> None:
    bands = predictions.bands()
    assert len({(band.step, band.metric) for band in bands}) == len(bands) > 100
    assert all(0 <= band.low <= band.high for band in bands)
    assert {band.step for band in bands} <= {step.name for step in PLAN}
    timed = {step.name for step in PLAN if step.name.startswith("times/")}
    assert timed == {band.step for band in bands if band.step.startswith("times/")}
    by_name = {(band.step, band.metric): band for band in bands}
    # 4 experts of [4096, 6144] in e4m3 are 100.7 MB: 21 us at the 4.8 TB/s that no memory exceeds.
    assert 21 < by_name["times/gate_up-G4-m8", "times.longcat_ops.us"].low < 28
    assert by_name["rates/box-132", "gb_per_s_of_one"].high * 132 < 4800


def test_a_metric_is_a_path() -> None:
    answer = {"times": {"a b": {"us": 3}, "c": None}, "wrong": 0, "entered": True, "text": "x"}
    assert look_up(answer, "times.a b.us") == 3.0 and look_up(answer, "wrong") == 0.0
    assert look_up(answer, "entered") == 1.0
    assert [look_up(answer, m) for m in ("times.d.us", "times.c", "text", "times.a b.us.x")] == [None] * 4
    band = Band("s", "m", 1.0, 2.0, "us")
    assert [band.contains(v) for v in (0.99, 1.0, 2.0, 2.01, float("nan"))] == [False, True, True, False, False]


def answer(name: str, value: dict, status: str = "passed", **more: object) -> dict:
    return {"step": name, "date": "2026-12-01 10:00:01", "seconds": 1.5, "status": status, "answer": value, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    answers = Answers(tmp_path / "given")
    run = {
        "date": "2026-12-01 10:00:00",
        "budget_s": 360,
        "libraries": "bundle",
        "dry_run": False,
        "sources": "ab" * 32,
    }
    answers.add({"run": run})
    answers.add(answer("facts", FACTS))
    times = {"longcat_ops": {"us": 30.0}, "cuBLASLt scaled_mm": {"us": 61.5}}
    ratios = {"cuBLASLt scaled_mm": 2.05}
    answers.add(answer("times/gate_up-G4-m8", {"times": times, "peer_over_ours": ratios}))
    answers.add(answer("times/gate_up-G4-m96", {"times": {"longcat_ops": {"us": 99.0}}, "peer_over_ours": {}}))
    answers.add(answer("residency/two_launches_back", {"words": 4096, "wrong": 0}))
    answers.add(answer("rates/box-16", {"sms": 16, "gb_per_s": 1600.0, "gb_per_s_of_one": 100.0}))
    answers.add(answer("smoke/dense", {}, "failed", text="3 rows: computes\nsomething else"))
    answers.add(answer("rates/multicast", {}, "crashed", text="the worker ended with status -11"))
    origin = {"device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "date": "2026-12-01"}
    golden.write(tmp_path / "given/golden.json", origin, {"a/b": b"\1"})
    return tmp_path / "given"


def test_a_report(folder: Path, tmp_path: Path) -> None:
    target = gpu_report.write(folder, tmp_path / "results", tmp_path / "golden")
    assert target.name == "h200-2026-12-01"
    assert {path.name for path in target.iterdir()} == {"README.md", "answers.jsonl", "products.svg"}
    text = (target / "README.md").read_text()
    bands = {(b.step, b.metric): f"{gpu_report.number(b.low)} .. {gpu_report.number(b.high)}" for b in
             gpu_report.read_bands()}  # fmt: skip
    ours = "times.longcat_ops.us"
    row = "times/gate_up-G4-m8"
    assert f"| {row} | {ours} | 30 | {bands[row, ours]} | us | inside |" in text
    row = "times/gate_up-G4-m96"
    assert f"| {row} | {ours} | 99 | {bands[row, ours]} | us | **outside** |" in text
    assert f"| {row} | peer_over_ours.cuBLASLt scaled_mm |  |" in text and "not measured" in text
    assert "4 of 5 measurements fell inside" in text
    assert "Yes: 0 of 4096 words were not seen." in text and "16: 100 each, 1600 in all" in text
    assert "**Do pairs of blocks fill all multiprocessors?** Not answered" in text
    assert "- smoke/dense: failed after 1.5 s: `3 rows: computes something else`" in text
    assert "rates/multicast: crashed" in text and "driver_version: 580.1" in text
    assert [file["device"] for file in golden.read(tmp_path / "golden")] == ["NVIDIA H200"]
    assert (tmp_path / "golden" / "h200.json").exists()


def test_a_rehearsal_is_no_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for given in (folder, tmp_path / "nothing"):
        answers = Answers(given)
        answers.add({"run": {"date": "2026-12-01", "dry_run": True}})
        with pytest.raises(SystemExit):
            gpu_report.main([str(given)])
        assert "no answers of a GPU" in capsys.readouterr().err


def test_devices_have_short_names() -> None:
    names = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100-80gb-hbm3", "NVIDIA GH200 480GB": "gh200-480gb"}
    assert {name: gpu_report.short_name(name) for name in names} == names


def test_every_question_has_steps_and_stands_in_the_docs() -> None:
    names = [step.name for step in PLAN]
    text = " ".join((ROOT / "docs/hardware.md").read_text().split())
    for question in QUESTIONS:
        assert all(any(name.startswith(beginning) for name in names) for beginning in question.steps), question.text
        assert question.text in text, question.text
        assert answered(question, {}).startswith("Not answered")
        own = {name: {} for name in names if name.startswith(question.steps)}
        assert re.match(r"Not answered: an answer lacks|Yes", answered(question, own)), question.text


def test_what_the_collectives_have_shown() -> None:
    (question,) = [q for q in QUESTIONS if q.steps == ("collectives/",)]
    given = {name: {"calls": 5} for name in ("values-N8", "values-N4", "values-N2", "rows-N8", "in_a_row-N8")}
    given["graphs-N8"] = {"replays": 20}
    given["failures-N8"] = {"calls": 6, "timeout_s": 0.2, "longest_s": 0.21}
    given["times-N8"] = {"what": "one GPU, no links", "times": {"a": {"us": 9.5, "queued": True},
                                                                "b": {"us": 99, "queued": False}}}  # fmt: skip
    given["multicast"] = {"multicast": "not run: cuMulticastCreate"}

    def said() -> str:
        return answered(question, {f"collectives/{name}": value for name, value in given.items()})

    assert said().startswith("Yes. ") and "'graphs-N8': 20" in said() and "0.2 s in vain ended after 0.21 s" in said()
    assert "(one GPU, no links): a 9.5, b 99 (with the host's launches); " in said()
    assert said().endswith("multicast memory: not run: cuMulticastCreate.")
    del given["graphs-N8"], given["multicast"]
    assert said().startswith("Not all of it was shown (graphs-N8). ")
