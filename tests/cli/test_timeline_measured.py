"""`timeline --measure`: refused without a GPU; the text and the JSON of what was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from longcat_ops import _library
from longcat_ops.cli import main
from longcat_ops.cli import timeline_measured as command
from longcat_ops.cli.timeline_measured import Network
from longcat_ops.engine.rank_alone import random_rank
from longcat_ops.engine.stage_times import LayerTimes, Measured, Spread
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.perf.step import Shape
from longcat_ops.perf.timeline import Schedule, schedule

STAGES = ScMoELayer.PARALLEL
TINY = Path(__file__).resolve().parents[2] / "checkpoints" / "longcat-tiny"
KEYS = ["source", "device", "torch", "sequences", "rows", "context", "ranks", "transfers", "model", "rounds", "serial",
        "overlapped", "serial_over_overlapped"]  # fmt: skip
TOTALS = ["compute", "communication", "exposed", "idle", "layer"]
LENGTHS = dict(zip([one.name for one in STAGES], [400, 20, 200, 100, 50, 5, 120, 400, 300, 90, 10, 8], strict=True))


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["timeline", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_without_a_gpu(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = (
        "longcat_ops: timeline: argument `measure` is set on a machine without a GPU that can run it, expected a "
        "Hopper GPU.\n  torch finds no CUDA device\n  fix: without --measure the stages are modelled\n"
    )
    assert refused(capsys, "--measure") == text
    assert refused(capsys, "--measure", "--json", "--checkpoint", "nowhere") == text


def test_on_another_gpu(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library says of the device is what the user reads."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    supported, text = _library.load().device_supported(0)
    if supported:
        pytest.skip("this machine can measure")
    assert text and f"expected a Hopper GPU.\n  {text}\n  fix: " in refused(capsys, "--measure")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--measure", "--ranks", "8"), "`ranks` is 8, expected none with --measure, which runs one rank on the GPU"),
        (("--measure", "--device", "H100"), "`device` is 'H100', expected none with --measure, which"),
        (("--layers", "2"), "`layers` is 2, expected none without --measure."),
        (("--checkpoint", "x"), "`checkpoint` is 'x', expected none without --measure."),
        (("--measure", "--checkpoint", "x", "--layers", "2"), "`layers` is 2, expected none with --checkpoint, which"),
    ],
)
def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture, arguments: tuple, expected: str) -> None:
    assert f"longcat_ops: timeline: argument {expected}" in refused(capsys, *arguments)


def measured(late: int = 0) -> tuple[Measured, Network]:
    """Three layers of each kind, 10 us apart; in turn, 40 us more without a stage."""
    names, ends = [one.name for one in STAGES], 0.0
    overlapped = [schedule(STAGES, LENGTHS | {"add": 8 + 10 * i}) for i in range(3)]
    lanes = LayerTimes(tuple(overlapped), Spread.of([one.layer - 5 for one in overlapped]), late)
    spans = {}
    for name in names:
        spans[name] = schedule((STAGES[names.index(name)],), LENGTHS).spans[name]
        spans[name] = type(spans[name])(ends, ends + LENGTHS[name])
        ends += LENGTHS[name]
    one = Schedule(spans, 1088, 615, 615, ends + 40)
    in_turn = LayerTimes((one, one, one), Spread(1600, 1600, 1600), 0)
    found = Measured("NVIDIA H200", Shape(96, 2, 5000, 1), STAGES, 3, in_turn, lanes)
    return found, Network("random", "fp8", 4, 6144, 4, 2, 6)


def test_the_text_of_a_measurement() -> None:
    found, network = measured(late=2)
    lines = command.lines(found, network, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert lines[0] == f"one layer of a decode step, measured: NVIDIA H200, torch {torch.__version__}, ranks: 1;"
    assert lines[1] == "96 sequences x 2 rows, context 5,000; random weights, fp8, 4 layers of 4 experts"
    assert "its rows go nowhere" in lines[2] and max(map(len, lines)) <= 120
    first, second = lines.index("one stage after another"), lines.index("on two lanes")
    for begin, times in ((first, found.serial), (second, found.overlapped)):
        rows = lines[begin + 2 : begin + 2 + len(STAGES)]
        for row, one in zip(rows, STAGES, strict=True):
            span, us = times.median.spans[one.name], times.us(one.name)
            mark = "█▒"[one.communicates]
            assert row.split()[:2] == [one.name, ("compute", "communication")[one.communicates]]
            numbers = [float(word) for word in row.split()[2:-1] if word != ".."]
            assert numbers == pytest.approx([us.median, us.p10, us.p90, span.begin, span.end], abs=0.51)
            bar = row.split()[-1]
            assert len(bar) == 44 and set(bar) <= {mark, "."} and mark in bar
            assert abs(bar.count(mark) - 44 * LENGTHS[one.name] / times.median.layer) <= 1.5
        assert lines[begin + 2 + len(STAGES)].split()[0] == "exposed"
    # a 0-400, route -420, send -620; first_ffn 420-520, project -570; receive 620-625; experts 625-745;
    # send_results 745-1145, attend_second 745-1045, second_ffn -1135, receive_results 1145-1155, add 1155-1173.
    sums = {line.split("  ")[1]: line.split()[-8:] for line in lines[-8:]}
    assert sums["computation"] == ["1088", "1088", "..", "1088", "1098", "1090", "..", "1106"]
    assert sums["of it exposed, while nothing computes"] == ["615", "615", "..", "615", "75", "75", "..", "75"]
    assert sums["neither lane works"] == ["40", "40", "..", "40", "0.0", "0.0", "..", "0.0"]
    assert sums["the layer"] == ["1743", "1743", "..", "1743", "1173", "1165", "..", "1181"]
    assert sums["the layer, its stages not marked"] == ["1600", "1600", "..", "1600", "1168", "1160", "..", "1176"]
    assert lines[-2].startswith("  in turn / two lanes, stages not marked ") and lines[-2].endswith(" 1.37")
    assert lines[-1] == "  3 rounds each; in 2 of 6 the device may have waited for the host"


def test_the_json_of_a_measurement() -> None:
    facts = json.loads(json.dumps(command.to_dict(*measured(late=2))))
    assert list(facts) == KEYS and facts["source"] == "measured"
    assert [facts[key] for key in KEYS[1:7]] == ["NVIDIA H200", torch.__version__, 96, 2, 5000, 1]
    assert "rows go nowhere" in facts["transfers"] and facts["rounds"] == 3
    assert facts["model"] == {"weights": "random", "precision": "fp8", "layers": 4, "hidden_size": 6144,
                              "ffn_experts": 4, "zero_experts": 2, "top_k": 6}  # fmt: skip
    lanes = facts["overlapped"]
    assert list(lanes) == ["stages", *TOTALS, "layer_without_marks", "late_rounds"] and lanes["late_rounds"] == 2
    assert lanes["stages"][7] == {
        "name": "send_results", "lane": "communication", "us": {"median": 400, "p10": 400, "p90": 400},
        "begin": {"median": 745, "p10": 745, "p90": 745}, "end": {"median": 1145, "p10": 1145, "p90": 1145},
    }  # fmt: skip
    assert lanes["stages"][-1]["us"] == {"median": 18, "p10": 10, "p90": 26}
    assert lanes["layer"] == {"median": 1173, "p10": 1165, "p90": 1181}
    assert lanes["layer_without_marks"] == {"median": 1168, "p10": 1160, "p90": 1176}
    assert facts["serial"]["idle"] == {"median": 40, "p10": 40, "p90": 40}
    assert facts["serial_over_overlapped"] == round(1600 / 1168, 3)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host in the place of a GPU."""
    monkeypatch.setattr(command, "_gpu", lambda: "cpu")


def test_a_checkpoint(capsys: pytest.CaptureFixture, here: None) -> None:
    arguments = ["--measure", "--checkpoint", str(TINY), "--sequences", "2", "--rows", "2", "--context", "20"]
    assert main(["timeline", *arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    config = json.loads((TINY / "config.json").read_text())
    assert list(facts) == KEYS and facts["model"]["weights"] == str(TINY)
    assert facts["model"]["layers"] == config["num_layers"] and facts["model"]["precision"] == "fp8"
    for way in ("serial", "overlapped"):
        assert [row["name"] for row in facts[way]["stages"]] == [one.name for one in STAGES]
        assert all(row["us"]["median"] > 0 for row in facts[way]["stages"])
        assert all(0 < facts[way][name]["median"] < facts[way]["layer"]["median"] for name in TOTALS[:2])


def test_random_weights(capsys: pytest.CaptureFixture, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from device_check.plan_attention import TINY as SIZES

    built = []

    def small(device: str, layers: int, **sizes: int) -> object:
        built.append((device, layers, sizes))
        return random_rank(device, layers, **SIZES | sizes)

    monkeypatch.setattr(command, "random_rank", small)
    assert main(["timeline", "--measure", "--layers", "1", "--sequences", "2", "--context", "70"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert built == [("cpu", 1, {"num_nextn_predict_layers": 0})]
    assert lines[1] == "2 sequences x 2 rows, context 70; random weights, fp8, 1 layers of 4 experts"
    assert sum(line.split()[:1] == ["run_local_experts"] for line in lines) == 2
    assert lines[-1] == "  20 rounds each; in 0 of 40 the device may have waited for the host"


def test_no_memory(capsys: pytest.CaptureFixture, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **sizes: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(command, "random_rank", full)
    assert refused(capsys, "--measure") == (
        "longcat_ops: timeline: the device has no memory for this measurement.\n"
        "  fix: fewer layers, sequences or rows of context\n"
    )
