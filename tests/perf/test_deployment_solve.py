"""The cheapest deployment is that of a search through all of them; sweeps, targets, measured shares, and refusals."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from longcat_ops.perf.deployment import GPUS, NETWORKS, REPORT, Deployment, Result, evaluate
from longcat_ops.perf.deployment import solve as solver
from longcat_ops.perf.deployment.calibration import measured
from longcat_ops.perf.deployment.hardware import DEEPEP, with_price
from longcat_ops.perf.deployment.reported import achieved
from longcat_ops.perf.deployment.solve import solve, targets
from longcat_ops.perf.deployment.studies import axis, changed, sweep

LONGCAT = Deployment(NETWORKS["LongCat-Flash"], GPUS["H800"])
DEEPSEEK = Deployment(NETWORKS["DeepSeek-V3"], GPUS["H800"])
KINDS = [GPUS["H800"], GPUS["GB200"]]


def search(base: Deployment, met, eps: tuple[int, ...], most: int) -> Result:
    """The cheapest of every batch, then with the fewest GPUs."""
    found = []
    for gpu in KINDS:
        for ep in eps:
            for batch in range(1, most + 1):
                if batch == 1 and not base.network.shortcut:
                    continue
                one = evaluate(replace(base, gpu=gpu, ep=ep, batch=batch))
                if one.fits and met(one):
                    found.append(one)
    return min(found, key=lambda one: (float(f"{one.dollars:.9g}"), one.deployment.ep, one.deployment.batch))


@pytest.mark.parametrize(
    ("base", "text", "met"),
    [(LONGCAT, "tokens/s/user >= 100", lambda r: r.tokens_s_user >= 100),
     (replace(LONGCAT, efficiency=achieved()), "tokens/s/user >= 60 and dollars <= 0.3",
      lambda r: r.tokens_s_user >= 60 and r.dollars <= 0.3),
     (DEEPSEEK, "tpot <= 25 and tokens/s/gpu >= 1000", lambda r: r.tpot_ms <= 25 and r.tokens_s_gpu >= 1000),
     (DEEPSEEK, "dollars <= 1", lambda r: r.dollars <= 1)],
)  # fmt: skip
def test_the_cheapest_is_that_of_a_search(monkeypatch, base: Deployment, text: str, met) -> None:
    monkeypatch.setattr(solver, "MOST_BATCH", 300)
    eps = (8, 64, 256)
    expected = search(base, met, eps, 300)
    found = solve(base, targets(text), KINDS, eps)
    assert found.best == expected
    assert found.by_gpu[expected.deployment.gpu.name] == expected and next(iter(found.by_gpu.values())) == expected
    more = evaluate(replace(expected.deployment, batch=expected.deployment.batch + 1))
    stops = {"tokens/s/user": more.tokens_s_user < 100, "tpot": more.tpot_ms > 25, "memory": not more.fits,
             "no cheaper": more.dollars > (1 - 1e-8) * expected.dollars,
             "the largest batch": expected.deployment.batch == 300}  # fmt: skip
    assert any(holds and word in found.stop for word, holds in stops.items()), found.stop


def test_what_binds_is_named() -> None:
    found = solve(LONGCAT, targets("tokens/s/user >= 100"), [GPUS["H800"]], [256])
    assert found.stop == "tokens/s/user >= 100" and found.tried == 1
    assert found.best.binding == ("combine", found.best.parts.combine) and found.best.parts.combine.bound == "link RDMA"
    found = solve(replace(LONGCAT, efficiency=achieved()), targets("tpot <= 100"), [GPUS["H800"]], [128])
    assert found.stop == "the memory of a GPU, 80 GiB"
    found = solve(LONGCAT, targets("tpot <= 100"), [GPUS["H800"]], [128])
    assert found.stop == "it is no cheaper: every part grows with it"


def test_prices() -> None:
    target = targets("tokens/s/user >= 30")
    assert solve(LONGCAT, target).unpriced == ("H20",)
    cheap = solve(LONGCAT, target, [with_price(GPUS["H20"], 0.01), *KINDS])
    assert cheap.best.deployment.gpu.name == "H20" and cheap.unpriced == ()
    with pytest.raises(LongcatUnsupportedError, match="H20: no price known; give one with --price"):
        solve(LONGCAT, target, [GPUS["H20"]])


def test_infeasible_targets_list_what_is_possible() -> None:
    with pytest.raises(LongcatUnsupportedError) as caught:
        solve(LONGCAT, targets("tokens/s/user >= 5000"))
    text, best = str(caught.value), evaluate(replace(LONGCAT, batch=1, ep=512)).tokens_s_user
    assert "argument `solve` is 'tokens/s/user >= 5000', expected a target that a deployment meets" in text
    assert f"H800: at best tokens/s/user {best:.3g} (EP 512, batch 1); the longest part is second attention" in text
    assert all(f"  {name}: at best" in text for name in ("H100", "H200", "GB200"))
    network = LONGCAT.network  # a byte a weight, two in embedding and head
    least = (network.parameters + network.embeddings + network.mtp_dense) / 2**30
    with pytest.raises(LongcatUnsupportedError, match=f"H800: does not fit: {least:.0f} GiB of 72 at EP 1, the least"):
        solve(replace(LONGCAT, context=1), targets("tpot <= 100"), [GPUS["H800"]], [1])


@pytest.mark.parametrize(
    "text", ["", "speed >= 3", "tpot >= 3", "tokens/s/user <= 3", "tpot <= x", "tpot <= 0", "tpot", "tpot <= inf"]
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(LongcatShapeError, match='one of "tokens/s/user >= X", "tpot <= X"'):
        targets(text)


def test_sweeps() -> None:
    axes = dict([axis("batch=8..100"), axis("ep=7,128")])
    assert axes == {"batch": (8, 16, 32, 64), "ep": (7, 128)}
    points = sweep(LONGCAT, axes)
    assert [point.values for point in points] == [(b, e) for b in (8, 16, 32, 64) for e in (7, 128)]
    for point in points:
        if point.values[1] == 7:
            assert point.result is None and "`ep` is 7" in point.reason
        else:
            assert point.result == evaluate(replace(LONGCAT, batch=point.values[0]))
    assert axis("attention-precision=bf16") == ("attention_precision", ("bf16",))
    assert "`price` is -1.0, expected dollars an hour" in sweep(LONGCAT, {"price": (-1.0,)})[0].reason
    dearer = sweep(LONGCAT, {"price": (4.0,)})[0].result
    assert dearer.dollars == pytest.approx(2 * evaluate(LONGCAT).dollars)
    named = sweep(replace(LONGCAT, ep=8), {"link": ("NVLink", "DeepEP"), "gpu": ("H200",)})
    assert [point.result.deployment.link.rate(8, False) for point in named] == [GPUS["H200"].wire.value,
                                                                                DEEPEP.rates[0][1]]  # fmt: skip
    assert changed(replace(LONGCAT, link=DEEPEP), gpu="H100").link is DEEPEP


@pytest.mark.parametrize(
    "text", ["batch", "batch=", "batch=x", "speed=1", "gpu=V100", "batch=0..8", "batch=8..4", "acceptance=0.1..0.9",
             "batch=1..2..3"],
)  # fmt: skip
def test_axes_that_are_none(text: str) -> None:
    with pytest.raises(LongcatShapeError, match=re.escape(f"argument `sweep` is {text!r}")):
        axis(text)


def test_sweeps_that_are_too_large() -> None:
    with pytest.raises(LongcatShapeError, match="3 axes with 1 points"):
        sweep(LONGCAT, {"batch": (1,), "ep": (1,), "drafts": (1,)})
    with pytest.raises(LongcatShapeError, match="1 axes with 10001 points"):
        sweep(LONGCAT, {"batch": range(1, 10_002)})


def test_measured_shares() -> None:
    def line(
        step: str, nbytes: float, flops: float, us: float, way: str = "longcat_ops", status: str = "passed"
    ) -> dict:
        times = {way: {"us": us}, "a peer": {"us": 1e-3}}
        return {"step": step, "status": status, "answer": {"bytes": nbytes, "flops": flops, "times": times}}

    facts = {"step": "facts", "status": "passed", "answer": {"device": "NVIDIA H200"}}
    lines = [
        {"run": {}}, facts, line("times/gate_up-G4-m8", 4.8e9, 1, 1250), line("times/down-G4-m8", 4.8e9, 1, 2000),
        line("times/gate_up-G4-m512", 1, 1979e9, 1600), line("times/down-G4-m4", 4.8e9, 1, 1, status="failed"),
        line("times/attention-96x2-5000", 1, 989e9, 1250, "split_rows 512"), line("times/dispatch", 1, 1, 1),
    ]  # fmt: skip
    found = measured(lines, "answers.jsonl")
    assert found.memory == pytest.approx((0.8 + 0.5) / 2) and found.products == pytest.approx(0.625)
    assert found.attention == pytest.approx(0.8)
    assert found.source == "NVIDIA H200, answers.jsonl: medians, memory of 2, products of 1, attention of 1"
    partly = measured(lines[:3], "answers.jsonl")
    assert (partly.memory, partly.products, partly.attention) == (pytest.approx(0.8), REPORT.products, REPORT.attention)
    assert partly.source.endswith("memory of 1, products not measured, attention not measured")
    for nothing in ([], lines[:2], lines[2:]):
        with pytest.raises(LongcatUnsupportedError, match="expected answers of a GPU with times of products"):
            measured(nothing, "answers.jsonl")
