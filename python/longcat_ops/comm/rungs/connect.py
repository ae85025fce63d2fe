"""Builds a rung over process groups of its own, one per channel."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..background import Background
from .base import Session
from .gloo import NEVER_S, GlooRung
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
    timeout = timedelta(seconds=session.config.timeout_s or NEVER_S)

    def connect() -> list[Any]:
        kind = dist.ProcessGroupGloo if name == "gloo" else dist.ProcessGroupNCCL
        stores = [dist.PrefixStore(f"{name}/{i}", session.store) for i in range(session.config.num_channels)]
        return [kind(store, session.rank, session.ranks, timeout) for store in stores]

    alone = [None] * session.config.num_channels
    groups = session.watch.finish(name, Background(connect)) if session.ranks > 1 else alone
    rungs = [RUNGS[name](session, i, group) for i, group in enumerate(groups)]
    for rung in rungs:
        rung.siblings = rungs
    return rungs[0]


def store_keys(name: str, session: Session) -> list[tuple[Any, str]]:
    """What the process groups of the rung `name` leave in the store: their addresses."""
    places = [(i, r) for i in range(session.config.num_channels) for r in range(session.ranks)]
    return [(session.store, f"{name}/{i}/0/{r}") for i, r in places]
