"""Expert parallelism called in other orders, with handles of others, with wrong weights, in other modes: what cannot be
right is refused before anything is sent, and what can be has the right bits."""

from __future__ import annotations

import pytest

from support.comm_ranks import Keeper, Ranks


def gloo(keeper: Keeper, ranks: int) -> Ranks:
    return Ranks(keeper, ranks, "gloo")


@pytest.mark.parametrize("ranks", [1, 2])
def test_combines_in_any_order(keeper: Keeper, ranks: int) -> None:
    assert gloo(keeper, ranks).run("expert_misuse.any_order") == [True] * ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_handles_of_other_dispatches(keeper: Keeper, ranks: int) -> None:
    for (old, other, beyond), same in gloo(keeper, ranks).run("expert_misuse.wrong_handles"):
        for text in (old, other):
            assert text.startswith("combine: the handle is of another dispatch than the one in buffer 0"), text
        assert beyond.startswith("combine: buffer 1 of this handle is not there, expected received."), beyond
        assert same


@pytest.mark.parametrize("ranks", [1, 2])
def test_combines_that_all_refuse(keeper: Keeper, ranks: int) -> None:
    """Before anything is sent: the same dispatch can still be combined."""
    expected = (
        "`x` is of 4 tokens, expected of 5, those of the dispatch.",
        "`x` is of type int, expected a torch.Tensor.",
        "`x` is torch.float32, expected torch.bfloat16.",
        "`routing` is of type tuple, expected a Routing, from moe_route.",
        "`add` is torch.float32, expected torch.bfloat16.",
        "`add` is of 4 tokens, expected of 5, those of the dispatch.",
        "`routing.zero_weight` is of type NoneType, expected a torch.Tensor.",
        "`routing.weights` is of 4 tokens, expected of 5, those of the dispatch.",
    )
    for texts, same in gloo(keeper, ranks).run("expert_misuse.combines"):
        assert same
        for text, start in zip(texts, expected, strict=True):
            assert text.startswith(f"combine: argument {start}"), (text, start)


EXPECTED = {
    "x": "argument `x` is of type int, expected torch.bfloat16 [T, 64].",
    "routing": "argument `routing` is of type tuple, expected a Routing, from moe_route.",
    "payload": "argument `w_gate_up` is one tensor, expected the other: the payload is fp8.",
    "pair": "argument `w_down` is of type int, expected a tensor, or a pair of values and scales.",
    "experts": "argument `w_down` is of shape [2, 64, 48], expected of {local} experts, those of this rank",
    "width": "m_grouped_fp8_gemm_nt_offset: argument `out` is of shape [0, 64], expected [0, 32].",
    "scales": "m_grouped_fp8_swiglu_gemm_nt_offset: argument `s_gate_up` is of shape [{local}, 1, 1], expected",
    "most": "argument `most_tokens` is {less}, expected at least {tokens}, the rows of `x`.",
    "most's type": "argument `most_tokens` is of type float, expected an int or None.",
    "add": "argument `add` is torch.float32 [{tokens}, 64], expected torch.bfloat16 [{tokens}, 64], as `x`.",
}


@pytest.mark.parametrize("ranks", [1, 2])
def test_layers_that_all_refuse(keeper: Keeper, ranks: int) -> None:
    """No buffer is lost: there are more refusals than buffers."""
    found = gloo(keeper, ranks).run("expert_misuse.layers", bad=-1)
    for (texts, same), tokens in zip(found, (5, 0), strict=False):
        assert same
        for name, expected in EXPECTED.items():
            expected = expected.format(local=12 // ranks, less=tokens - 1, tokens=tokens)
            assert texts[name].startswith(f"fused_moe: {expected}"), (name, texts[name])


def test_layers_that_one_rank_refuses(keeper: Keeper) -> None:
    (own, same), (others, same_there) = gloo(keeper, 2).run("expert_misuse.layers", bad=0)
    assert same and same_there
    for name, found in own.items():
        assert found["kind"] == "LongcatShapeError" and found["text"].startswith("fused_moe: "), found
        assert others[name]["kind"] == "LongcatCommError" and others[name]["seconds"] < 2, others[name]
        assert f"rank 0 refused its call 1. {found['text'].splitlines()[0]}" in others[name]["text"], others[name]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_few_graphs_serve_every_number_of_tokens(keeper: Keeper, ranks: int) -> None:
    """One of the first number, one of any, and those that torch makes apart: of 1 and of 0 tokens."""
    assert gloo(keeper, ranks).run("expert_misuse.graphs") == [4] * ranks


def test_inference_mode(keeper: Keeper) -> None:
    assert gloo(keeper, 2).run("expert_misuse.inference") == [[True] * 4] * 2


def test_a_forked_process(keeper: Keeper) -> None:
    for texts, same in gloo(keeper, 2).run("expert_misuse.forked"):
        assert same and all("which forked this one." in text for text in texts), texts


def test_closing_gives_memory_back(keeper: Keeper) -> None:
    for received, layer in gloo(keeper, 2).run("expert_misuse.closed_memory"):
        assert "is closed" in received and "is closed" in layer


def test_an_expert_named_twice(keeper: Keeper) -> None:
    for found, works in gloo(keeper, 2).run("expert_misuse.named_twice"):
        assert works and found["kind"] == "LongcatCommError" and "a token names an expert twice" in found["text"], found
