"""Everything the grouped FP8 GEMM and the bf16 products are timed beside. `OURS` is the op itself, as a Peer; `SPLITS`
are its forms for few experts."""

from . import deep_gemm, ours, scaled_mm, torch_bf16, torch_eager, triton_grouped
from .peer import Call, Peer

OURS, SPLITS = ours.PEER, ours.SPLITS
PEERS = [*deep_gemm.PEERS, scaled_mm.PEER, triton_grouped.PEER, torch_eager.PEER]
BF16_OURS, BF16_SPLITS = ours.BF16, ours.BF16_SPLITS
BF16_GROUPED = [torch_bf16.GROUPED, *deep_gemm.BF16_GROUPED]
BF16_DENSE = [torch_bf16.LINEAR, deep_gemm.BF16_DENSE]

__all__ = [
    "BF16_DENSE",
    "BF16_GROUPED",
    "BF16_OURS",
    "BF16_SPLITS",
    "OURS",
    "PEERS",
    "SPLITS",
    "Call",
    "Peer",
]
