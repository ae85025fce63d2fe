"""A bias controller with a group has, on every rank, the bits of one that is given the summed counts."""

from __future__ import annotations

import torch

from support import training_jobs as jobs
from support.comm_ranks import Ranks


def test_ranks_have_the_bias_of_all_tokens(peers: Ranks) -> None:
    alone, wanted = jobs.controller(), []
    for step in range(jobs.STEPS):
        counts = torch.stack([jobs.counts_of(rank, step) for rank in range(peers.ranks)]).sum(0)
        wanted.append(alone.update(counts).tolist())
    assert peers.run("training_jobs.biases") == [wanted] * peers.ranks


def test_wrong_counts_of_one_rank_are_refused_by_all(peers: Ranks) -> None:
    for error in peers.run("training_jobs.refused"):
        assert "argument `counts` is summing to" in error
