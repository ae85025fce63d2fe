"""Expert parallelism when a rank stalls, dies, aborts, closes or calls it wrongly: every other one says which and
where, in time, and a new one then works."""

from __future__ import annotations

from typing import Any

import pytest

from support.comm_pool import Pool
from support.comm_ranks import Keeper, Ranks
from support.expert_faults import BAD

LIMIT_S, SLACK_S = 0.5, 2.0


def gloo(keeper: Keeper, ranks: int) -> Ranks:
    return Ranks(keeper, ranks, "gloo")


@pytest.mark.parametrize(("where", "op", "stage"), [
    ("counts", "dispatch_send", "exchange"), ("rows", "dispatch_send", "rows"), ("combine", "combine_send", "exchange"),
])  # fmt: skip
def test_a_rank_that_stalls(keeper: Keeper, where: str, op: str, stage: str) -> None:
    results = gloo(keeper, 3).run("expert_faults.stalls", where=where, bad=1, timeout_s=LIMIT_S)
    for rank, (found, again, works) in enumerate(results):
        assert works
        if rank != 1:
            assert (found["kind"], found["missing"], found["op"]) == ("LongcatTimeoutError", (1,), op), found
            assert f"stage `{stage}`" in found["slot"] and "rank 1: " in found["text"], found
            assert LIMIT_S <= found["seconds"] < LIMIT_S + SLACK_S, found
            assert "is poisoned" in again["text"] and "make a new ExpertParallel over it" in again["text"], again


@pytest.mark.parametrize(("where", "dies"), [("dispatch", 2), ("combine", 0)])
def test_a_killed_process(where: str, dies: int) -> None:
    with Pool(3) as pool:
        for rank in range(3):
            pool.start(rank, "expert_faults.survive", ranks=3, backend="gloo", where=where, dies=dies, limit_s=10.0)
        for rank in {0, 1, 2} - {dies}:
            found = pool.result(rank)
            assert (found["kind"], found["missing"]) == ("LongcatTimeoutError", (dies,)), found
            assert found["op"] == f"{where}_send" and "has ended" in found["seen"][dies], found
            assert found["seconds"] < 0.5 + SLACK_S and found["works"], found


def test_abort_from_a_thread(keeper: Keeper) -> None:
    for found, works in gloo(keeper, 3).run("expert_faults.aborts"):
        assert works and "abort() was called on rank 0: the operator" in found["text"], found


def test_a_rank_that_has_closed(keeper: Keeper) -> None:
    *others, (last, works) = gloo(keeper, 2).run("expert_faults.closes")
    assert works and "is closed" in last["text"], last
    for found, works in others:
        assert works and "rank 1 closed its" in found["text"], found


EXPECTED = (
    "dispatch: argument `x` is of type int, expected of tensors.",
    "dispatch: argument `x` is torch.float32, expected torch.bfloat16.",
    "dispatch: argument `x` is of shape [5, 32], expected [.., 64], hidden columns.",
    "dispatch: argument `x` is a tensor that requires a gradient",
    "dispatch: argument `x` is of strides [128, 2], expected contiguous.",
    "dispatch: argument `routing` is of type Tensor, expected a Routing, from moe_route.",
    "dispatch: argument `routing.ids` is of shape [5, 3], expected [T, 5], top_k columns.",
    "moe_plan: argument `weights`",
    "moe_plan: argument `ids`",
    "dispatch: argument `x` is 10 tokens, expected at most 9, max_tokens.",
    "dispatch: argument `routing.ids` is of 5 tokens, expected of 8, as `x`.",
    "combine: argument `y` is of 89 rows, expected of 90, those of q.",
    "combine: argument `y` is torch.float32, expected torch.bfloat16.",
    "combine: argument `y` is of type int, expected a torch.Tensor.",
    "combine: argument `handle` is of type NoneType, expected a Dispatch, from dispatch.",
    "combine: buffer 0 of this handle is free, expected received.",
    "dispatch_recv: buffer 0 of this handle is free, expected sent.",
    "True",
)


@pytest.mark.parametrize("ranks", [1, 2])
def test_bad_calls_are_refused_by_all(keeper: Keeper, ranks: int) -> None:
    """Then the next call is served."""
    for texts in gloo(keeper, ranks).run("expert_faults.refused_by_all"):
        for text, expected in zip(texts, EXPECTED, strict=True):
            if ranks == 1:
                expected = expected.replace("of 89 rows, expected of 90", "of 24 rows, expected of 25")
            assert text.startswith(expected), (text, expected)


@pytest.mark.parametrize("name", ["too many tokens", "ids of int64", "x of float32"])
def test_one_rank_refuses(keeper: Keeper, name: str) -> None:
    """It is told why at once, and the others do not hang."""
    results: list[Any] = gloo(keeper, 3).run("expert_faults.refused_by_one", name=name, bad=1)
    assert results[1][0]["kind"] == "LongcatShapeError", results[1]
    text = results[1][0]["text"].splitlines()[0].partition(": ")[2]
    for rank, (found, works) in enumerate(results):
        assert works and found["seconds"] < SLACK_S, found
        if rank != 1:
            assert found["kind"] == "LongcatCommError" and "rank 1 refused its call 1." in found["text"], found
            assert text in found["text"], (text, found)


@pytest.mark.parametrize(("name", "values", "expected"), [
    ("experts", [12, 12], ""),
    ("experts", [12, 24], "argument `num_ffn_experts` is 12 on rank 0, 24 on rank 1, expected the same on every rank."),
    ("experts", [13, 13], "argument `num_ffn_experts` is 13, expected a multiple of 2 ranks."),
    ("top_k", [0, 0], "argument `top_k` is 0, expected an int in 1 .. 32."),
    ("hidden", [72, 72], "argument `hidden` is 72, expected a multiple of 16."),
    ("max_tokens", [9, 0], "argument `max_tokens` is 0, expected an int in 1 .. 1048576."),
    ("payload", ["fp4", "fp4"], "argument `payload` is 'fp4', expected 'fp8' or 'bf16'."),
    ("buffers", [5, 5], "argument `buffers` is 5, expected an int in 1 .. 4."),
    ("backend", ["ring", "ring"], "argument `backend` is 'ring', expected auto or local or nvl or torch or deepep."),
    ("backend", ["local", "local"], "the backend `local` is not available: it serves one rank, and there are 2."),
    ("backend", ["nvl", "nvl"], "the backend `nvl` is not available: CUDA tensors only"),
    ("timeout_s", [True, True], "argument `timeout_s` is True, expected seconds, 0 .. 1e+09; 0 waits for ever."),
    ("timeout_s", [1e300, 1e300], "argument `timeout_s` is 1e+300, expected seconds, 0 .. 1e+09; 0 waits for ever."),
    ("timeout_s", [-1, -1], "argument `timeout_s` is -1, expected seconds, 0 .. 1e+09; 0 waits for ever."),
])  # fmt: skip
def test_constructors(keeper: Keeper, name: str, values: list[Any], expected: str) -> None:
    for text in gloo(keeper, 2).run("ep_jobs.disagreeing", name=name, values=values):
        assert expected in text and bool(text) == bool(expected), text


def test_a_capture_is_refused(keeper: Keeper) -> None:
    for call, constructor in gloo(keeper, 2).run("expert_faults.in_a_capture"):
        assert "dispatch_send: argument `call` is in the capture of a CUDA graph, expected outside of one" in call
        assert "the backend torch reads the counts of rows on the host" in call
        assert constructor.startswith("ExpertParallel: argument `call` is in the capture of a CUDA graph")


def test_names_of_bad_calls() -> None:
    assert len(EXPECTED) == len(BAD) + 7
