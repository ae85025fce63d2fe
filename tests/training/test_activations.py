"""hidden_z_loss and the monitor of activations against loops in Python floats; what a monitor leaves as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import Activations, activation_monitor, hidden_z_loss


def z_loss(rows: list[list[float]], weight: float) -> float:
    """Equation 10, element by element; the largest is taken out so that no exponential overflows."""
    total = 0.0
    for row in rows:
        top = max(map(abs, row))
        total += (top + math.log(math.fsum(math.exp(abs(z) - top) for z in row))) ** 2
    return weight * total / len(rows)


def drawn(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "scale"), [((1, 1), 1.0), ((3, 2, 7), 1.0), ((5, 64), 30.0), ((2, 9), 3000.0)])
def test_the_z_loss_is_that_of_the_loops(shape: tuple, scale: float, dtype: torch.dtype) -> None:
    z = drawn(*shape, scale=scale).to(dtype)
    loss = hidden_z_loss(z, 1e-3)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and loss.shape == ()
    # Sums of positive terms: H + T + 8 roundings, doubled by the square.
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    bound = 2 * (shape[-1] + z.numel() // shape[-1] + 8) * unit
    assert loss.item() == pytest.approx(z_loss(z.double().flatten(0, -2).tolist(), 1e-3), rel=bound)


def test_the_z_loss_pulls_at_large_elements() -> None:
    z = drawn(4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hidden_z_loss(x, 0.7), z)
    big = torch.tensor([[0.5, -200.0, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    hidden_z_loss(big, 1.0).backward()
    assert big.grad[0, 1].item() == pytest.approx(-400.0, rel=1e-12) and big.grad[0, [0, 2, 3]].abs().max() < 1e-80
    assert hidden_z_loss(torch.zeros(3, 8), 1.0).item() == pytest.approx(math.log(8) ** 2, rel=1e-6)


@pytest.mark.parametrize(("z", "weight", "argument"), [(torch.ones(2, 2).int(), 1.0, "z"), (torch.ones(0, 2), 1.0, "z"),
                                                       (torch.ones(()), 1.0, "z"), (torch.ones(2), -1.0, "weight"),
                                                       (torch.ones(2), float("nan"), "weight")])  # fmt: skip
def test_bad_arguments_of_the_z_loss(z: Tensor, weight: float, argument: str) -> None:
    with pytest.raises(LongcatShapeError, match=f"hidden_z_loss: argument `{argument}`"):
        hidden_z_loss(z, weight)


class Played(nn.Module):
    """Gives out what it is told to."""

    def forward(self, x: object) -> object:
        return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = Played(), Played(), nn.Linear(2, 2)

    def forward(self, x: object) -> object:
        return self.second(self.first(x))


def by_loops(outputs: list[Tensor]) -> Activations:
    values = [v for x in outputs for v in x.double().flatten().tolist()]
    mean = math.fsum(values) / len(values)
    second, fourth = (math.fsum((v - mean) ** power for v in values) / len(values) for power in (2, 4))
    massive = 0
    for x in outputs:
        for row in x.double().abs().reshape(-1, x.shape[-1]).tolist():
            median = sorted(row)[(len(row) - 1) // 2]  # the lower one of two, as in torch
            massive += sum(v > 100 and v >= 1000 * median for v in row)
    return Activations(len(outputs), len(values), max(map(abs, values)), mean, fourth / second**2, massive)


def assert_same(got: Activations, wanted: Activations) -> None:
    assert (got.calls, got.elements, got.massive) == (wanted.calls, wanted.elements, wanted.massive)
    assert got.largest == wanted.largest
    assert got.mean == pytest.approx(wanted.mean, abs=2.0**-24 * wanted.largest)  # each element is rounded once
    assert got.kurtosis == pytest.approx(wanted.kurtosis, rel=1e-5)  # powers are rounded to f32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_monitor_sees_what_loops_see(dtype: torch.dtype) -> None:
    outputs = [drawn(3, 2, 33, seed=1).to(dtype), drawn(5, 33, scale=0.1, seed=2).to(dtype), drawn(1, 8).to(dtype) + 1]
    outputs[1][0, 4], outputs[1][2, 1], outputs[1][3, 0] = 400.0, -1000.0, 99.0
    net = Net()
    with activation_monitor(net) as monitor:
        for x in outputs:
            net(x)
    found = monitor.read()
    assert list(found) == ["first", "second", ""] and by_loops(outputs).massive == 2
    for seen in found.values():
        assert_same(seen, by_loops(outputs))


def test_a_large_mean_costs_no_accuracy() -> None:
    outputs, net = [drawn(30, 40, seed=i).float() + 1000 for i in range(2)], Played()
    with activation_monitor(net) as monitor:
        for x in outputs:
            net(x)
    assert_same(monitor.read()[""], by_loops(outputs))


def test_a_normal_distribution_has_kurtosis_3_and_nothing_massive() -> None:
    net = Played()
    with activation_monitor(net) as monitor:
        net(drawn(400, 500))
    seen = monitor.read()[""]
    assert seen.kurtosis == pytest.approx(3.0, abs=6 * (24 / 200_000) ** 0.5)  # its sampling variance is 24 / n
    assert seen.massive == 0


def test_the_bounds_of_massive() -> None:
    """Above 100, and at least 1000 times the median of the row."""
    rows = torch.full((4, 5), 0.125)
    rows[0, 0], rows[1, 0], rows[2, 0] = 125.0, 124.0, -126.0
    rows[3] = torch.tensor([100.0, 0.01, 0.01, 0.01, 0.01])
    net = Played()
    with activation_monitor(net) as monitor:
        net(rows)
    assert monitor.read()[""].massive == 2


def test_every_other_call_and_chosen_names() -> None:
    outputs, net = [drawn(2, 9, seed=i) for i in range(5)], Net()
    with activation_monitor(net, ["second"], every=2) as monitor:
        for x in outputs:
            net(x)
    assert list(monitor.read()) == ["second"]
    assert_same(monitor.read()["second"], by_loops(outputs[::2]))


def test_outputs_of_other_kinds_are_passed_over() -> None:
    net = Played()
    with activation_monitor(net) as monitor:
        for output in (None, torch.ones(2, 2).int(), torch.ones(0, 4), {"x": torch.ones(2)}, (), "text"):
            net(output)
        assert monitor.read() == {}
        net((torch.full((2, 2), 3.0), "rest"))
        net([torch.tensor(4.0)])
    assert_same(monitor.read()[""], by_loops([torch.full((2, 2), 3.0), torch.tensor([4.0])]))


def test_nan_is_seen_and_equal_elements_have_no_kurtosis() -> None:
    net = Net()
    with activation_monitor(net, ["first"]) as monitor:
        net(torch.ones(2, 2))
        assert math.isnan(monitor.read()["first"].kurtosis)
        net(torch.tensor([[1.0, float("nan")]]))
        net(torch.ones(2, 2))
    assert math.isnan(monitor.read()["first"].largest)


def test_a_monitor_leaves_values_gradients_and_no_hook() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3))
    x, grads = drawn(5, 6).float(), []
    for watched in (False, True):
        net.zero_grad()
        if watched:
            with activation_monitor(net):
                net(x).square().sum().backward()
        else:
            net(x).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(map(torch.equal, *grads))
    with pytest.raises(RuntimeError, match="inside"), activation_monitor(net):
        raise RuntimeError("inside")
    with pytest.raises(LongcatShapeError), activation_monitor(net, ["0", "none"]):
        pass
    assert not any(module._forward_hooks for module in net.modules())


def test_a_monitor_goes_on_behind_inference_mode() -> None:
    net, outputs = Played(), [drawn(2, 3, seed=1), drawn(2, 3, seed=2)]
    with activation_monitor(net) as monitor:
        with torch.inference_mode():
            net(outputs[0])
        net(outputs[1])
    assert_same(monitor.read()[""], by_loops(outputs))


def test_nothing_is_read_on_the_host_of_a_device() -> None:
    net = Played()
    with activation_monitor(net):
        net(torch.empty(4, 5, device="meta"))


@pytest.mark.parametrize(("model", "names", "every", "argument"), [(None, None, 1, "model"), (Net(), ["x"], 1, "names"),
                                                                   (Net(), None, 0, "every")])  # fmt: skip
def test_bad_arguments_of_a_monitor(model: object, names: list | None, every: int, argument: str) -> None:
    with (
        pytest.raises(LongcatShapeError, match=f"activation_monitor: argument `{argument}`"),
        activation_monitor(model, names, every=every),
    ):
        pass
