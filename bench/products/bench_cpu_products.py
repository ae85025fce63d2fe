"""Dense products on a CPU, at sizes of longcat-tiny, of the medium network of engine/networks.py and of LongCat-Flash:
`bf16_gemm_nt` beside torch's `F.linear`, both in bf16 and in fp32, on one thread and on two.

    python -m pytest bench/products/bench_cpu_products.py [-k "tiny and m1"]

A cell is one weight and M rows. Medians of 15 rounds, in which the four ways take turns; outputs are allocated by each.
`ratio` is the time of torch in the faster of its dtypes over ours in bf16. `read_share`, where the weight is beyond the
caches, is the rate of reading the bf16 weight once, of what the same threads read in the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch.nn import functional as F

import longcat_ops
from report import cpu_time

TINY = {"q_a": (128, 256), "q_b": (384, 128), "kv_a": (160, 256), "o_proj": (256, 256), "ffn_up": (512, 256),
        "ffn_down": (256, 512), "head": (1024, 256)}  # fmt: skip
MEDIUM = {"q_a": (256, 1024), "q_b": (1536, 256), "kv_a": (160, 1024), "o_proj": (1024, 1024), "ffn_up": (2048, 1024),
          "ffn_down": (1024, 2048), "head": (4096, 1024)}  # fmt: skip
LONGCAT = {"q_a": (1536, 6144), "q_b": (12288, 1536), "kv_a": (576, 6144), "o_proj": (6144, 8192),
           "ffn_up": (12288, 6144), "ffn_down": (6144, 12288)}  # fmt: skip
NETWORKS = {"tiny": TINY, "medium": MEDIUM, "LongCat-Flash": LONGCAT}
ROWS, THREADS = (1, 2, 4, 8, 64), (1, 2)
CHECKED = 1024  # columns of a result
BEYOND_CACHE = 64 << 20  # bytes of a bf16 weight
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def cells() -> Iterator[tuple[str, str, int, int]]:
    """(network, product, rows, threads)"""
    for network, products in NETWORKS.items():
        yield from ((network, product, rows, n) for product in products for rows in ROWS for n in THREADS)


@cache
def read_rate(threads: int) -> float:
    assert torch.get_num_threads() == threads
    return cpu_time.read_bytes_per_second()


@pytest.fixture
def threads(cell: tuple[str, str, int, int]) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(cell[-1])
    yield cell[-1]
    torch.set_num_threads(before)


def wrong(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether an element of y, in its first columns, is off by more than rounding it and summing in fp32 explain."""
    weight, y = weight[:CHECKED], y[:, :CHECKED]
    truth, sizes = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    return bool(((y.double() - truth).abs() > torch.finfo(y.dtype).eps * truth.abs() + 2**-18 * sizes).any())


def measured(shape: tuple[int, int], rows: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, shape[1], generator=generator), torch.randn(*shape, generator=generator)
    ways = {}
    for name, dtype in DTYPES.items():
        a, b = x.to(dtype), weight.to(dtype)
        ways[f"ours {name}"] = lambda a=a, b=b: longcat_ops.bf16_gemm_nt(a, b)
        ways[f"torch {name}"] = lambda a=a, b=b: F.linear(a, b)
        assert not wrong(a, b, ways[f"ours {name}"]()), name
    with torch.inference_mode():
        return cpu_time.microseconds(ways)


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{cell[0]}-{cell[1]}-m{cell[2]}-{cell[3]}t")
def test_beside_torch(cell: tuple[str, str, int, int], threads: int, benchmark) -> None:
    network, product, rows, _ = cell
    shape = NETWORKS[network][product]
    benchmark.group = f"{network}, {threads} threads"
    us = benchmark.pedantic(measured, (shape, rows), rounds=1)
    weight_bytes = 2 * shape[0] * shape[1]
    info = {"product": product, "network": network, "shape": shape, "m": rows, "threads": threads}
    info["cpu_us"] = {name: round(time, 2) for name, time in us.items()}
    info["ratio"] = round(min(us["torch bf16"], us["torch fp32"]) / us["ours bf16"], 3)
    if weight_bytes >= BEYOND_CACHE:
        info["read_share"] = round(weight_bytes / (1e-6 * us["ours bf16"]) / read_rate(threads), 3)
    benchmark.extra_info.update(info)
