"""The same tokens through decode passes of one token per sequence, and through passes with right and wrong drafts."""

from __future__ import annotations

import torch

NEW = 8


def prefilled(model, ids, starts, fill=None):
    cache = model.new_cache(len(starts), max(starts) + NEW + 2)
    if fill is not None:
        cache.rows.fill_(fill)
    model(ids[:, : max(starts)], cache, lengths=starts)
    return cache


def gather(ids, cache, width):
    return torch.stack([ids[b, n : n + width] for b, n in enumerate(cache.lengths.tolist())])


def plain(model, ids, starts, fill=None):
    """logits [B,NEW,V], one token per pass."""
    cache = prefilled(model, ids, starts, fill)
    return torch.cat([model(gather(ids, cache, 1), cache) for _ in range(NEW)], 1)


def verified(model, ids, starts, seed):
    """The same logits from passes of one or two tokens per sequence; the second is right (kept) or wrong (undone)."""
    draw = torch.Generator().manual_seed(seed)
    cache = prefilled(model, ids, starts)
    wide = torch.promote_types(model.dtype, torch.float32)
    out = torch.zeros(len(starts), NEW, model.config.vocab_size, dtype=wide)
    while any(n < s + NEW for n, s in zip(cache.lengths.tolist(), starts, strict=True)):
        before = cache.lengths.tolist()
        kinds = torch.randint(0, 3, (len(starts),), generator=draw).tolist()  # 0 no draft, 1 right, 2 wrong
        room = [s + NEW - n for n, s in zip(before, starts, strict=True)]
        kinds = [kind if r >= 2 else 0 for kind, r in zip(kinds, room, strict=True)]
        new = gather(ids, cache, 2)
        for b, kind in enumerate(kinds):
            if kind == 2:
                new[b, 1] = (new[b, 1] + 1) % model.config.vocab_size
        logits = model(new, cache, lengths=[min(r, 1 + (kind > 0)) for kind, r in zip(kinds, room, strict=True)])
        for b, kind in enumerate(kinds):
            kept = min(room[b], 2 if kind == 1 else 1)
            out[b, before[b] - starts[b] :][:kept] = logits[b, :kept]
            cache.truncate(b, before[b] + kept)
    return out
