"""The backend `deepep` over a stand-in for DeepEP: its calls, the values that they give, what it refuses. DeepEP itself
has never run here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from longcat_ops.comm.experts import deepep
from support import fake_deep_ep
from support.comm_ranks import Keeper, Ranks

GPU = torch.device("cuda")
WORLDS = (1, 2)


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_values(keeper: Keeper, ranks: int, payload: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("deepep_jobs.values", payload=payload):
        assert wrong == []


@pytest.mark.parametrize("ranks", WORLDS)
def test_two_layers_in_flight(keeper: Keeper, ranks: int) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("deepep_jobs.in_flight"):
        assert wrong == []


def test_a_combine_that_all_refuse(keeper: Keeper) -> None:
    for first, second, last in Ranks(keeper, 2, "gloo").run("deepep_jobs.refused", alone=False):
        assert first.startswith("LongcatShapeError: combine: argument `add` is torch.float32")
        assert (second, last) == ("[5, 256]", "destroy")


def test_a_combine_that_one_rank_refuses(keeper: Keeper) -> None:
    ((first, second, last),) = Ranks(keeper, 1, "gloo").run("deepep_jobs.refused", alone=True)
    assert first.startswith("LongcatShapeError: combine: argument `add` is of 4 tokens, expected of 5")
    assert "poisoned" in second and "out of step" in second
    assert last == "dispatch"  # destroy() would wait for the others


def test_rows_lie_where_deepep_puts_them(keeper: Keeper) -> None:
    ((error,),) = Ranks(keeper, 1, "gloo").run("deepep_jobs.elsewhere")
    assert error == "LongcatUnsupportedError: dispatch_recv: no graph of torch.compile holds the backend deepep"


@pytest.mark.parametrize(("name", "value", "text"), [
    ("__version__", "1.2.1", "deep_ep is 1.2.1, and 2.x is needed"),
    ("__version__", None, "deep_ep is without a version, and 2.x is needed"),
    ("ElasticBuffer", None, "deep_ep 2.1.0 has no ElasticBuffer"),
    ("topk_idx_t", None, "deep_ep 2.1.0 has no topk_idx_t"),
])  # fmt: skip
def test_a_wrong_package(keeper: Keeper, name: str, value: str | None, text: str) -> None:
    for error, backend, why in Ranks(keeper, 2, "gloo").run("deepep_jobs.constructed", name=name, value=value):
        assert error == f"LongcatUnsupportedError: ExpertParallel: the backend `deepep` is not available: {text}."
        assert (backend, why) == ("torch", text)


def test_a_width_that_it_does_not_take(keeper: Keeper) -> None:
    for error, backend, why in Ranks(keeper, 2, "gloo").run("deepep_jobs.constructed", name="", value=None, hidden=128):
        assert "hidden is 128, and DeepEP needs a multiple of 256" in error
        assert (backend, why) == ("torch", "torch comes first")


def test_why_not() -> None:
    assert deepep.objection(torch.device("cpu")) == "CUDA tensors only: this process group has no GPU"


def test_an_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu129")
    assert deepep.objection(GPU) == "torch is 2.9.1+cu129, and DeepEP needs 2.10 or newer"


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "deep_ep", raising=False)
    assert deepep.objection(GPU) == "the package deep_ep is not installed"
    monkeypatch.setitem(sys.modules, "deep_ep", None)
    assert "deep_ep is" in deepep.objection(GPU)


@pytest.mark.parametrize("elastic", [False, True])
def test_a_package_is_not_imported_to_object(monkeypatch: pytest.MonkeyPatch, tmp_path: object, elastic: bool) -> None:
    place = tmp_path / "deep_ep"
    (place / "buffers").mkdir(parents=True)
    (place / "__init__.py").write_text("raise AssertionError('Duplicate NCCL runtime')\n")
    if elastic:
        (place / "buffers" / "elastic.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "deep_ep", raising=False)
    assert deepep.objection(GPU) == ("" if elastic else f"deep_ep in {place} has no ElasticBuffer: 2.x is needed")
    assert "deep_ep" not in sys.modules
    with pytest.raises(Exception, match="import deep_ep: AssertionError: Duplicate NCCL runtime"):
        deepep.build(SimpleNamespace(config=SimpleNamespace(hidden=256)))


def test_the_stand_in_takes_no_other_argument() -> None:
    module: ModuleType = fake_deep_ep
    with pytest.raises(TypeError, match="unexpected keyword"):
        module.ElasticBuffer(None, top_k=3)
    buffer = object.__new__(module.ElasticBuffer)
    with pytest.raises(TypeError, match="unexpected keyword"):
        buffer.dispatch(None, alignment=1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        buffer.combine(None, None, add=None)
