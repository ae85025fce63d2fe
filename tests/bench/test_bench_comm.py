"""The bench of collectives without ranks: its cells, its own oracle, rounds, ratios, the claim and the tables."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from comm import cells, claim, clocks, tables
from comm.cells import KINDS, MOST_BYTES, NORM, SIZES, Cell, Inputs
from comm.field import facts
from comm.figures import figures, shares
from longcat_ops import explain, perf
from longcat_ops.perf import comm as model

ROOT = Path(__file__).resolve().parents[2]
H100 = perf.DEVICES["H100"]
TINY = [Cell(collective, rows, 4096, "eager", ranks) for collective, rows in KINDS for ranks in (2, 4)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_cells(ranks: int) -> None:
    """Sizes rise and stay below what is aimed at; rows are spread as named."""
    for collective, rows in KINDS:
        found = [Cell(collective, rows, size, "graph", ranks) for size in SIZES]
        moved = [cell.nbytes for cell in found]
        assert moved == sorted(set(moved)) and moved[-1] <= MOST_BYTES
        assert all(cell.size < 2 * cell.nbytes <= 2 * cell.size for cell in found), (collective, rows)
        for cell in found:
            assert cell.width % 8 == 0 and (cell.width == 6144 or cell.size < 4 * cells.MIB)
            assert sum(cell.parts) == cell.nbytes == 2 * cell.shape[0] * cell.width
            if collective in cells.BY_ROWS:
                ends = [(cell.own(r).start, cell.own(r).stop) for r in range(ranks)]
                assert ends[0][0] == 0 and ends[-1][1] == cell.shape[0] == sum(cell.counts)
                assert cell.uneven == (rows != "even" and ranks > 1)
    assert Cell("all_gather", "ragged", 2**20, "graph", 8).counts == [2, 40, 6, 0, 10, 2, 0, 18]
    assert Cell("all_gather", "2^i", 96 << 20, "graph", 8).counts == [32 << i for i in range(8)]
    assert Cell("all_gather", "remainder", 2**20, "graph", 8).counts == [11] * 5 + [10] * 3


@pytest.mark.parametrize("cell", TINY, ids=str)
def test_what_is_expected(cell: Cell) -> None:
    """By loops over floats; who leaves out a rank, swaps rows or writes NaN is found."""
    ranks, mine = cell.ranks, 1
    full = [cells.whole(cell, r, "cpu").double().tolist() for r in range(ranks + 1)]
    assert len({str(rows) for rows in full}) == ranks + 1
    inputs = Inputs.of(cell, mine, "cpu")
    rows, width = cell.shape
    total = [[sum(full[r][t][h] for r in range(ranks)) for h in range(width)] for t in range(rows)]
    if cell.collective == "all_gather":
        want = [full[r][t] for r in range(ranks) for t in range(cell.own(r).start, cell.own(r).stop)]
        assert inputs.x.double().tolist() == full[mine][cell.own(mine)]
    elif cell.collective == "broadcast":
        want = full[0]
    elif cell.collective == NORM:
        h = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(total, full[ranks], strict=True)]
        roots = [math.sqrt(sum(v * v for v in row) / width + cells.EPS) for row in h]
        scale = inputs.weight.double().tolist()
        want = [[v / root * w for v, w in zip(row, scale, strict=True)] for row, root in zip(h, roots, strict=True)]
    else:
        want = total[cell.own(mine)] if cell.collective == "reduce_scatter" else total
    right = torch.tensor(want, dtype=torch.float64)
    assert inputs.disagreement(right) == inputs.disagreement(right.bfloat16()) == ""
    assert "computes something else: shape" in inputs.disagreement(right[:-1])
    for wrong in (right + 0.5, right.roll(1, 1), torch.full_like(right, math.nan)):
        assert "computes something else: " in inputs.disagreement(wrong)
    if len(right) > 1:
        assert inputs.disagreement(right.flip(0)) != ""


def test_figures_are_those_of_explain() -> None:
    for collective, rows in KINDS:
        cell = Cell(collective, rows, 64 << 20, "graph", 8)
        found = figures(cell, H100, blocks=4)
        told = explain(collective, cell.shape, ranks=8, rows=cell.counts if cell.collective in cells.BY_ROWS else None,
                       blocks=4, ll_bytes=16 << 10)  # fmt: skip
        (expected,) = [one for one in told.expected if one.device == "H100"]
        assert (found.bound, found.band) == (expected.bound, expected.band)
        assert found.wire == pytest.approx(1e6 * told.traffic.wire / 370e9)
    assert figures(cell, perf.DEVICES["H100 PCIe"]) is None
    whole = Cell("all_reduce", "even", 96 << 20, "graph", 8)
    found = figures(whole, H100, blocks=4)
    assert facts(whole, found)["bound_us"] == pytest.approx(252, abs=0.5)
    row = shares(whole, {"NCCL": 366.0}, found)["NCCL"]
    assert (row["algbw"], row["busbw"]) == (pytest.approx(275, abs=0.5), pytest.approx(481, abs=1))
    assert row["wire_share"] == pytest.approx(whole.nbytes * 1.125 / 370e9 / 366e-6, rel=1e-3)
    for collective, factor in (("reduce_scatter", 7 / 8), ("all_gather", 7 / 8), ("broadcast", 1), (NORM, 7 / 4)):
        assert Cell(collective, "even", 4096, "graph", 8).bus_factor == factor
    assert {collective for collective, _ in KINDS} == set(model.COLLECTIVES)


class FakeFleet:
    """Rank 1 of 2: the other rank takes `other` us and decides on `count` rounds."""

    on_gpus = False

    def __init__(self, other: float = 0.0, count: int = 0) -> None:
        self.other, self.count, self.aligned = other, count, 0

    def longest(self, times: list[float]) -> list[float]:
        return [max(us, self.other) for us in times]

    def first(self, value: Any) -> Any:
        return self.count or value

    def align(self) -> None:
        self.aligned += 1


def test_rounds() -> None:
    """Turns rotate, all ranks meet before each, and the longest rank counts; rank 0 decides how many there are."""
    order: list[str] = []
    timed = {
        name: clocks.Timed(lambda name=name, us=us: order.append(name) or us, None, 1)
        for name, us in (("ours", 30.0), ("peer", 8.0))
    }
    fleet, clock = FakeFleet(other=10.0, count=4), SimpleNamespace(rounds=50)
    before = clocks.device_seconds()
    rounds = clocks.Rounds(fleet, timed)
    assert rounds.run(clock, None) == 4
    assert rounds.us == {"ours": [30.0] * 4, "peer": [10.0] * 4} and rounds.medians() == {"ours": 30.0, "peer": 10.0}
    assert order == ["ours", "peer", "peer", "ours"] * 2 + ["ours", "peer"] and fleet.aligned == 10
    assert clocks.device_seconds() - before == pytest.approx(5 * 30e-6)


def test_rounds_of_pytest_benchmark() -> None:
    """On rank 0 its pedantic mode makes the rounds; where it is switched off, all ranks make one."""
    for disabled in (False, True):
        asked: list[int] = []

        def pedantic(run: Any, rounds: int, asked: list[int] = asked) -> None:
            asked.append(rounds)
            for _ in range(rounds):
                run()

        rounds = clocks.Rounds(FakeFleet(), {"ours": clocks.Timed(lambda: 1.0, None, 1)})
        count = rounds.run(SimpleNamespace(rounds=7), SimpleNamespace(disabled=disabled, pedantic=pedantic))
        assert asked == [count] == [1 if disabled else 7] and len(rounds.us["ours"]) == count


def test_slowdown_of_products() -> None:
    seen: list[tuple[Any, int]] = []

    def gemm_us(runs: Any, count: int) -> float:
        seen.append((runs, count))
        return 150.0 if runs else 100.0

    timed = clocks.Timed(lambda: 1.0, len, 20)
    assert clocks.slowdown(FakeFleet(), SimpleNamespace(gemm_us=gemm_us), timed, us=2.0) == 0.5
    assert seen == [(None, 0), (None, 0), (len, 5)]  # 4 x 20 calls of 2 us last longer than 150 us


ABSENT = {"MSCCL++": "mscclpp cannot be imported"}


def info(us: dict[str, float], *, absent: dict | None = None, lacks: dict | None = None, blocks: str = "4",
         collective: str = "all_reduce") -> dict[str, Any]:  # fmt: skip
    symmetric = {name: name in (claim.OURS, "NCCL registered", "torch multimem") for name in us}
    measured = {name: {"us": time} for name, time in us.items()}
    return {"collective": collective, "distribution": "even", "size": 4096, "mode": "graph", "measured": measured,
            "blocks": dict.fromkeys(us, blocks), "ratio": claim.ratios(us, symmetric),
            "absent": absent or {}, "lacks": lacks or {}}  # fmt: skip


BOTH = {claim.OURS: 5.0, claim.ORDINARY: 6.0}


def test_a_ratio_is_of_the_same_run_and_the_same_kind_of_memory() -> None:
    found = info(BOTH | {"NCCL": 12.0, "NCCL registered": 6.0})
    assert found["ratio"] == {"NCCL": 2.0, "NCCL registered": 1.2}
    assert info({claim.ORDINARY: 6.0, "NCCL registered": 9.0})["ratio"] == {"NCCL registered": 1.5}
    assert info({"NCCL": 12.0})["ratio"] == {} and info(BOTH)["ratio"] == {}


@pytest.mark.parametrize(("given", "verdict"), [
    (info(BOTH | {"NCCL": 12.0, "MSCCL++": 9.0}), ("pass", "1.50x ahead of MSCCL++")),
    (info(BOTH | {"NCCL": 12.0, "NCCL registered": 4.0, "MSCCL++": 9.0}),
     ("fail", "behind NCCL registered (1.25x as fast)")),
    (info(BOTH | {"NCCL": 6.0, "MSCCL++": 9.0}), ("fail", "behind NCCL (1.00x as fast)")),
    (info(BOTH | {"NCCL": 12.0}, absent=ABSENT), ("open", "no time of MSCCL++: mscclpp cannot be imported")),
    (info(BOTH | {"MSCCL++": 12.0}), ("open", "no time of NCCL: it was not run")),
    (info(BOTH | {"NCCL": 12.0, "MSCCL++": 9.0}, blocks="8"), ("open", "it ran in 8 blocks, not in 4")),
    (info(BOTH | {"NCCL": 12.0}, lacks={"MSCCL++": "none for uneven rows"}),
     ("pass", "2.00x ahead of NCCL (MSCCL++: none for uneven rows)")),
    (info(BOTH, absent=ABSENT | {"NCCL": "it is wrong"}), ("open", "no time of NCCL: it is wrong")),
    (info({"NCCL": 12.0, "MSCCL++": 9.0}), ("open", "no time of NCCL: it was not run")),
])  # fmt: skip
def test_verdicts(given: dict[str, Any], verdict: tuple[str, str]) -> None:
    assert claim.verdict(given) == verdict


def test_the_table_of_the_claim() -> None:
    good, bad = info(BOTH | {"NCCL": 12.0, "MSCCL++": 9.0}), info(BOTH | {"NCCL": 2.0, "MSCCL++": 9.0})
    unknown, other = info(BOTH | {"NCCL": 12.0}, absent=ABSENT), info(BOTH, collective=NORM)
    assert claim.lines([good, other])[-1] == "  1 rows pass, 0 fail, 0 are open: the claim holds on this machine"
    assert claim.lines([good, unknown])[-1].endswith("0 fail, 1 are open: the claim is not shown on this machine")
    assert claim.lines([good, bad, unknown])[-1].endswith("the claim does not hold on this machine")
    assert claim.lines([])[-1].endswith("the claim is not shown on this machine")
    assert "pass: 1.50x ahead of MSCCL++" in claim.lines([good])[2] and " 5.00" in claim.lines([good])[2]


@pytest.mark.parametrize(("ranks", "gpus"), [(0, 0), (2, 0), (2, 2), (8, 0), (8, 7), (0, 8)])
def test_the_claim_is_refused_below_4_gpus(ranks: int, gpus: int) -> None:
    assert f"this run has {ranks} ranks and {gpus} GPUs" in claim.refusal(ranks, gpus)
    assert claim.refusal(4, 4) == claim.refusal(4, 8) == claim.refusal(8, 8) == ""


def test_pytest_refuses_the_claim_here() -> None:
    path = ROOT / "bench/comm/conftest.py"
    spec = importlib.util.spec_from_file_location("bench_comm_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(pytest.UsageError, match="--claim needs one GPU for each of at least 4 ranks"):
        module.pytest_configure(SimpleNamespace(getoption=lambda name: name == "--claim"))


def test_tables() -> None:
    row = {"us": 5.0, "p10_us": 4.5, "p90_us": 5.5, "algbw": 100.0, "busbw": 175.0}
    cell = Cell("all_reduce", "even", 1 << 20, "graph", 8)
    base = facts(cell, figures(cell, H100))
    ran = base | {
        "harness": False, "backend": "multimem", "versions": "H100, torch 2.13",
        "why_not": {"p2p": "multimem comes first"}, "rounds": 50,
        "blocks": {"longcat_ops": "4", "NCCL": "its choice"}, "notes": {"NCCL": "a group"},
        "measured": {"longcat_ops": row | {"wire_share": 0.64, "gemm_slowdown": 0.031}, "NCCL": row},
        "ratio": {"NCCL": 1.25}, "absent": {"MSCCL++": "needs a GPU"},
    }  # fmt: skip
    first, *_ = text = tables.measured_lines([ran, ran])
    assert first == "collectives on 8 ranks, H100, torch 2.13: rung multimem"
    assert "  not p2p: multimem comes first" in text
    (ours, _), (nccl, _) = ([line for line in text if line.startswith(f"  {name} ")] for name in (claim.OURS, "NCCL"))
    assert ours.split() == ["longcat_ops", "5.00", "4.50", "5.50", "100.00", "175.00", "64%", "+3.1%", "4"]
    assert nccl.split()[-5:] == ["1.25", "its", "choice", "(a", "group)"]
    assert text.count("  no time of MSCCL++: needs a GPU") == 1
    assert tables.HARNESS in tables.measured_lines([ran | {"harness": True}])[0]
    assert tables.measured_lines([]) == tables.predicted_lines([], "H100") == []
    assert tables.predicted_lines([base], "H100")[0] == "8 ranks, a prediction for an H100, nothing ran"
