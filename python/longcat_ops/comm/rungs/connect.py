"""Builds a rung over process groups of its own, one per channel."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..background import Background
from .base import Session
from .gloo import MARGIN_S, NEVER_S, GlooRung
from .group import GroupRung
from .nccl import NcclRung

RUNGS: dict[str, type[GroupRung]] = {"gloo": GlooRung, "nccl": NcclRung}


def reason(name: str, device: torch.device) -> str:
    """Why this rank cannot use the rung `name`; "" if it can."""
    if name == "gloo":
        return "" if dist.is_gloo_available() else "this build of torch has no gloo"
    if device.type != "cuda":
        return "CUDA tensors only: this process group has no GPU"
    return "" if dist.is_nccl_available() else "this build of torch has no NCCL"


def build(name: str, session: Session) -> GroupRung:
    """The rung `name`, one process group per channel. Collective."""
    channels = range(session.config.num_channels)
    if session.ranks == 1:
        groups: list[Any] = [None for _ in channels]
    elif name == "gloo":
        groups = _connect(session)
    else:
        stores = [dist.PrefixStore(f"{name}/{i}", session.store) for i in channels]
        groups = [dist.ProcessGroupNCCL(store, session.rank, session.ranks, _limit(session)) for store in stores]
    rungs = [RUNGS[name](session, i, group) for i, group in enumerate(groups)]
    for rung in rungs:
        rung.siblings = rungs
    return rungs[0]


def _limit(session: Session) -> timedelta:
    limit = session.config.timeout_s  # NCCL's watchdog ends the process: by then this library has named who is missing
    return timedelta(seconds=limit + MARGIN_S if limit else NEVER_S)


def _connect(session: Session) -> list[Any]:
    """Process groups of gloo. Each finds its addresses in a store inside this process: waiting for those of a rank that
    does not come would else block the store of all. `gather`, which can end, carries them."""
    rank, ranks, watch = session.rank, session.ranks, session.watch
    stores = [dist.HashStore() for _ in range(session.config.num_channels)]

    works = [
        Background(lambda store=store: dist.ProcessGroupGloo(store, rank, ranks, _limit(session))) for store in stores
    ]
    stage = f"addresses, {watch.vote}"  # of this attempt: a rank that failed in an earlier one left some behind
    own = watch.finish(stage, Background(lambda: [store.get(f"0/{rank}").hex() for store in stores]))
    for r, addresses in enumerate(watch.gather(stage, own)):
        for store, address in zip(stores, addresses, strict=True):
            if r != rank:
                store.set(f"0/{r}", bytes.fromhex(address))
    return [watch.finish("gloo", work) for work in works]
