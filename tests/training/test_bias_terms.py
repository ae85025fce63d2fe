"""All terms of the bias controller: against loops in Python floats, bound, state, and the update on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import BiasController

EXPERTS, ZERO, TOP_K, TARGET = 7, 3, 4, 2.5
PID = {"mu": 0.3, "mu_final": 0.05, "decay_steps": 8, "kp": 0.7, "kd": 0.2}


def batches(number: int, seed: int = 0) -> list[torch.Tensor]:
    """Counts of `number` batches of different sizes, uneven, all that `update` asks."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        counts = torch.randint(0, 200, (EXPERTS + ZERO,), generator=generator)
        counts[0] += -int(counts.sum()) % TOP_K
        found.append(counts)
    return found


def by_loops(counts: list[torch.Tensor], mu: float, mu_final: float, decay_steps: int, kp: float, kd: float,
             limit: float = float("inf")) -> list[float]:  # fmt: skip
    """The bias after these batches, expert by expert in Python floats."""
    bias = [0.0] * (EXPERTS + ZERO)
    for i in range(EXPERTS):
        last, before = 0.0, 0.0
        for step, some in enumerate(counts):
            tokens = int(some.sum()) / TOP_K
            error = TARGET / TOP_K / EXPERTS - int(some[i]) / (TOP_K * tokens)
            falls = (mu_final / mu) ** min(step / decay_steps, 1.0)
            change = mu * error + kp * (error - last) + kd * (error - 2 * last + before)
            bias[i] = min(limit, max(-limit, bias[i] + falls * change))
            last, before = error, last
    return bias


def rounding(steps: int, mu: float, kp: float, kd: float) -> float:
    """f32: errors, below 1, are rounded twice, each term of a change at most 4 times, the sum once a step."""
    return steps * 2.0**-24 * (6 * (mu + 2 * kp + 4 * kd) + 1)


def controller(**options: object) -> BiasController:
    return BiasController(EXPERTS, ZERO, TOP_K, TARGET, **options)


@pytest.mark.parametrize("limit", [None, 0.02])
@pytest.mark.parametrize(("kp", "kd"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.2), (0.7, 0.2)])
def test_every_term_is_that_of_the_loops(kp: float, kd: float, limit: float | None) -> None:
    counts, options = batches(12), PID | {"kp": kp, "kd": kd}
    control = controller(**options, limit=limit)
    for some in counts:
        control.update(some)
    wanted = by_loops(counts, **options, **({"limit": limit} if limit else {}))
    assert control.bias.tolist() == pytest.approx(wanted, abs=rounding(12, options["mu"], kp, kd), rel=0)
    assert (limit is None) == (max(map(abs, wanted)) > 0.02)
    assert control.bias.abs().max() <= (limit or 1.0)


def test_the_integral_alone_has_these_bits() -> None:
    """Each operation of equation 2 rounded once to f32, in this order: trained checkpoints depend on it."""
    control, bias = controller(mu=0.3, mu_final=0.02, decay_steps=40), np.zeros(EXPERTS, np.float32)
    for step, counts in enumerate(batches(60)):
        share = counts[:EXPERTS].numpy().astype(np.float32) / np.float32(int(counts.sum()))
        mu = 0.3 * (0.02 / 0.3) ** min(step / 40, 1.0)
        bias = bias + np.float32(mu) * (np.float32(TARGET / TOP_K / EXPERTS) - share)
        assert np.array_equal(control.update(counts if step % 2 else counts.int())[:EXPERTS].numpy(), bias)


def test_the_changes_sum_to_the_lack_of_experts() -> None:
    """sum of e_i = (K_e - mean real) / K, whatever the balance (report, section 2.1.1)."""
    for counts in batches(5):
        control = controller(mu=1.0)
        lack = (TARGET - control.real_per_token(counts)) / TOP_K
        assert control.update(counts).double().sum().item() == pytest.approx(lack, abs=EXPERTS * 2.0**-24)


def test_zero_experts_keep_their_bias() -> None:
    control = controller(**PID, limit=0.01)
    control.bias[EXPERTS:] = torch.tensor([3.0, -5.0, 0.1])
    for counts in batches(4):
        control.update(counts)
    assert torch.equal(control.bias[EXPERTS:], torch.tensor([3.0, -5.0, 0.1]))


@pytest.mark.parametrize(("limit", "lowest", "batches_back"), [(None, -0.6, 82), (0.05, -0.05, 7)])
def test_a_bound_ends_a_windup(limit: float | None, lowest: float, batches_back: int) -> None:
    """60 batches without a zero expert, errors of -0.1, then batches with errors of 0.1 - 1 / 38: without a bound the
    bias needs 0.6 / 0.0074 of these to come back.
    """
    control = BiasController(5, 3, 2, 1.0, mu=0.1, limit=limit)
    for _ in range(60):
        control.update(torch.tensor([8] * 5 + [0] * 3))
    assert control.bias[:5].tolist() == pytest.approx([lowest] * 5, abs=60 * 2.0**-24)
    back = 0
    while control.bias[0] < 0:
        control.update(torch.tensor([1] * 5 + [11] * 3))
        back += 1
    assert back == batches_back


def test_state_of_every_term_goes_on_exactly() -> None:
    counts = batches(12)
    whole, first, second = (controller(**PID) for _ in range(3))
    for some in counts:
        whole.update(some)
    for some in counts[:5]:
        first.update(some)
    second.load_state_dict(first.state_dict())
    assert second.step == 5 and second.mu == first.mu
    for some in counts[5:]:
        second.update(some)
    assert torch.equal(second.bias, whole.bias)


def test_a_state_of_before_there_were_terms_loads() -> None:
    counts = batches(8)
    whole, second = controller(mu=0.2), controller(mu=0.2)
    for some in counts[:4]:
        whole.update(some)
    second.load_state_dict({"bias": whole.bias.clone(), "step": 4})
    for some in counts[4:]:
        assert torch.equal(second.update(some), whole.update(some))


@pytest.mark.parametrize("state", [{"bias": torch.ones(9), "step": 1},
                                   {"bias": torch.ones(10), "step": 1, "errors": torch.ones(2, 6)}])  # fmt: skip
def test_a_state_of_another_router_is_refused_whole(state: dict) -> None:
    control = controller(**PID)
    with pytest.raises(LongcatShapeError, match="argument `state`"):
        control.load_state_dict(state)
    assert control.step == 0 and not control.bias.any()


@pytest.mark.parametrize("options", [{}, PID | {"limit": 0.5}])
def test_an_update_on_a_device_reads_nothing_on_the_host(options: dict) -> None:
    """Tensors of the device `meta` have no values: whatever reads one raises."""
    control = controller(**options, device="meta")
    bias = control.bias
    for _ in range(3):
        assert control.update(torch.empty(EXPERTS + ZERO, dtype=torch.int32, device="meta")) is bias
    with pytest.raises((NotImplementedError, RuntimeError)):
        control.check()


@pytest.mark.parametrize("wrong", [[0] * 10, [1] * 10, [-1, 5] + [0] * 8])
def test_counts_that_cannot_be_are_left_out_on_a_device(wrong: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    control, other = controller(**PID), controller(**PID)
    with monkeypatch.context() as patch:
        patch.setattr(BiasController, "_require_counts", lambda *_: None)  # what the host alone asks
        for counts in batches(6):
            control.update(counts)
            control.update(torch.tensor(wrong))
            other.update(counts)
    assert torch.equal(control.bias, other.bias) and control.step == 6 and int(control.refused) == 6
    other.check()
    with pytest.raises(LongcatShapeError, match="argument `counts` is unusable in 6 updates"):
        control.check()


def test_nan_is_no_count() -> None:
    with pytest.raises(LongcatShapeError, match="argument `counts` is summing to nan"):
        controller().update(torch.full((10,), float("nan")))


def test_counts_elsewhere_are_refused() -> None:
    with pytest.raises(LongcatShapeError, match="argument `counts` is on meta, expected on cpu"):
        controller().update(torch.empty(10, dtype=torch.int32, device="meta"))


@pytest.mark.parametrize(("name", "value"), [("kp", -0.1), ("kp", float("inf")), ("kd", -1), ("kd", "1"), ("limit", 0),
                                             ("limit", float("nan")), ("decay_steps", 2.5), ("mu", True)])  # fmt: skip
def test_bad_terms(name: str, value: object) -> None:
    with pytest.raises(LongcatShapeError, match=f"argument `{name}`"):
        controller(**{name: value})


@pytest.mark.gpu
def test_a_captured_update_goes_on_by_itself() -> None:
    counts = torch.zeros(EXPERTS + ZERO, dtype=torch.int32, device="cuda")
    control, host = controller(**PID, device="cuda"), controller(**PID)
    some = batches(10)
    counts.copy_(some[0])
    control.update(counts)  # outside a graph first, as torch asks for
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        control.update(counts)
    for one in some[1:]:
        counts.copy_(one)
        graph.replay()
    for one in some:
        host.update(one)
    assert control.bias.tolist() == pytest.approx(host.bias.tolist(), abs=rounding(10, 0.3, 0.7, 0.2))
    assert control.step == 10
