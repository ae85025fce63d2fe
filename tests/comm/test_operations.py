"""Every operation has the values of an oracle: each size, dtype, list of rows and place, on 1 to 4 ranks.

Sums are compared bit for bit with sums in rank order in float32, rounded once. On small integers they are exact.
"""

from __future__ import annotations

import pytest

from support.comm_ranks import Keeper, Ranks

EVERY = {"all_reduces": 7, "reduce_scatters": 41, "all_gathers": 41, "broadcasts": 7, "fused_norms": 7}


@pytest.mark.parametrize("job", EVERY)
def test_values(world: Ranks, job: str) -> None:
    for wrong in world.run(f"comm_values.{job}", every=EVERY[job]):
        assert wrong == []


@pytest.mark.parametrize("fixed", [False, True], ids=["any order", "fixed order"])
def test_values_of_the_code_of_nccl(keeper: Keeper, fixed: bool) -> None:
    """Over gloo, since NCCL needs GPUs. Without a fixed order, sums are compared on small integers."""
    for job in EVERY:
        options = {"fixed": fixed} if job in ("all_reduces", "reduce_scatters", "fused_norms") else {}
        for wrong in Ranks(keeper, 3, "gloo+nccl code").run(f"comm_values.{job}", every=3 * EVERY[job], **options):
            assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("job", EVERY)
def test_values_of_all_cases(world: Ranks, job: str) -> None:
    for wrong in world.run(f"comm_values.{job}", every=1):
        assert wrong == []


def test_all_ranks_have_the_same_bits_in_every_run(world: Ranks) -> None:
    digests = world.run("comm_values.mixed", count=25) + world.run("comm_values.mixed", count=25)
    assert len(set(digests)) == 1
