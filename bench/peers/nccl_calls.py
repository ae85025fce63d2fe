"""Calls of NCCL with a configuration of their own (ncclCollConfig_t, since NCCL 2.31.2), which torch does not offer."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

NEEDED = 23102  # ncclGetVersion: 10000 x major + 100 x minor + patch
MAGIC = 0xCAFEBEEF  # NCCL_API_MAGIC
UNSET = -(2**31)  # NCCL_CONFIG_UNDEF_INT
BFLOAT16, SUM = 9, 0  # ncclDataType_t, ncclRedOp_t
NAMES = ("ncclAllReduceConfig", "ncclReduceScatterConfig", "ncclAllGatherConfig", "ncclBroadcastConfig")


class CollConfig(ctypes.Structure):
    """ncclCollConfig_t as of 2.31.2. NCCL reads `version` and `size`, and takes older ones."""

    _fields_ = [
        ("size", c_size_t),
        ("magic", c_uint),
        ("version", c_uint),
        ("ext", c_void_p),
        *((name, c_int) for name in ("minCTAs", "maxCTAs", "nvlsCTAs", "cgaClusterSize")),
        ("algSelection", c_char_p),
        ("forceAlgSelection", c_int),
        ("CTAPolicy", c_int),
        ("userProfilerTag", c_uint64),
    ]

    @classmethod
    def of_blocks(cls, blocks: int) -> CollConfig:
        return cls(ctypes.sizeof(cls), MAGIC, NEEDED, None, blocks, blocks, blocks, UNSET, None, 1, UNSET, 0)


@cache
def library() -> Any:
    """The NCCL that torch has loaded."""
    return ctypes.CDLL("libnccl.so.2")


def missing(nccl: Any = None) -> str:
    """Why calls cannot be configured; "" if they can."""
    try:
        nccl = library() if nccl is None else nccl
    except OSError as error:
        return f"libnccl.so.2 is not loaded: {error}"
    number = c_int()
    nccl.ncclGetVersion(ctypes.byref(number))
    if number.value < NEEDED:
        return f"NCCL {number.value} is older than {NEEDED}"
    lacking = [name for name in NAMES if not hasattr(nccl, name)]
    return f"NCCL {number.value} does not export {lacking[0]}" if lacking else ""


class ConfiguredCalls:
    """Calls on bf16 tensors, on the current stream. comm: a ncclComm_t, which serves no one else meanwhile."""

    def __init__(self, nccl: Any, comm: int, blocks: int) -> None:
        self._nccl, self._comm, self._config = nccl, c_void_p(comm), CollConfig.of_blocks(blocks)

    def all_reduce(self, x: Tensor) -> None:
        self._call("ncclAllReduceConfig", x, x, x.numel(), c_int(BFLOAT16), c_int(SUM))

    def reduce_scatter(self, own: Tensor, x: Tensor) -> None:
        self._call("ncclReduceScatterConfig", x, own, own.numel(), c_int(BFLOAT16), c_int(SUM))

    def all_gather(self, out: Tensor, x: Tensor) -> None:
        self._call("ncclAllGatherConfig", x, out, x.numel(), c_int(BFLOAT16))

    def broadcast(self, x: Tensor) -> None:
        """From rank 0."""
        self._call("ncclBroadcastConfig", x, x, x.numel(), c_int(BFLOAT16), c_int(0))

    def _call(self, name: str, source: Tensor, target: Tensor, count: int, *kinds: c_int) -> None:
        stream = torch.cuda.current_stream().cuda_stream if source.is_cuda else 0
        status = getattr(self._nccl, name)(
            c_void_p(source.data_ptr()), c_void_p(target.data_ptr()), c_size_t(count), *kinds, self._comm,
            c_void_p(stream), ctypes.byref(self._config),
        )  # fmt: skip
        if status != 0:
            raise RuntimeError(f"{name} returned {status}")
