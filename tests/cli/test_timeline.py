"""`timeline` draws what `perf.timeline` says: bars on one scale, sums, the report's figures, JSON, bad values."""

from __future__ import annotations

import io
import json

import pytest

from longcat_ops.cli import main
from longcat_ops.cli import timeline as command
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.perf import DEVICES, timeline
from longcat_ops.perf.step import Shape

STAGES = ScMoELayer.PARALLEL


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> list[str]:
    assert main(["timeline", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def bars(lines: list[str]) -> dict[str, str]:
    """The bar of each row, by its name."""
    return {
        line.split()[0]: line.split()[-1] for line in lines if line.endswith((".", "█", "▒", "#", "=")) and "  " in line
    }


def test_the_reports_deployment(capsys: pytest.CaptureFixture) -> None:
    lines, found = printed(capsys), timeline.predicted(STAGES, DEVICES["H800"])
    assert lines[0] == "one layer of a decode step, modelled, not measured: H800, EP 128 (nodes of 8, 40 GB/s a GPU),"
    assert lines[1].startswith("96 sequences x 2 rows, context 5,000")
    rows = lines[4 : 4 + len(STAGES)]
    assert [row.split()[0] for row in rows] == [one.name for one in STAGES]
    for row, one in zip(rows, STAGES, strict=True):
        assert timeline.LANES[one.communicates] in row and str(found.us[one.name]) in row
    text = "\n".join(lines)
    for name, (us, ours) in found.beside_report().items():
        assert any(line.split() == [name, str(us), *str(ours).split()] for line in lines), name
    assert f"ms a token, 28 layers / 1.8                16.05  {timeline.ms_a_token(found.kind.layer):.2f} .. " in text
    assert "arXiv:2509.01322" in text and max(map(len, lines)) <= 120


def test_bars_are_the_middle_schedule(capsys: pytest.CaptureFixture) -> None:
    found = timeline.predicted(STAGES, DEVICES["H800"])
    drawn, columns = bars(printed(capsys)), {False: set(), True: set()}
    for one in STAGES:
        bar, mark, span = drawn[one.name], "█▒"[one.communicates], found.middle.spans[one.name]
        assert len(bar) == 44 and set(bar) <= {mark, "."} and bar.strip(".") == mark * bar.count(mark)
        assert abs(bar.count(mark) - 44 * (span.end - span.begin) / found.middle.layer) <= 1
        columns[one.communicates] |= {i for i, character in enumerate(bar) if character == mark}
    assert {i for i, character in enumerate(drawn["exposed"]) if character != "."} == columns[True] - columns[False]
    assert drawn["attend_first"][0] == drawn["add"][-1] == "█"
    assert drawn["receive_rows"] == 44 * "."


def test_another_deployment_has_no_report(capsys: pytest.CaptureFixture) -> None:
    arguments = ("--device", "H200", "--ranks", "8", "--sequences", "12", "--rows", "1", "--context", "700")
    lines = printed(capsys, *arguments)
    found = timeline.predicted(STAGES, DEVICES["H200"], Shape(12, 1, 700, 8))
    assert "H200, EP 8 (one NVLink switch)," in lines[0] and lines[1].startswith("12 sequences x 1 rows, context 700,")
    assert not any("report" in line or "ms a token" in line for line in lines)
    sums = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in lines[-9:] if line.strip()}
    assert sums["serial / overlapped"] == [f"{end.ratio:.2f}" for end in (found.kind, found.unkind)]
    assert sums["the layer"] == [f"{end.layer:.0f}" for end in (found.kind, found.unkind)]


def test_ascii_where_the_stream_has_no_blocks() -> None:
    found = timeline.predicted(STAGES, DEVICES["H800"])
    lines = command.lines(found, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert "\n".join(lines).isascii()
    assert {character for bar in bars(lines).values() for character in bar if character in "#=."} == set("#=.")


def test_json_has_the_same_numbers(capsys: pytest.CaptureFixture) -> None:
    facts = json.loads("\n".join(printed(capsys, "--json")))
    found = timeline.predicted(STAGES, DEVICES["H800"])
    assert facts["source"] == "modelled, not measured"
    assert [facts[name] for name in ("device", "ranks", "sequences", "rows", "context")] == ["H800", 128, 96, 2, 5000]
    for row, one in zip(facts["stages"], STAGES, strict=True):
        assert (row["name"], row["lane"]) == (one.name, timeline.LANES[one.communicates])
        assert row["us"] == [found.us[one.name].low, found.us[one.name].high]
        assert row["begin"] == [end.spans[one.name].begin for end in (found.kind, found.unkind)]
        assert row["end"] == [end.spans[one.name].end for end in (found.kind, found.unkind)]
    for name in ("kind", "unkind"):
        assert facts[name] == {key: getattr(getattr(found, name), key) for key in facts[name]} and len(facts[name]) == 6
    report = facts["report"]
    assert [part["report_us"] for part in report["parts"].values()] == [264, 236, 60, 472]
    assert report["layer"] == {"report_us": 1032, "us": [found.kind.layer, found.unkind.layer]}
    assert round(report["ms_a_token"]["report"], 2) == 16.05
    assert json.loads("\n".join(printed(capsys, "--json", "--ranks", "64")))["report"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--ranks", "3"), "argument `ranks` is 3, expected 2 or more that divide 512 experts"),
        (("--sequences", "5000"), "argument `sequences` is 5000, expected 1 .. 4096"),
        (("--rows", "65"), "argument `rows` is 65, expected 1 .. 64"),
        (("--context", "2000000"), "argument `context` is 2000000, expected 1 .. 1048576"),
    ],
)
def test_bad_deployments_end_in_a_message(capsys: pytest.CaptureFixture, arguments: tuple, expected: str) -> None:
    assert main(["timeline", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"longcat_ops: timeline: {expected}.\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--ranks", "1"), "'1' is not an integer >= 2"),
        (("--context", "x"), "'x' is not an integer >= 1"),
        (("--rows", "0"), "'0' is not an integer >= 1"),
        (("--device", "A100"), "invalid choice: 'A100'"),
        (("--context", "9" * 5000), "of 5000 characters is not an integer >= 1"),
    ],
)
def test_what_is_no_number_is_refused(capsys: pytest.CaptureFixture, arguments: tuple, expected: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(["timeline", *arguments])
    assert error.value.code == 2 and expected in capsys.readouterr().err
