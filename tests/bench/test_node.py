"""What the tests of a node rest on: ranks hear of each other's findings, oracles notice what is wrong, and nobody
collects those tests by accident."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from report.fleet import Fleet
from support import comm_oracle as oracle
from support import node as nodes
from support import node_oracle
from support.node import Node

ROOT = Path(__file__).resolve().parents[2]


class OtherRank:
    """Control calls of a group of two, of which the other says `says`."""

    def __init__(self, says: Any) -> None:
        self.says = says

    def gather(self, mine: Any) -> list[Any]:
        return [mine, self.says]


def node(says: Any) -> Node:
    fleet = OtherRank(says)
    for name, value in {"rank": 0, "ranks": 2, "device": torch.device("cpu"), "on_gpus": False}.items():
        setattr(fleet, name, value)
    return Node(fleet)


def test_what_one_rank_finds_fails_on_all() -> None:
    node(([], "")).run(lambda n: [])
    with pytest.raises(AssertionError, match="rank 1: row 3"):
        node((["row 3"], "")).run(lambda n: [])
    with pytest.raises(AssertionError, match="rank 0: row 4"):
        node(([], "")).run(lambda n: ["row 4"])


@pytest.mark.parametrize("mine", [True, False])
def test_communicators_are_dropped_where_a_rank_raised(mine: bool) -> None:
    did: list[str] = []
    made = node(([], "" if mine else "Traceback: ZeroDivisionError"))
    made._open["multimem"] = SimpleNamespace(abort=did.append, close=lambda: did.append("closed"))
    with pytest.raises(AssertionError, match=rf"rank {int(not mine)}: Traceback(.|\n)*ZeroDivisionError"):
        made.run(lambda n: [1 // 0] if mine else [])
    assert did == ["a test failed", "closed"] and not made._open


@pytest.mark.parametrize(("world", "gpus", "rung", "reason"), [
    (None, 8, "auto", "several ranks are needed"), ("1", 1, "auto", "2 ranks are needed, and there is 1"),
    ("8", 0, "auto", "8 ranks need a GPU each, and there are 0; LONGCAT_OPS_COMM=gloo"),
    ("8", 7, "multimem", "and there are 7"), ("8", 8, "auto", ""), ("2", 0, "gloo", ""),
])  # fmt: skip
def test_where_they_run(monkeypatch: pytest.MonkeyPatch, world: str | None, gpus: int, rung: str, reason: str) -> None:
    for name, value in (("WORLD_SIZE", world), ("RANK", world and "0"), ("MASTER_ADDR", world and "localhost")):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LONGCAT_OPS_COMM", rung)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    found = nodes.why_not_here()
    assert reason in found and bool(reason) == bool(found)


@pytest.fixture(scope="module")
def conftest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("multi_gpu_conftest", ROOT / "tests/multi_gpu/conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("start", "arguments", "named"), [
    (".", ["tests"], False), (".", ["tests/multi_gpu"], True),
    ("tests", ["comm", "multi_gpu/test_values.py::x[a/b]"], True),
    ("tests", ["multi_gpu/"], True), ("tests/multi_gpu", ["."], True), (".", ["tests/multi_gpu_not"], False),
])  # fmt: skip
def test_only_a_run_that_names_them_collects_them(
    conftest: ModuleType, start: str, arguments: list[str], named: bool
) -> None:
    config = SimpleNamespace(args=arguments, invocation_params=SimpleNamespace(dir=ROOT / start))
    ignored = conftest.pytest_ignore_collect(ROOT / "tests/multi_gpu/test_values.py", config)
    assert ignored is (None if named else True)


def test_faults_come_last(conftest: ModuleType) -> None:
    here = ROOT / "tests/multi_gpu"
    names = ["test_faults.py::a[nccl]", "test_faults.py::a[gloo]", "test_values.py::b[nccl]", "test_values.py::b[p2p]"]
    items = [
        SimpleNamespace(path=here / name.split("::")[0], nodeid=name, add_marker=lambda mark: None) for name in names
    ]
    conftest.pytest_collection_modifyitems(None, items)
    assert [item.nodeid for item in items] == [names[3], names[2], names[1], names[0]]


@pytest.mark.parametrize("dtype", oracle.FLOATS)
def test_bounds_of_sums(dtype: str) -> None:
    """Sums in another order fit, one rounded at each step fits NCCL's alone, one that lacks a rank fits none."""
    parts = [oracle.values("random", dtype, (500,), r) for r in range(4)]
    exact = sum(oracle.widen(part, dtype).astype(np.float64) for part in parts)
    backwards = oracle.tensor(oracle.summed(parts[::-1], dtype), dtype)
    assert node_oracle.sum_problem(backwards, parts, dtype, "multimem", False) == ""
    assert node_oracle.sum_problem(oracle.tensor(oracle.summed(parts, dtype), dtype), parts, dtype, "p2p", True) == ""
    step = oracle.tensor(parts[0], dtype)
    for part in parts[1:]:
        step = step + oracle.tensor(part, dtype)
    assert node_oracle.sum_problem(step, parts, dtype, "nccl", False) == ""
    if dtype != "float32":
        assert node_oracle.sum_problem(step, parts, dtype, "multimem", False) != ""
    lacking = oracle.tensor(oracle.summed(parts[:3], dtype), dtype)
    nan = torch.full_like(lacking, torch.nan)
    for wrong in (lacking, nan, backwards[:-1], torch.from_numpy(exact).roll(1).to(backwards.dtype)):
        assert node_oracle.sum_problem(wrong, parts, dtype, "nccl", False) != ""


def test_bounds_of_norms_and_codes() -> None:
    h = node_oracle.integers((6, 300), 3, torch.device("cpu")).double().numpy()
    weight = np.linspace(0.5, 2.0, 300)
    y = torch.from_numpy(h / np.sqrt((h * h).mean(1, keepdims=True) + 1e-5) * weight)
    assert node_oracle.norm_problem(y.bfloat16(), h, weight, 1e-5, "bfloat16") == ""
    assert node_oracle.norm_problem((y * 1.02).bfloat16(), h, weight, 1e-5, "bfloat16") != ""
    blocks = torch.nn.functional.pad(y, (0, 84)).view(6, 3, 128)
    s = blocks.abs().amax(2) / 448
    q = (blocks / s[..., None]).float().to(torch.float8_e4m3fn).view(6, 384)[:, :300]
    assert node_oracle.codes_problem(q, s, h, weight, 1e-5) == ""
    assert "scales" in node_oracle.codes_problem(q, s * 2, h, weight, 1e-5)
    assert "codes" in node_oracle.codes_problem(q.float().roll(1, 1).to(q.dtype), s, h, weight, 1e-5)


def test_after_a_lost_control_call_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda **_: (_ for _ in ()).throw(RuntimeError("gone")))
    fleet = Fleet(0, 2, torch.device("cpu"), None)
    for text in ("gone", "out of step since: RuntimeError: gone"):
        with pytest.raises(RuntimeError, match=text):
            fleet.align()
