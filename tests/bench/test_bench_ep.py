"""The bench of experts over ranks: on two ranks over gloo, with a stand-in for DeepEP; bytes, floors, tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from comm import ep_tables
from comm.ep_field import facts
from comm.ep_problem import DISPATCH, LAYER, LONGCAT, ROUND_TRIP, WHATS, Cell, host_sizes, sorted_rows
from longcat_ops import perf
from support.comm_pool import Pool

OURS, ALL, FFN = "longcat_ops", "gloo all-to-all, 12", "gloo all-to-all, 8 in the mean"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as ranks:
        yield ranks


def test_cells(pool: Pool) -> None:
    """Whatever is timed has computed the right thing first: `measure` refuses the rest."""
    cells = [(what, tokens) for what in WHATS for tokens in (1, 8)]
    one, other = pool.run(2, "bench_ep_jobs.measured", ranks=2, cells=cells, wrong="")
    for (what, tokens), info, same in zip(cells, one, other, strict=True):
        assert info["measured"].keys() == {OURS, "DeepEP", ALL, FFN} == same["measured"].keys()
        assert info["absent"] == {"longcat_ops, torch": f"it is {OURS} here"}
        assert (info["expert_call"], info["tokens_a_rank"], info["backend"]) == (what, tokens, "torch")
        assert info["harness"] and info["rounds"] == 3 and "wire_us" not in info
        us = {name: row["us"] for name, row in info["measured"].items()}
        assert info["ratio"] == {name: pytest.approx(us[name] / us[OURS], rel=1e-3) for name in us if name != OURS}
        sent = {name: row["sent"] for name, row in info["measured"].items()}
        assert sent == {name: row["sent"] for name, row in same["measured"].items()}  # the busiest rank's
        assert sent["DeepEP"] < sent[OURS] == sent[FFN] < sent[ALL] and info["sent"] == sent[OURS]
        assert info["measured"][OURS]["counted"] == sent[OURS]
        assert info["measured"]["DeepEP"]["counted"] == (sent["DeepEP"] if what != DISPATCH else 0)
    text = "\n".join(ep_tables.measured_lines(one))
    assert text.count("combine, 8 tokens a rank, by difference, us: longcat_ops ") == 1
    assert text.count("  no time of longcat_ops, torch: it is longcat_ops here") == 1


def test_what_computes_something_else_is_not_timed(pool: Pool) -> None:
    for (info,) in pool.run(2, "bench_ep_jobs.measured", ranks=2, cells=[(ROUND_TRIP, 8)], wrong="DeepEP"):
        assert "DeepEP" not in info["measured"] and OURS in info["measured"]
        assert "computes something else" in info["absent"]["DeepEP"]
    for found in pool.run(2, "bench_ep_jobs.measured", ranks=2, cells=[(ROUND_TRIP, 1), (LAYER, 1)], wrong="all"):
        assert all("computes something else" in info["error"] for info in found)


def test_bytes_and_floors() -> None:
    assert LONGCAT.mean == 8 and LONGCAT.row == 6336 and LONGCAT.returned == 12288
    assert host_sizes(3).experts % 3 == 0 and host_sizes(3).mean == 8
    assert Cell(DISPATCH, 96).mean_bytes(LONGCAT, 8) == 96 * 8 * 6336 * 7 / 8
    assert Cell(LAYER, 96).mean_bytes(LONGCAT, 8) == Cell(ROUND_TRIP, 96).mean_bytes(LONGCAT, 8)
    sent = Cell(LAYER, 96).mean_bytes(LONGCAT, 8)
    found = facts(Cell(LAYER, 96), LONGCAT, 8, perf.DEVICES["H100"], sent)
    assert found["sent"] == 96 * 8 * 18624 * 7 // 8
    assert found["wire_us"] == round(1e6 * sent / perf.comm.rates(perf.DEVICES["H100"])[0], 3)
    assert "wire_us" not in facts(Cell(LAYER, 96), LONGCAT, 8, None, sent)


def test_rows_in_any_order() -> None:
    rows = torch.tensor([[3, 1], [1, 2], [9, 9], [1, 1]], dtype=torch.uint8)
    assert sorted_rows(rows, [0, 2, 2, 4]).tolist() == [1, 2, 3, 1, 1, 1, 9, 9]
    assert sorted_rows(rows[[1, 0, 3, 2]], [0, 2, 2, 4]).tolist() == [1, 2, 3, 1, 1, 1, 9, 9]
    assert sorted_rows(rows[[2, 1, 0, 3]], [0, 2, 2, 4]).tolist() != [1, 2, 3, 1, 1, 1, 9, 9]
    assert sorted_rows(rows[:0], [0, 0]).numel() == 0


def test_tables() -> None:
    row = {"us": 40.0, "p10_us": 39.0, "p90_us": 42.0, "mode": "graph", "sent": 12_515_328, "counted": 12_515_328}
    info = facts(Cell(LAYER, 96), LONGCAT, 8, perf.DEVICES["H100"], 12_515_328)
    ran = info | {
        "harness": False, "backend": "nvl", "versions": "H100, torch 2.13", "why_not": {"torch": "nvl comes first"},
        "rounds": 50, "measured": {OURS: row, "DeepEP": row | {"us": 60.0, "counted": 0}}, "ratio": {"DeepEP": 1.5},
        "absent": {"x": "needs a GPU"},
    }  # fmt: skip
    text = ep_tables.measured_lines([ran, ran])
    assert text[0] == "experts over 8 ranks, H100, torch 2.13: backend nvl"
    (ours, _), (deepep, _) = ([line for line in text if line.startswith(f"  {name} ")] for name in (OURS, "DeepEP"))
    assert ours.split() == [OURS, "40.00", "39.00", "42.00", "12,515,328", "12,515,328", "graph"]
    assert deepep.split() == ["DeepEP", "60.00", "39.00", "42.00", "12,515,328", "1.50", "graph"]
    assert text.count("  no time of x: needs a GPU") == 1
    first, line = ep_tables.predicted_lines([info], "H100")
    assert first == "experts over 8 ranks, floors for an H100, nothing ran"
    assert f"the wire needs {info['wire_us']} us" in line
    assert ep_tables.measured_lines([]) == ep_tables.predicted_lines([], "H100") == []
