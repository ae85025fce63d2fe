"""Bad calls by hand of latent attention, of what stands between products, and of the bookkeeping of a step, for
test_op_bad_calls.py."""

from __future__ import annotations

import math

import torch

from support.bad_calls import bad

DECODE = [
    bad("embed_rows", "`table` is torch.int32, expected", lambda a, k: ((a[0].int(), a[1]), k)),
    bad("embed_rows", "`ids` is torch.float32, expected torch.int64", lambda a, k: ((a[0], a[1].float()), k)),
    bad("embed_rows", "`ids` is 2-D [1, 5], expected 1-D [T]", lambda a, k: ((a[0], a[1][None]), k)),
    bad("add_rows", "`y` is torch.float32, expected torch.bfloat16", lambda a, k: ((a[0], a[1].float()), k)),
    bad("add_rows", "`y` is of shape [4, 97], expected [5, 97]", lambda a, k: ((a[0], a[1][:4]), k)),
    bad(
        "silu_and_mul",
        "`gate_up` is of shape [5, 193], expected [T, 2I], of an even width",
        lambda a, k: ((a[0][:, 1:],), k),
    ),
    bad("silu_and_mul", "`gate_up` is torch.int32, expected", lambda a, k: ((a[0].int(),), k)),
    bad("pack_rows", "`tokens` is torch.int32, expected torch.int64", lambda a, k: ((a[0].int(), *a[1:]), k)),
    bad("pack_rows", "`tokens` is 1-D [5], expected 2-D [B, q]", lambda a, k: ((a[0][:, 0], *a[1:]), k)),
    bad(
        "pack_rows",
        "`tokens` is of shape [5, 0], expected [B, q] with q at least 1",
        lambda a, k: ((a[0][:, :0], *a[1:]), k),
    ),
    bad(
        "pack_rows",
        "`tokens` is of strides (1, 5), expected a last stride of 1",
        lambda a, k: ((a[0].t().contiguous().t(), *a[1:]), k),
    ),
    bad(
        "pack_rows",
        "`tokens` is of shape [134217728, 16], expected at most 2^31 - 1 elements",
        lambda a, k: ((torch.empty(2**27, 16, dtype=torch.int64, device="meta"), *a[1:]), k),
    ),
    bad("pack_rows", "`num_drafts` is of shape [4], expected [5]", lambda a, k: ((a[0], a[1][:4], a[2]), k)),
    bad("pack_rows", "`lengths` is torch.int64, expected torch.int32", lambda a, k: ((*a[:2], a[2].long()), k)),
    bad("pack_rows", "`copies` is 0, expected at least 1", lambda a, k: (a, {"copies": 0})),
    bad("pack_rows", "`copies` is of type bool, expected of type int", lambda a, k: (a, {"copies": True})),
    bad("pack_rows", "`copies` is of type Tensor, expected of type int", lambda a, k: (a, {"copies": a[1][0]})),
    bad(
        "advance_lengths",
        "`tokens` is of shape [134217728, 16], expected at most 2^31 - 1 elements",
        lambda a, k: ((torch.empty(2**27, 16, dtype=torch.int64, device="meta"), *a[1:]), k),
    ),
    bad("advance_lengths", "`tokens` is of shape [5, 0], expected", lambda a, k: ((a[0][:, :0], *a[1:]), k)),
    bad("advance_lengths", "`num_tokens` is of shape [4], expected [5]", lambda a, k: ((a[0], a[1][:4], *a[2:]), k)),
    bad("advance_lengths", "`first_row` is torch.int64, expected", lambda a, k: ((*a[:2], a[2].long(), *a[3:]), k)),
    bad("advance_lengths", "`limits` is None, expected a torch.Tensor", lambda a, k: ((*a[:3], None, *a[4:]), k)),
    bad("advance_lengths", "`stop_ids` is torch.int32, expected", lambda a, k: ((*a[:4], a[4].int(), *a[5:]), k)),
    bad(
        "advance_lengths", "`stop_ids` is 2-D [1, 2], expected 1-D [S]", lambda a, k: ((*a[:4], a[4][None], *a[5:]), k)
    ),
    bad(
        "advance_lengths",
        "`lengths` is of strides (2), expected contiguous",
        lambda a, k: ((*a[:5], a[5].repeat(2)[::2], *a[6:]), k),
    ),
    bad("advance_lengths", "`num_drafts` is of shape [3], expected [5]", lambda a, k: ((*a[:6], a[6][:3], a[7]), k)),
    bad(
        "advance_lengths",
        "`num_drafts` is in memory shared with `limits`, expected memory of its own",
        lambda a, k: ((*a[:6], a[3], a[7]), k),
    ),
    bad("advance_lengths", "`newest` is torch.int32, expected torch.int64", lambda a, k: ((*a[:7], a[7].int()), k)),
    bad(
        "advance_lengths",
        "`newest` is of strides (0), expected no two elements at one address",
        lambda a, k: ((*a[:7], a[7][:1].expand(5)), k),
    ),
    bad("mla_write", "`kv` is torch.int32, expected", lambda a, k: ((a[0].int(), *a[1:]), k)),
    bad("mla_write", "`weight` is of shape [23], expected [24]", lambda a, k: ((a[0], a[1][:23], *a[2:]), k)),
    bad("mla_write", "`eps` is -1, expected 0 or a small", lambda a, k: ((*a[:2], -1.0, *a[3:]), k)),
    bad(
        "mla_write",
        "`rope` is of shape [192, 7], expected [L, R] with R even",
        lambda a, k: ((*a[:3], a[3][:, :7], *a[4:]), k),
    ),
    bad(
        "mla_write",
        "`rope` is of shape [192, 32], expected [L, R] with R below 32, the width of `kv`",
        lambda a, k: ((*a[:3], torch.zeros(192, 32), *a[4:]), k),
    ),
    bad("mla_write", "`page_table` is torch.int64, expected", lambda a, k: ((*a[:4], a[4].long(), *a[5:]), k)),
    bad("mla_write", "`sequence` is of shape [4], expected [5]", lambda a, k: ((*a[:5], a[5][:4], *a[6:]), k)),
    bad("mla_write", "`position` is torch.int64, expected", lambda a, k: ((*a[:6], a[6].long(), a[7]), k)),
    bad(
        "mla_write",
        "`rows` is of shape [12, 32, 32], expected [pages, 64, W]",
        lambda a, k: ((*a[:7], a[7][:, :32]), k),
    ),
    bad(
        "mla_write",
        "`rows` is of shape [12, 64, 24], expected [pages, 64, 32], as wide as `kv`",
        lambda a, k: ((*a[:7], a[7][..., :24]), k),
    ),
    bad("mla_write", "`rows` is torch.float32, expected torch.bfloat16", lambda a, k: ((*a[:7], a[7].float()), k)),
    bad("mla_query", "`q` is torch.float16, expected torch.bfloat16 or", lambda a, k: ((a[0].half(), *a[1:]), k)),
    bad(
        "mla_query",
        "`w_k` is of shape [3, 20, 16], expected [h, latent, nope] with latent a positive multiple of 8",
        lambda a, k: ((a[0], a[1][:, :20], *a[2:]), k),
    ),
    bad("mla_query", "`w_k` is of shape [2, 24, 16], expected [3, 24, 16]", lambda a, k: ((a[0], a[1][:2], *a[2:]), k)),
    bad("mla_query", "`w_k` is torch.float32, expected", lambda a, k: ((a[0], a[1].float(), *a[2:]), k)),
    bad("mla_query", "`position` is of shape [3], expected [4]", lambda a, k: ((*a[:3], a[3][:3]), k)),
    bad("mla_decode", "`q` is 2-D [5, 40], expected 3-D [T, h, W]", lambda a, k: ((a[0][:, 0], *a[1:]), k)),
    bad("mla_decode", "`rows` is torch.float32, expected", lambda a, k: ((a[0], a[1].float(), *a[2:]), k)),
    bad(
        "mla_decode",
        "`rows` is of shape [12, 64, 32], expected [pages, 64, 40], as wide as `q`",
        lambda a, k: ((a[0], a[1][..., :32], *a[2:]), k),
    ),
    bad("mla_decode", "`latent` is 41, expected 1 .. 40, the width of `rows`", lambda a, k: (a, k | {"latent": 41})),
    bad("mla_decode", "`latent` is 0, expected 1 .. 40", lambda a, k: (a, k | {"latent": 0})),
    bad("mla_decode", "`scale` is inf, expected a finite number", lambda a, k: (a, k | {"scale": math.inf})),
    bad(
        "mla_decode", "`split_rows` is 96, expected a positive multiple of 64", lambda a, k: (a, k | {"split_rows": 96})
    ),
    bad("mla_decode", "`split_rows` is 0, expected a positive multiple", lambda a, k: (a, k | {"split_rows": 0})),
]
