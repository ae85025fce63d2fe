"""Bad calls: all ranks refuse together and go on; where one alone refuses, the others learn its rank and its error."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from longcat_ops.comm.store import Client
from longcat_ops.comm.watch import Watch
from longcat_ops.errors import LongcatCommError
from support.comm_ranks import Ranks

# Refused before the call reaches the rung; by the schema's own check; only on the rank that has the wrong rows.
BY_ONE = ("no tensor", "ints", "own rows", "overlap", "source")


def test_all_ranks_refuse_together(world: Ranks) -> None:
    for wrong in world.run("comm_refusals.by_all"):
        assert wrong == []


@pytest.mark.parametrize("name", BY_ONE)
def test_one_rank_refuses(peers: Ranks, name: str) -> None:
    bad = peers.ranks - 1
    texts = peers.run("comm_refusals.by_one", name=name, bad=bad)
    first = [text.splitlines()[0] for text in texts]
    refusal = first[bad].partition(": ")[2]
    assert first[bad].startswith("LongcatShapeError: "), texts
    for text in texts[:bad]:
        assert text.startswith(f"LongcatCommError: all_reduce: rank {bad} refused its call 1. {refusal}"), text
    assert all("LongcatCommError: barrier: this communicator is poisoned." in text for text in texts[:bad])
    assert "refused its call 1" in texts[bad]
    assert all(float(text.splitlines()[-1]) < 5 for text in texts)


def test_a_refusal_is_found_by_a_rank_that_has_gone_on() -> None:
    """Kernels do not make the host wait: when one finds out that another rank gave up, the host is calls ahead. What
    both have refused is not the cause."""
    store = dist.HashStore()
    client = Client(store)
    here, there = (Watch(client, store, rank, 2, 20.0, 1).channels[0] for rank in range(2))
    for channel in (here, there):
        channel.begin("dispatch")
        channel.refuse(LongcatCommError("dispatch: all buffers are taken"))
        channel.begin("dispatch")
    there.refuse(LongcatCommError("dispatch: 17 tokens"))
    for half in ("dispatch_send", "dispatch_recv", "combine_send"):
        if half != "dispatch_send":
            here.begin(half)
        here.enter(f"{half} of buffer 0", "exchange")
    text = "combine_send: rank 1 refused its call 2. dispatch: 17 tokens"
    assert str(here.disagree("a peer aborted")) == text


@pytest.mark.parametrize("form", ["dtype", "shape", "op", "rows", "source", "count"])
def test_ranks_that_disagree(peers: Ranks, form: str) -> None:
    for text in peers.run("comm_refusals.disagree", form=form):
        assert text.startswith("LongcatCommError: "), text
        assert "ranks disagree about call 1" in text
        assert text.count(" called `") == 2


def test_a_capture_is_refused(pair: Ranks) -> None:
    """By all ranks, in words, before anything is sent: the next call is served."""
    for *texts, result in pair.run("comm_refusals.in_a_capture"):
        assert [text.split(":")[0] for text in texts] == ["all_reduce", "empty", "Communicator"]
        assert all("in the capture of a CUDA graph, expected outside of one" in text for text in texts)
        assert "the rung gloo works on the host" in texts[0]
        assert result == "[2.0, 2.0]"
