"""Times that others have published for similar kernels, and what the model says for the same counts.

They test the model before any kernel of ours is timed: no constant is adjusted to a time outside its band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import products
from .devices import by_name
from .model import Band, Counts, predict


@dataclass(frozen=True)
class Published:
    """launches: all overlap, or none does. why: what is known of a time outside its band."""

    case: str
    device: str
    us: float
    launches: Sequence[Counts]
    source: str
    overlaps: bool = False
    why: str = ""

    @property
    def band(self) -> Band:
        first, *rest = (predict(one, by_name(self.device), self.overlaps) for one in self.launches)
        return sum(rest, start=first)


def _masked(
    us: float, groups: int, rows: int, n: int, k: int, device: str, source: str, block: int = 64, why: str = ""
) -> Published:
    counts = products.deep_gemm(groups, rows, n, k, block=block, sms=int(by_name(device).sms.value))
    return Published(f"{groups} experts x {rows} rows, {n} x {k}", device, us, [counts], source, why=why)


def _dense(us: float, rows: int, n: int, k: int, device: str, source: str, why: str = "") -> Published:
    counts = products.deep_gemm(1, rows, n, k, block=128 if rows > 64 else 64)
    return Published(f"dense, {rows} rows, {n} x {k}", device, us, [counts], source, why=why)


def _rate(rows: int, n: int, k: int, gb_per_s: float) -> float:
    """us of a product whose published rate counts operands and bf16 results."""
    return 1e-3 * (rows * k + n * k + 2 * rows * n) / gb_per_s


def _layer(us: float, rows: int, experts: int, tokens: int) -> Published:
    """Five launches of fish-scales-ops: routing, quantisation, gate_up with SwiGLU, down, combine."""
    hidden, width = 2048, 768
    pairs = rows * experts
    h = products.fp8_row(width)
    gate_up = experts * products.weight_bytes(2 * width, hidden) + pairs * (products.fp8_row(hidden) + h)
    down = experts * products.weight_bytes(hidden, width) + pairs * (h + 2 * hidden)
    rest = [tokens * 2 * 128, tokens * 2 * hidden + pairs * products.fp8_row(hidden), (pairs + tokens) * 2 * hidden]
    launches = [Counts("launch", moved) for moved in (*rest, gate_up, down)]
    case = f"a layer's {experts} active experts x {rows} rows, 2048 x 768, five launches"
    return Published(case, "H200", us, launches, "fish-scales-ops, docs/perf")


def _first_product(blocks: int, us: float, why: str = "") -> Published:
    """Each block reads 512 KB of weights, and so does the busiest SM."""
    counts = Counts("FC1", blocks * 2**19, l2_bytes=blocks * 2**19, sm_bytes=2**19)
    case = f"one product, {blocks} blocks of 512 KB each, cold"
    return Published(case, "H200", us, [counts], "fish-scales-ops, dispatch.cuh", why=why)


_WARM = "its weights may have lain in L2: DeepGEMM's early benches did not clear it (its pull request 68)"
_TAIL = "a longer tail than the model has"
_SLOW = "the issue reports it as slower than before"
_COOL = "no power limit holds its tensor cores back, as the shares of peak assume"


def published() -> list[Published]:
    third, h20, readme = "DeepGEMM, a comment in pull request 192", "DeepGEMM, pull request 192", "DeepGEMM, README"
    return [
        _masked(168, 16, 32, 4096, 7168, "H100", third),
        _masked(94, 16, 32, 7168, 2048, "H100", third),
        _masked(176, 16, 96, 4096, 7168, "H100", third, 128),
        _masked(100, 16, 96, 7168, 2048, "H100", third, 128),
        _masked(229, 16, 160, 4096, 7168, "H100", third, 128),
        _masked(116, 16, 160, 7168, 2048, "H100", third, 128),
        _masked(257, 16, 32, 4096, 7168, "H20", h20, why=_COOL),
        _masked(127, 16, 32, 7168, 2048, "H20", h20, why=_COOL),
        _masked(2e-6 * 1024 * 4096 * 7168 / 932, 4, 256, 4096, 7168, "H800", readme, 128),
        _masked(2e-6 * 1024 * 7168 * 2048 / 815, 4, 256, 7168, 2048, "H800", readme, 128),
        _dense(_rate(64, 4096, 7168, 2320), 64, 4096, 7168, "H800", readme),
        _dense(_rate(64, 7168, 2048, 2470), 64, 7168, 2048, "H800", readme, _WARM),
        _dense(_rate(64, 24576, 1536, 2455), 64, 24576, 1536, "H800", readme),
        _dense(18, 64, 4096, 7168, "H100", "DeepGEMM, issue 136", _SLOW),
        _dense(10, 64, 7168, 2048, "H100", "DeepGEMM, issue 136"),
        _dense(51, 64, 7168, 16384, "H100", "DeepGEMM, issue 136"),
        _dense(19, 128, 4096, 7168, "H800", "DeepGEMM, pull request 168"),
        _dense(11, 128, 7168, 2048, "H800", "DeepGEMM, pull request 168"),
        _layer(162.7, 8, 128, 128),
        _layer(21.9, 1, 8, 1),
        Published("dense, 16 rows, 12288 x 2048, back to back", "H200", 8.9,
                  [Counts("dense", products.weight_bytes(12288, 2048) + 16 * (2112 + 2 * 12288))],
                  "fish-scales-ops, docs/perf", overlaps=True),
        _first_product(32, 10.28),
        _first_product(48, 10.90),
        _first_product(64, 13.45, _TAIL),
    ]  # fmt: skip
