"""Kernels of latent attention in the host emulator: values, nothing written elsewhere, bits that no schedule, neighbour
or alignment changes, and accesses outside the arguments are reported.
"""

from __future__ import annotations

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import mla_calls, mla_oracle
from support.emulated_kernels import DTYPES, library, one_thread, run, schedule  # noqa: F401  (fixtures)

# One chunk, several, more than a block takes at once, and widths that are no whole chunks.
WIDTHS = [(8, 2), (512, 64), (2056, 32), (9, 2), (1, 6), (100, 66)]
LAYOUTS = [(0, 0, 0, 0), (8, 0, 16, 8), (0, 1, 0, 0), (0, 0, 0, 3), (3, 5, 1, 7)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("latent", "width"), WIDTHS)
def test_mla_write(latent: int, width: int, dtype: torch.dtype) -> None:
    rows = [mla_calls.write(latent, width, dtype, layout) for layout in LAYOUTS]
    assert len({str(bits(one.contiguous())) for one in rows}) == 1
    mla_calls.write(latent, width, dtype, places=[])


def test_mla_write_of_a_token_alone() -> None:
    together = mla_calls.write(512, 64, torch.bfloat16)
    for s, p in mla_calls.PLACES[:6]:
        alone = mla_calls.write(512, 64, torch.bfloat16, places=[(3, 0)] * mla_calls.PLACES.index((s, p)) + [(s, p)])
        at = mla_calls.TABLE[s, p // 64], p % 64
        assert bits(alone[at]) == bits(together[at])


def test_mla_write_in_every_schedule() -> None:
    want = bits(mla_calls.write(136, 16, torch.bfloat16))
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            assert bits(mla_calls.write(136, 16, torch.bfloat16)) == want


def test_an_access_outside_the_arguments_is_reported() -> None:
    """The last row of the last page, narrower than what is written."""
    table, at = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([127], dtype=torch.int32)
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
        run("mla_write", torch.ones(1, 40), torch.ones(32), 1e-5, mla_oracle.rope(128, 8), table,
            torch.zeros_like(at), at, torch.zeros(2, 64, 32))  # fmt: skip
