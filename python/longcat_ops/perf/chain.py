"""What one rank's share of the experts of a layer moves, in three forms, at LongCat-Flash's sizes.

A rank holds G = 512 / EP experts. Each of its T * EP tokens (T of its own, the others from the ranks beside it) chooses
8 FFN experts at random, so 8 T rows arrive here. What travels between ranks is left out. Counts are expectations, the
rows of an expert their mean.

`fused`: permute_quant, gate_up with SwiGLU and quantisation, down, combine. `apart`: our kernels, but gate_up writes
bf16, and SwiGLU and quantisation follow. `deep_gemm`, for DeepGEMM's masked layout: as `apart`, but each launch starts
after the one ahead of it has ended, and products read and write whole blocks of 64 rows an expert (128 above 64 rows).
Routing and plan are the same kernels in all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil, sqrt

from . import dispatch, products
from .devices import Device
from .dispatch import EXPERTS, HIDDEN, REAL
from .model import Band, Counts, predict
from .products import SMS, fp8_row, weight_bytes

WIDTH = 2048  # of an expert
TOKENS, SHARES = (1, 8, 96, 192), (1, 8, 32, 128)  # of a rank; ranks


@dataclass(frozen=True)
class Share:
    """The share of one rank out of `ranks`, each of which has `tokens` tokens."""

    tokens: int
    ranks: int
    experts: int = EXPERTS
    hidden: int = HIDDEN
    width: int = WIDTH

    def __str__(self) -> str:
        return f"EP{self.ranks}-T{self.tokens}"

    @property
    def gate_up(self) -> tuple[int, int]:
        """N, K of an expert."""
        return 2 * self.width, self.hidden

    @property
    def down(self) -> tuple[int, int]:
        return self.hidden, self.width

    @property
    def groups(self) -> int:
        return self.experts // self.ranks

    @property
    def rows(self) -> int:
        return REAL * self.tokens

    @property
    def active(self) -> float:
        """Experts that have rows."""
        return self.groups * (1 - (1 - REAL / self.experts) ** (self.tokens * self.ranks))

    @cached_property
    def received(self) -> float:
        """Tokens with a row here: all but those whose 8 experts, all different, are elsewhere."""
        elsewhere = 1.0
        for i in range(REAL):
            elsewhere *= max(0, self.experts - self.groups - i) / (self.experts - i)
        return self.tokens * self.ranks * (1 - elsewhere)

    @property
    def mean_rows(self) -> float:
        return self.rows / self.active

    @property
    def block(self) -> int:
        """Rows of one of DeepGEMM's blocks."""
        return 64 if self.mean_rows <= 64 else 128

    def routing(self) -> list[Counts]:
        """Route and plan, in both chains."""
        return dispatch.moe_route(self.tokens) + dispatch.moe_plan(max(1, round(self.received)))

    def products(self, sms: int = SMS) -> list[Counts]:
        """Both products, of rows that lie by expert and are quantised."""
        h = fp8_row(self.width)
        gate_up = self._product(self.gate_up, True, sms, self.rows * (fp8_row(self.hidden) + h))
        return [replace(gate_up, name="gate_up"), self._down(sms)]

    def fused(self, sms: int = SMS) -> list[Counts]:
        """The launches behind the plan."""
        return [*self._quant(), *self.products(sms), *self._combine()]

    def apart(self, sms: int = SMS) -> list[Counts]:
        gate_up = self._product(self.gate_up, False, sms, self.rows * (fp8_row(self.hidden) + 4 * self.width))
        return [*self._quant(), replace(gate_up, name="gate_up"), self._silu(), self._down(sms), *self._combine()]

    def deep_gemm(self, sms: int = SMS) -> list[Counts]:
        gate_up, down = (
            products.deep_gemm(self.active, self.mean_rows, n, k, block=self.block, sms=sms)
            for n, k in (self.gate_up, self.down)
        )
        names = replace(gate_up, name="gate_up"), self._silu(), replace(down, name="down")
        return [*self._quant(), *names, *self._combine()]

    def bytes(self, form: str = "fused") -> float:
        return sum(one.bytes for one in FORMS[form].launches(self))

    def _silu(self) -> Counts:
        return Counts("silu_and_mul_quant", self.rows * (2 * 2 * self.width + fp8_row(self.width)))

    def _down(self, sms: int) -> Counts:
        moved = self.rows * (fp8_row(self.width) + 2 * self.hidden)
        return replace(self._product(self.down, False, sms, moved), name="down")

    def _quant(self) -> list[Counts]:
        return dispatch.moe_permute_quant(self.received, self.rows, self.hidden)

    def _combine(self) -> list[Counts]:
        return dispatch.moe_combine(self.received, self.rows, self.hidden)

    def _product(self, shape: tuple[int, int], swiglu: bool, sms: int, activations: float) -> Counts:
        """Counts of a product over the experts with rows (rounded to a whole number), in the tiles that the launcher
        would choose. Bytes are for the expected number of experts.
        """
        found = chosen(max(1, round(self.active)), self.rows, shape, self._hint(), swiglu, sms)
        return replace(found, bytes=self.active * weight_bytes(*shape) + activations)

    def _hint(self) -> int:
        """The hint that `fused_moe` gives (docs/fused_moe.md)."""
        tokens = max(1, round(self.received))
        mean = tokens * dispatch.CHOICES / self.groups
        return max(1, min(tokens, ceil(mean + 6 * sqrt(mean))))


@cache
def chosen(groups: int, rows: int, shape: tuple[int, int], hint: int, swiglu: bool, sms: int) -> Counts:
    """`products.product`, cached."""
    return products.product(groups, rows, *shape, max_rows=hint, swiglu=swiglu, sms=sms)


@dataclass(frozen=True)
class Form:
    """A form of the chain. overlaps: whether its launches overlap."""

    launches: Callable[..., list[Counts]]
    overlaps: bool


FORMS = {
    "fused": Form(Share.fused, True),
    "apart": Form(Share.apart, True),
    "deep_gemm": Form(Share.deep_gemm, False),
}


def experts_us(share: Share, device: Device, form: str = "fused", overlaps: bool | None = None) -> Band:
    """Time of the launches behind the plan. overlaps: None takes the form's own value."""
    overlaps = FORMS[form].overlaps if overlaps is None else overlaps
    found = Band(0, 0)
    for one in FORMS[form].launches(share, int(device.sms.value)):
        found += predict(one, device, overlaps)
    return found


def chain_us(share: Share, device: Device, form: str = "fused", overlaps: bool | None = None) -> Band:
    """Time with routing and plan, whose launches overlap in every form."""
    return predict(share.routing(), device, overlaps=True) + experts_us(share, device, form, overlaps)


def shares() -> list[Share]:
    return [Share(tokens, ranks) for ranks in SHARES for tokens in TOKENS]
