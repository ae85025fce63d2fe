"""filter_drafts: every value within the bound of an oracle in Python floats, and drafts dropped as the score says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longcat_ops import DraftScores, filter_drafts, reference
from longcat_ops.engine.step_graph import capture
from longcat_ops.testing.op_results import bits
from support import filter_calls
from support.bf16_grouped import BACKEND
from support.direct_calls import only_on_kernels

INF, NAN = math.inf, math.nan
ON_CPU = BACKEND == "cpu"
WIDTHS = [1, 2, 61, 999, 1000, 1001, *([5000] if ON_CPU else [])]  # the emulator takes a second for each cut


def run(logits: Tensor, num_drafts: Tensor, hidden: Tensor, output: Tensor, joint_before: Tensor | None, depth: int,
        beta: float, top: int) -> DraftScores:  # fmt: skip
    result = filter_drafts(logits, num_drafts, hidden, output, joint_before, depth=depth, beta=beta, top=top)
    assert all(t.dtype == torch.float32 and t.shape == logits.shape[:1] for t in result)
    return result


@pytest.mark.parametrize("kind", filter_calls.KINDS)
@pytest.mark.parametrize("v", WIDTHS)
def test_values(v: int, kind: str) -> None:
    """The whole row, all but one, the default, a few and one of it."""
    for top in {1000, max(v - 1, 1), v, 7, 1} if ON_CPU or v < 100 else {1000, 7}:
        for depth in (1, 2):
            filter_calls.check(run, 8, v, kind, top=top, depth=depth, seed=depth)


@pytest.mark.parametrize("units", [1, 31, 32, 33, 48, 256])
def test_classifiers(units: int) -> None:
    for seed in range(4):
        filter_calls.check(run, 12, 40, "peaked", units=units, depth=1 + 3 * (seed % 2), seed=seed)


def test_thresholds() -> None:
    """0 keeps every finite row; above 1 none stays; a draft of exactly beta stays, the next float32 drops it."""
    args = filter_calls.rows(16, 50, "bad"), *filter_calls.classifier(48)
    drafted = torch.full((16,), 3, dtype=torch.int32)

    def left(beta: float) -> list[int]:
        drafts = drafted.clone()
        filter_drafts(args[0], drafts, *args[1:], beta=beta)
        return drafts.tolist()

    finite = [b % 4 == 3 for b in range(16)]
    assert left(0.0) == left(0) == left(-3e38) == [3 * ok for ok in finite]
    assert left(1.0001) == left(3e38) == [0] * 16
    score = filter_drafts(args[0], drafted.clone(), *args[1:], beta=0.0).score
    beta = score[3]
    assert left(beta.item())[3] == 3
    assert left(torch.nextafter(beta, torch.tensor(2.0)).item())[3] == 0
    for value in (0.3, 0.5, 0.9):
        assert left(value) == (3 * (score >= value)).tolist()


def test_joint_and_entropy_by_hand() -> None:
    """p = 1/2, 1/4, 1/8, 1/8 and no others; of a tie at the edge one counts. Logits, rounded to float32, move p by a
    relative 2^-23 at most."""
    logits, close = torch.tensor([[0.125, 0.0, 0.5, 0.25, 0.125, 0.0]]).log(), 2.0**-22
    ln2 = math.log(2)
    for top, entropy in ((1, 0.5), (2, 1.0), (3, 1.375), (4, 1.75), (5, 1.75), (6, 1.75), (2**62, 1.75)):
        network = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([1.0, 0.0])
        before = torch.tensor([0.25])
        joint, found, score = filter_drafts(
            logits, torch.tensor([2], dtype=torch.int32), *network, before, depth=2, beta=0.0, top=top
        )
        assert joint.item() == pytest.approx(0.125, rel=close)
        assert found.item() == pytest.approx(entropy * ln2, rel=close)
        assert score.item() == pytest.approx(1 / (1 + 0.5**entropy), rel=close)
    single = filter_drafts(torch.tensor([[-7.5]]), torch.tensor([1], dtype=torch.int32), *network, beta=0.5)
    assert [t.item() for t in single] == [1.0, 0.0, 0.5]


def test_weights_of_every_size() -> None:
    """Units that are off, sums that leave sigmoid's range, and weights that are not finite."""
    logits, drafts = torch.zeros(1, 4), torch.tensor([1], dtype=torch.int32)
    for hidden, output, want in (
        ([-1.0, 0.0, 0.0, 0.0], [5.0, 1.0], 1 / (1 + math.exp(-1))),
        ([0.0, 0.0, 1.0, 0.0], [1e30, 0.0], 1.0),
        ([0.0, 0.0, 1.0, 0.0], [-1e30, 0.0], 0.0),
        ([0.0, 0.0, 1.0, 0.0], [-90.0, 0.0], math.exp(-90)),
        ([NAN, 0.0, 0.0, 0.0], [1.0, 0.0], NAN),
        ([0.0, 0.0, 0.0, 0.0], [1.0, NAN], NAN),
    ):
        left = drafts.clone()
        score = filter_drafts(logits, left, torch.tensor([hidden]), torch.tensor(output), beta=0.0).score.item()
        assert score == pytest.approx(want, rel=1e-6, abs=0, nan_ok=True)
        assert left.item() == (0 if math.isnan(want) else 1)


def test_logits_of_every_size() -> None:
    """Differences that float64 alone holds, and tops far from 0."""
    for row in ([3e38, -3e38, 3e38], [1e-40, 0.0, -1e-40], [-1e30, -1e30, -3e38], [80.0, 79.5, -700.0]):
        logits = torch.tensor([row])
        args = logits, torch.tensor([1], dtype=torch.int32), *filter_calls.classifier(5)
        left = args[1].clone()
        result = filter_drafts(logits, left, *args[2:], beta=0.5)
        filter_calls.assert_judged(result, left, *args, None, 1, 0.5, 1000)


def test_views() -> None:
    """Rows of a wider tensor, whose neighbours are not read."""
    logits, drafts = filter_calls.rows(12, 50, "peaked"), filter_calls.counts(12, 1)
    network, wide = filter_calls.classifier(48), torch.full((12, 3, 60), NAN)
    wide[:, 1, 5:55] = logits
    results = []
    for view in (logits, wide[:, 1, 5:55]):
        left = drafts.clone()
        results.append(bits([*filter_drafts(view, left, *network, beta=0.5, top=7), left]))
    assert results[0] == results[1]


def test_a_row_has_its_bits_in_any_company() -> None:
    v, b = (20_011, 12) if ON_CPU else (1100, 6)
    logits, drafts = filter_calls.rows(b, v, "peaked"), torch.full((b,), 2, dtype=torch.int32)
    network, before = filter_calls.classifier(48), torch.rand(b)

    def call(at: slice) -> list[bytes]:
        left = drafts[at].clone()
        return bits([*filter_drafts(logits[at], left, *network, before[at], depth=2, beta=0.5), left])

    whole, threads = call(slice(None)), torch.get_num_threads()
    for count in (1, 3) if ON_CPU else ():
        torch.set_num_threads(count)
        try:
            assert call(slice(None)) == whole
        finally:
            torch.set_num_threads(threads)
    alone = [call(slice(i, i + 1)) for i in range(b)]
    assert [b"".join(parts) for parts in zip(*alone, strict=True)] == whole
    assert [len(part) for part in call(slice(0))] == [0] * 4


def test_the_reference_takes_float64() -> None:
    logits, drafts, network = filter_calls.rows(9, 40, "bad"), filter_calls.counts(9, 1), filter_calls.classifier(9)
    results = []
    for values in (logits, logits.double()):
        left = drafts.clone()
        results.append(bits([*reference.filter_drafts(values, left, *network, beta=0.5, top=7), left]))
    assert results[0] == results[1]


@only_on_kernels
def test_a_captured_step_filters_anew() -> None:
    """Two depths in a row, the second with the joint probability of the first."""
    heads, network = filter_calls.rows(8, 60, "peaked"), filter_calls.classifier(48)

    def step(logits: Tensor, num_drafts: Tensor) -> list[Tensor]:
        first = filter_drafts(logits, num_drafts, *network, beta=0.4)
        second = filter_drafts(logits[:, :50], num_drafts, *network, first.joint, depth=2, beta=0.6, top=9)
        return [*first, *second]

    drafts = torch.full((8,), 2, dtype=torch.int32)
    graph = capture(step, heads.clone(), drafts.clone())
    assert graph.ops == ["filter_drafts"] * 2
    for seed in range(3):
        logits = filter_calls.rows(8, 60, "bad", seed)
        left = drafts.clone()
        want = step(logits, left)
        found = graph.replay(logits, drafts)
        assert bits([*found, graph.inputs[1]]) == bits([*want, left])
    assert left.tolist().count(2) < 8
