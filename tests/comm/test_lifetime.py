"""Communicators are made together, choose a rung together, and leave nothing behind."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from longcat_ops.comm import Communicator
from longcat_ops.errors import LongcatTimeoutError, LongcatUnsupportedError
from support import comm_lives
from support.comm_pool import context
from support.comm_ranks import Ranks

NO_GPU = "CUDA tensors only: this process group has no GPU"


@pytest.mark.parametrize("count", [9, pytest.param(200, marks=pytest.mark.slow)])
def test_cycles_leak_nothing(pair: Ranks, count: int) -> None:
    for before, after in pair.run("comm_lives.cycles", count=count):
        assert after == before  # file descriptors, threads, keys of the store


def test_attributes_and_closed_communicators(world: Ranks) -> None:
    for rank, found in enumerate(world.run("comm_lives.states")):
        assert (found["rank"], found["ranks"], found["backend"]) == (rank, world.ranks, world.rung)
        assert found["why_not"] == dict.fromkeys(("multimem", "p2p", "nccl"), NO_GPU)
        caps = found["caps"]
        assert (caps.backend, caps.fixed_order, caps.num_channels, caps.max_bytes) == (world.rung, True, 3, 4096)
        assert found["check"] == "none"
        assert str(found["empty"]) == "([3, 4], torch.float16, 'cpu')"
        assert "`shape` is 4097 bytes, expected at most 4096, the communicator's max_bytes." in found["too large"]
        assert found["channel"] == "channel: argument `index` is 3, expected 0 .. 2."
        assert found["same"]
        closed = found["closed"]
        assert all(text.endswith(": this communicator is closed.") for text in closed.values()), closed


def test_after_abort(pair: Ranks) -> None:
    for barrier, check, all_reduce in pair.run("comm_lives.aborted"):
        assert barrier.startswith("barrier: this communicator is poisoned. abort() was called on rank ")
        assert check.startswith("check: this communicator is poisoned. abort() was called on rank ")
        assert all_reduce.startswith("all_reduce: this communicator is poisoned. abort() was called on rank ")
        assert "a test" in barrier and "fix: close it" in barrier


@pytest.mark.parametrize(("options", "last", "text"), [
    ({"max_bytes": 0}, {}, "`max_bytes` is 0, expected an int of 1 or more"),
    ({"num_channels": True}, {}, "`num_channels` is True, expected an int of 1 or more"),
    ({"backend": "nvls"}, {}, "`backend` is 'nvls', expected auto or multimem or p2p or nccl or gloo"),
    ({"timeout_s": -1}, {}, "`timeout_s` is -1, expected seconds, 0 .. 1e+09; 0 waits for ever"),
    ({"timeout_s": "soon"}, {}, "`timeout_s` is 'soon'"),
    ({"deterministic": 1}, {}, "`deterministic` is 1, expected True or False"),
    ({"provider": None}, {}, "`provider` is None, expected auto or torch or vmm"),
    ({}, {"max_bytes": -5}, "`max_bytes` is -5"),
    ({}, {"num_blocks": 8}, "argument `num_blocks` is 4 on rank 0, 8 on rank 1, expected the same on every rank"),
    ({"timeout_s": 5}, {"timeout_s": 6}, "argument `timeout_s` is 5 on rank 0, 6 on rank 1, expected the same"),
])  # fmt: skip
def test_bad_arguments_are_refused_by_all(pair: Ranks, options: dict, last: dict, text: str) -> None:
    first, other = pair.run("comm_lives.constructs", options=options, last=last)
    for found in (first, other):
        assert found["kind"] == "LongcatShapeError", found
        assert text in found["text"]
        assert found["seconds"] < 5
    if last and "max_bytes" in last:
        assert first["text"].startswith("Communicator: rank 1 refused its arguments. ")


@pytest.mark.parametrize("name", ["multimem", "p2p", "nccl"])
def test_a_rung_that_is_not_available(pair: Ranks, name: str) -> None:
    for found in pair.run("comm_lives.constructs", options={"backend": name}, last={}):
        assert found["kind"] == "LongcatUnsupportedError"
        assert found["text"] == f"Communicator: the rung `{name}` is not available: {NO_GPU}."


def ladder(pair: Ranks, **arguments: Any) -> list[Any]:
    return pair.run("comm_lives.ladder", **{"objections": {}, "fails": "", "wanted": "auto"} | arguments)


def test_the_ladder(pair: Ranks) -> None:
    above = {"multimem": "no switch", "p2p": "no peers"}
    assert ladder(pair) == [("nccl", above | {"gloo": "nccl comes first"}, 2.0)] * 2
    one = ladder(pair, objections={"nccl": "no driver"})
    assert one == [("gloo", above | {"nccl": "rank 1: no driver"}, 2.0)] * 2
    failed = ladder(pair, fails="nccl")
    assert failed == [("gloo", above | {"nccl": "rank 1: RuntimeError: the driver said no"}, 2.0)] * 2


def test_a_forced_rung_does_not_give_way(pair: Ranks) -> None:
    text = "LongcatUnsupportedError: Communicator: the rung `nccl` is not available: rank 1: "
    assert ladder(pair, wanted="nccl", objections={"nccl": "no driver"}) == [(text + "no driver.", {})] * 2
    assert ladder(pair, wanted="nccl", fails="nccl") == [(text + "RuntimeError: the driver said no.", {})] * 2
    nothing = ladder(pair, objections={"nccl": "no driver", "gloo": "no network"})
    assert all(
        text.startswith("LongcatUnsupportedError: Communicator: no rung serves these ranks.") for text, _ in nothing
    )
    assert all("gloo: rank 1: no network" in text for text, _ in nothing)


def test_the_environment(pair: Ranks) -> None:
    def take(**values: str) -> Any:
        first, second = pair.run("comm_lives.environment", values=values)
        assert first == second
        return first

    assert take() == ("gloo", 30.0)
    assert take(LONGCAT_OPS_COMM="gloo", LONGCAT_OPS_TIMEOUT_S="2.5") == ("gloo", 2.5)
    assert take(LONGCAT_OPS_TIMEOUT_S="0") == ("gloo", 0.0)
    assert take(LONGCAT_OPS_COMM="p2p").endswith(f"Communicator: the rung `p2p` is not available: {NO_GPU}.")


def test_without_a_process_group() -> None:
    with pytest.raises(LongcatUnsupportedError, match="argument `group` is absent, expected a process group"):
        Communicator()


def test_a_process_that_ends_without_close() -> None:
    """It returns from its main function with a communicator and a channel still alive."""
    process = context.Process(target=comm_lives.leave_open)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_a_timeout_is_itself_after_pickling() -> None:
    error = LongcatTimeoutError(0, "barrier", "channel 0, stage `exchange`", 3, {2: "gone", 1: "late"}, "waited 1 s")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.missing, again.seen) == (str(error), (1, 2), error.seen)
    assert str(error) == (
        "barrier: rank 0 waited in channel 0, stage `exchange` for call 3, and missing is: "
        "rank 1: late; rank 2: gone.\n  waited 1 s"
    )
    assert isinstance(error, TimeoutError)
