"""Bad calls by hand of the ops that choose tokens, for test_op_bad_calls.py."""

from __future__ import annotations

import math

import torch

from support.bad_calls import bad

VERIFY = {"verify_greedy": 3, "verify_sampled": 9}  # op: place of `first_row`
DRAWING = (("verify_sampled", 3, 5), ("sample_tokens", 1, 7))  # op, place of `seeds`, sequences
NUMBERS = ("seeds", "lengths", "temperature", "top_k", "top_p")
MOST = 2**31 - 1


def swapped(i, change):
    """Changes the argument at place i."""
    return lambda a, k: ((*a[:i], change(a[i]), *a[i + 1 :]), k)


def given(**outputs):
    return lambda a, k: (a, k | outputs)


def verified(op):
    """Of both ops that verify drafts."""
    yield bad(op, "`logits` is torch.float64, expected torch.float32", swapped(0, torch.Tensor.double))
    yield bad(op, "`logits` is 2-D [20, 37], expected 3-D [B, q, V]", swapped(0, lambda t: t.flatten(0, 1)))
    text = f"expected [B, q, V] with q and V 1 .. {MOST}"
    yield bad(op, f"`logits` is of shape [5, 0, 37], {text}", swapped(0, lambda t: t[:, :0]))
    yield bad(op, f"`logits` is of shape [5, 4, 0], {text}", swapped(0, lambda t: t[..., :0]))
    yield bad(
        op,
        "`logits` is of strides (37, 185, 1), expected cont",
        swapped(0, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)),
    )
    yield bad(op, "`drafts` is of shape [5, 4], expected [5, 3]", swapped(1, lambda t: t[:, [0, 1, 2, 2]]))
    yield bad(op, "`drafts` is torch.int32, expected torch.int64", swapped(1, torch.Tensor.int))
    yield bad(op, "`drafts` is of strides (1, 5), expected a last stride", swapped(1, lambda t: t.T.contiguous().T))
    yield bad(op, "`num_drafts` is torch.int64, expected torch.int32", swapped(2, torch.Tensor.long))
    yield bad(op, "`num_drafts` is of shape [4], expected [5]", swapped(2, lambda t: t[:4]))
    yield bad(op, "`first_row` is torch.int64, expected torch.int32", swapped(VERIFY[op], torch.Tensor.long))
    yield bad(op, "`first_row` is of shape [4], expected [5]", swapped(VERIFY[op], lambda t: t[:4]))
    i64, i32 = torch.int64, torch.int32
    yield bad(op, "`tokens` is torch.int32, expected torch.int64", given(tokens=torch.zeros(5, 4, dtype=i32)))
    yield bad(op, "`tokens` is of shape [5, 3], expected [5, 4]", given(tokens=torch.zeros(5, 3, dtype=i64)))
    yield bad(
        op, "`tokens` is of strides (0, 1), expected no two", given(tokens=torch.zeros(4, dtype=i64).expand(5, 4))
    )
    yield bad(op, "`tokens` is of strides (8, 2), expected a last", given(tokens=torch.zeros(5, 8, dtype=i64)[:, ::2]))
    yield bad(op, "`num_tokens` is torch.int64, expected torch.int32", given(num_tokens=torch.zeros(5, dtype=i64)))
    yield bad(op, "`num_tokens` is of strides (2), expected cont", given(num_tokens=torch.zeros(10, dtype=i32)[::2]))
    yield bad(op, "`num_tokens` is in memory shared with `num_drafts`", lambda a, k: (a, k | {"num_tokens": a[2]}))


FILTER = {"hidden": 2, "output": 3, "joint_before": 4}  # places


def filtered():
    op = "filter_drafts"
    yield bad(op, "`logits` is torch.float64, expected torch.float32", swapped(0, torch.Tensor.double))
    yield bad(op, "`logits` is 3-D [1, 7, 37], expected 2-D [B, V]", swapped(0, lambda t: t[None]))
    yield bad(op, f"`logits` is of shape [7, 0], expected [B, V] with V 1 .. {MOST}", swapped(0, lambda t: t[:, :0]))
    yield bad(op, "`logits` is of strides (1, 7), expected a last", swapped(0, lambda t: t.T.contiguous().T))
    yield bad(op, "`num_drafts` is torch.int64, expected torch.int32", swapped(1, torch.Tensor.long))
    yield bad(op, "`num_drafts` is of shape [6], expected [7]", swapped(1, lambda t: t[:6]))
    yield bad(op, "`num_drafts` is of strides (2), expected cont", swapped(1, lambda t: t.repeat_interleave(2)[::2]))
    yield bad(op, "`num_drafts` is None, expected a torch.Tensor", swapped(1, lambda t: None))
    for name, at in FILTER.items():
        yield bad(op, f"`{name}` is torch.float64, expected torch.float32", swapped(at, torch.Tensor.double))
        yield bad(op, f"`{name}` is 3-D" if at == 2 else f"`{name}` is of shape [1, ", swapped(at, lambda t: t[None]))
    text = "expected [H, 4] with H 1 .. 256"
    yield bad(op, f"`hidden` is of shape [9, 3], {text}", swapped(2, lambda t: t[:, :3]))
    yield bad(op, f"`hidden` is of shape [0, 4], {text}", swapped(2, lambda t: t[:0]))
    yield bad(op, f"`hidden` is of shape [257, 4], {text}", swapped(2, lambda t: t[:1].repeat(257, 1)))
    yield bad(op, "`hidden` is of strides (1, 9), expected contiguous", swapped(2, lambda t: t.T.contiguous().T))
    yield bad(op, "`output` is of shape [9], expected [10]", swapped(3, lambda t: t[:9]))
    yield bad(op, "`joint_before` is of shape [6], expected [7]", swapped(4, lambda t: t[:6]))
    for depth in (0, -1, 2**31):
        yield bad(op, f"`depth` is {depth}, expected 1 .. {MOST}", given(depth=depth))
    for beta, shown in ((math.nan, "nan"), (math.inf, "inf"), (1e39, "1e+39")):
        yield bad(op, f"`beta` is {shown}, expected a finite float32", given(beta=beta))
    yield bad(op, "`beta` is of type str, expected of type float", given(beta="0.5"))
    yield bad(op, "`beta` is of type NoneType, expected of type float", given(beta=None))
    yield bad(op, "`depth` is of type float, expected of type int", given(depth=1.5))
    yield bad(op, "`top` is 0, expected at least 1", given(top=0))


SAMPLING = [
    *filtered(),
    *(case for op in VERIFY for case in verified(op)),
    *(
        bad(op, f"`{name}` is of shape [{n - 1}], expected [{n}]", swapped(i + at, lambda t: t[:-1]))
        for op, at, n in DRAWING
        for i, name in enumerate(NUMBERS)
    ),
    *(
        bad(op, f"`{name}` is torch.float64, expected torch", swapped(i + at, torch.Tensor.double))
        for op, at, _ in DRAWING
        for i, name in enumerate(NUMBERS)
    ),
    bad("verify_sampled", "`draft_probs` is torch.float64, expected", swapped(8, torch.Tensor.double)),
    bad(
        "verify_sampled",
        "`draft_probs` is of shape [5, 4, 37], expected [5, 3, 37]",
        swapped(8, lambda t: t[:, [0] * 4]),
    ),
    bad(
        "verify_sampled", "`draft_probs` is of shape [5, 3, 36], expected [5, 3, 37]", swapped(8, lambda t: t[..., 1:])
    ),
    bad(
        "verify_sampled",
        "`draft_probs` is of strides (111, 1, 3), expected a last",
        swapped(8, lambda t: t.mT.contiguous().mT),
    ),
    bad("sample_tokens", "`logits` is 3-D [1, 7, 37], expected 2-D [B, V]", swapped(0, lambda t: t[None])),
    bad("sample_tokens", "`logits` is torch.bfloat16, expected torch.float32", swapped(0, torch.Tensor.bfloat16)),
    bad(
        "sample_tokens",
        f"`logits` is of shape [7, 0], expected [B, V] with V 1 .. {MOST}",
        swapped(0, lambda t: t[:, :0]),
    ),
    bad("sample_tokens", "`logits` is of strides (1, 7), expected a last", swapped(0, lambda t: t.T.contiguous().T)),
    bad(
        "sample_tokens",
        "`tokens` is torch.int32, expected torch.int64",
        given(tokens=torch.zeros(7, dtype=torch.int32)),
    ),
    bad(
        "sample_tokens", "`tokens` is of shape [7, 1], expected [7]", given(tokens=torch.zeros(7, 1, dtype=torch.int64))
    ),
    bad(
        "sample_tokens",
        "`tokens` is of strides (0), expected no two",
        given(tokens=torch.zeros(1, dtype=torch.int64).expand(7)),
    ),
    bad("sample_tokens", "`probs` is torch.float64, expected", given(probs=torch.zeros(7, 37, dtype=torch.float64))),
    bad("sample_tokens", "`probs` is of shape [7, 36], expected [7, 37]", given(probs=torch.zeros(7, 36))),
    bad("sample_tokens", "`probs` is of strides (74, 2), expected a last", given(probs=torch.zeros(7, 74)[:, ::2])),
    bad("sample_tokens", "`probs` is in memory shared with `logits`", lambda a, k: (a, k | {"probs": a[0]})),
]
