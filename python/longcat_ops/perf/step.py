"""A whole decode step of one rank of EP128, as the report's table has it: 96 sequences, a draft each, FP8.

Layers, the head and verification, and the MTP head with its draft, one after another. What travels between ranks,
the host and a change of batch are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import attention as latent
from . import layer
from .chain import Share, chain_us
from .devices import Device
from .model import Band, Counts
from .products import SMS

VOCABULARY, LAYERS, ACCEPTED = 131072, 28, 0.8  # tokens; layers; drafts that the report's table assumes accepted


@dataclass(frozen=True)
class Shape:
    sequences: int = 96
    rows: int = 2  # tokens of each in the target's pass: the newest one, and drafts
    context: int = 5000
    ranks: int = 128

    @property
    def tokens(self) -> int:
        return self.sequences * self.rows


REPORT = Shape()


def head(rows: int) -> list[Counts]:
    """Logits in float32, and the choice of tokens that reads them."""
    hidden = layer.LONGCAT.hidden_size
    moved = 2 * VOCABULARY * hidden + rows * (2 * hidden + 4 * VOCABULARY)
    product = Counts("m_grouped_bf16_gemm_nt_masked", moved, 2.0 * rows * VOCABULARY * hidden, bf16=True)
    return [product, Counts("verify_greedy", 4 * rows * VOCABULARY)]


def mtp(shape: Shape, sms: int = SMS) -> list[Counts]:
    """The MTP head over the target's rows, then the draft from one row of each sequence."""
    hidden, tokens = layer.LONGCAT.hidden_size, shape.tokens
    quant = Counts("per_token_group_quant_fp8", tokens * (4 * hidden + layer.fp8_row(2 * hidden)))
    return [
        Counts("embed_rows", 4 * tokens * hidden),
        *layer.norm(tokens, hidden),
        *layer.norm(tokens, hidden),
        quant,
        *layer.product(tokens, hidden, 2 * hidden, sms),
        *layer.attention(latent.Call(shape.sequences, shape.rows, shape.context, sms=sms)),
        *layer.ffn(tokens, sms=sms),
        *layer.norm(tokens, hidden, residual=True),
        Counts("embed_rows", 4 * shape.sequences * hidden),
        *head(shape.sequences),
    ]


@dataclass(frozen=True)
class Prediction:
    """us of one attention, one dense FFN, the experts of a layer with their router, a layer, the head with
    verification, the MTP head with its draft, and the step; ms for each accepted token; bytes of the step."""

    attention: Band
    ffn: Band
    moe: Band
    layer: Band
    head: Band
    mtp: Band
    bytes: float

    @property
    def step(self) -> Band:
        layers = Band(LAYERS * self.layer.low, LAYERS * self.layer.high)
        return layers + self.head + self.mtp

    @property
    def ms_a_token(self) -> Band:
        return Band(*(1e-3 * us / (1 + ACCEPTED) for us in (self.step.low, self.step.high)))


def predicted(device: Device, shape: Shape = REPORT) -> Prediction:
    sms = int(device.sms.value)
    call = latent.Call(shape.sequences, shape.rows, shape.context, sms=sms)
    whole = layer.predicted(shape.tokens, device, rows=shape.rows, context=shape.context, ranks=shape.ranks)
    return Prediction(
        layer.total(layer.attention(call), device),
        layer.total(layer.ffn(shape.tokens, sms=sms), device),
        layer.total(layer.router(shape.tokens), device) + chain_us(Share(shape.tokens, shape.ranks), device),
        whole.layer,
        layer.total(head(shape.tokens), device),
        layer.total(mtp(shape, sms), device),
        LAYERS * whole.bytes + sum(one.bytes for one in (*head(shape.tokens), *mtp(shape, sms))),
    )
