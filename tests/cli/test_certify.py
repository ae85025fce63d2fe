"""`certify`: what it compares on the tiny checkpoint, and that a claim that does not hold is found and named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from longcat_ops.cli import main
from longcat_ops.engine import certificate
from longcat_ops.errors import LongcatShapeError

TINY = Path(__file__).parents[2] / "checkpoints" / "longcat-tiny"


@pytest.mark.parametrize("precision", ["fp8", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_tiny_checkpoint(capsys: pytest.CaptureFixture, precision: str) -> None:
    assert main(["certify", str(TINY), "--rows", "9", "--ranks", "1,2,4", "--precision", precision, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    compared = {claim["name"]: claim["compared"] for claim in found["claims"]}
    assert found["holds"] and not any(claim["different"] for claim in found["claims"])
    assert compared["rows"] == 2 * sum(range(1, 9)) and compared["company"] == 2 * 4 * 9
    assert [compared[f"EP {n}"] for n in (1, 2, 4)] == [2 * 18] * 3 and compared["placement"] == 18
    assert compared["decoding"] == sum(range(1, 6)) + 5 + 6


def test_rows_that_depend_on_their_company(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that a large call changes: the verdict names what found it, and the code is 1."""
    real = certificate.fused_moe

    def changed(x: torch.Tensor, *rest: object) -> torch.Tensor:
        out = real(x, *rest)
        if len(x) > 8:
            out[0, 0] += 1
        return out

    monkeypatch.setattr(certificate, "fused_moe", changed)
    assert main(["certify", str(TINY), "--rows", "9", "--ranks", "1"]) == 1
    text = capsys.readouterr().out
    assert "rows       calls of 1 .. 8 rows, beside one of 9: 72 rows, 16 DIFFER" in text
    assert "verdict: NOT INVARIANT: rows, company, EP 1." in text


def test_text_and_refusals(capsys: pytest.CaptureFixture) -> None:
    assert main(["certify", str(TINY), "--rows", "3", "--ranks", "3"]) == 0  # which do not divide 32 experts
    text = capsys.readouterr().out
    assert "2 MoE layers (2 in FP8), 32 FFN and 16 zero experts, top-6" in text
    assert text.splitlines()[-1].startswith("verdict: INVARIANT. ")
    assert "EP 3       placed, ranks with 1, 0, 2 tokens, beside one rank: 6 rows, the same bits" in text
    assert main(["certify", "no such folder"]) == 2
    for ranks, rows in (((), 9), ((0,), 9), ((1,), 1), ((True,), 9)):
        with pytest.raises(LongcatShapeError, match="certify: argument"):
            certificate.certify(TINY, ranks=ranks, rows=rows)


def test_cuts() -> None:
    for rows in (1, 2, 9, 33):
        for ranks in (1, 2, 3, 8, 64):
            cuts = certificate._cuts(rows, ranks)
            assert cuts[0] == 0 and cuts[-1] == rows and sorted(cuts) == cuts and len(cuts) == ranks + 1
            assert ranks < 3 or cuts[1] == cuts[2]


STAY = """
import os, pathlib, time

def stay(rank, ranks, folder):
    pathlib.Path(folder, f"{rank}.new").write_text(str(os.getpid()))
    os.rename(f"{folder}/{rank}.new", f"{folder}/{rank}")
    time.sleep(100)

if __name__ == "__main__":
    from longcat_ops.engine.rank_processes import run_ranks
    run_ranks(2, "stay:stay", os.path.dirname(__file__))
"""


@pytest.mark.long
def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Also where it is killed, by the kernel when memory runs out for example."""
    (tmp_path / "stay.py").write_text(STAY)
    until = time.monotonic() + 60
    with subprocess.Popen([sys.executable, tmp_path / "stay.py"], stderr=subprocess.DEVNULL) as process:
        while not all((tmp_path / str(rank)).exists() for rank in range(2)):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.kill()
    ranks = [Path("/proc", (tmp_path / str(rank)).read_text()) for rank in range(2)]
    until = time.monotonic() + 10
    while any(rank.exists() and "(zombie)" not in (rank / "status").read_text() for rank in ranks):
        assert time.monotonic() < until, ranks
        time.sleep(0.05)
