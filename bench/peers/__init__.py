"""Everything the grouped FP8 GEMM is timed beside, one file each. `OURS` is the op itself, as a Peer;
`SPLITS` are its forms for few experts."""

from . import deep_gemm, ours, scaled_mm, torch_eager, triton_grouped
from .peer import Call, Peer

OURS, SPLITS = ours.PEER, ours.SPLITS
PEERS = [*deep_gemm.PEERS, scaled_mm.PEER, triton_grouped.PEER, torch_eager.PEER]

__all__ = ["OURS", "PEERS", "SPLITS", "Call", "Peer"]
