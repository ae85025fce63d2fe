"""gate_up, SwiGLU and quantisation in one kernel, or apart: which is predicted to be faster, and at which L2 rate.

In one kernel a tile holds 128 tokens, and 256 weight rows beside them: above 128 rows an expert, its weights leave L2
again for each further 128. Apart, a tile holds 256 tokens, and blocks share them in pairs, but gate and up are written
and read as bf16. So where L2 is the limit, its rate decides, and it is assumed, not measured (`devices`).
"""

from __future__ import annotations

from dataclasses import dataclass

from . import products
from .devices import Device
from .model import Band, Counts, predict
from .products import fp8_row


@dataclass(frozen=True)
class Forms:
    """The predicted times of both on one device. low: with the kind constants, high: with the unkind ones; l2_high and
    l2_low are their L2 rates in bytes/s."""

    fused: Band
    apart: Band
    l2_high: float
    l2_low: float

    @property
    def faster(self) -> str:
        """ "fused" or "apart" where both ends agree, else ""."""
        fused = self.fused.low <= self.apart.low, self.fused.high <= self.apart.high
        return {(True, True): "fused", (False, False): "apart"}.get(fused, "")

    def __str__(self) -> str:
        high, low = (f"{rate / 1e12:g} TB/s" for rate in (self.l2_high, self.l2_low))
        times = f"fused {self.fused} us, apart {self.apart} us"
        if self.faster:
            return f"{times}: {self.faster} is faster with L2 at {low} and at {high}"
        first, second = ("fused", "apart") if self.fused.low <= self.apart.low else ("apart", "fused")
        return f"{times}: {first} is faster with L2 at {high}, {second} at {low}"


def apart(groups: int, rows: int, n: int, k: int, *, max_rows: int | None = None,
          sms: int = products.SMS) -> list[Counts]:  # fmt: skip
    """Counts of `m_grouped_fp8_gemm_nt_offset` into bf16, then `silu_and_mul_quant_fp8`; n rows of gate and up."""
    product = products.product(groups, rows, n, k, max_rows=max_rows, sms=sms)
    return [product, Counts("silu_and_mul_quant", rows * (2 * n + fp8_row(n // 2)))]


def forms(groups: int, rows: int, n: int, k: int, device: Device, *, max_rows: int | None = None) -> Forms:
    """Both forms over `rows` rows, spread evenly over the groups. max_rows: the products' max_m_hint."""
    sms = int(device.sms.value)
    fused = products.product(groups, rows, n, k, max_rows=max_rows, swiglu=True, sms=sms)
    two = apart(groups, rows, n, k, max_rows=max_rows, sms=sms)
    times = predict(fused, device, overlaps=True), predict(two, device, overlaps=True)
    return Forms(*times, device.l2_high.value, device.l2_low.value)
