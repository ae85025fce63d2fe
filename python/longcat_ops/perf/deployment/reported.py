"""The LongCat-Flash technical report's tables 6 and 7 (arXiv:2509.01322, section 6), beside what the formulas give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from ..speculation import accepted_length
from ..timeline import REPORTED
from .deployment import Deployment
from .hardware import GPUS, RDMA, Efficiency
from .network import NETWORKS
from .step import Result, dollars, evaluate, parts, with_attention

SOURCE = "LongCat-Flash technical report, arXiv:2509.01322, section 6"
GPU, PRICE = GPUS["H800"], 2.0  # dollars an hour
CELLS = ("attention", "dispatch", "MoE", "combine")


@dataclass(frozen=True)
class Column:
    """Of table 7: us of a layer's parts, ms of a token, dollars of a million, as printed. Attention is an input: its
    context is not stated."""

    network: str
    overlap: str
    tp: int
    attention: float
    dispatch: float
    moe: float
    combine: float
    tpot_ms: float
    dollars: float

    @property
    def deployment(self) -> Deployment:
        """96 sequences a GPU at EP128, one draft accepted at 80 %, 40 GB/s, attention as printed. Qwen3 has no MTP
        head; the report assumes an equal speculator for it."""
        d = Deployment(NETWORKS[self.network], GPU, tp=self.tp, overlap=self.overlap, link=RDMA)
        return with_attention(d, self.attention)

    @property
    def cells(self) -> dict[str, tuple[float, float]]:
        """(printed, by formula) of attention, dispatch, MoE and combine: all rows of a GPU in one pass. The formula's
        attention is the model's at 5,000 rows of context."""
        found = parts(replace(self.deployment, attention_factor=1.0))
        ours = found.attention, found.dispatch, found.moe, found.combine
        printed = self.attention, self.dispatch, self.moe, self.combine
        return {name: (one, part.us) for name, one, part in zip(CELLS, printed, ours, strict=True)}

    @property
    def result(self) -> Result:
        return evaluate(self.deployment)

    @property
    def dollars_of_printed(self) -> float:
        """From the printed ms: price x 1e6 / (3600 x batch / TPOT)."""
        return dollars(PRICE, self.deployment.batch * 1e3 / self.tpot_ms)


_LONGCAT = [us for us, _ in REPORTED.values()]
TABLE_7 = (
    Column("DeepSeek-V3", "tbo", 1, 471, 275, 77, 551, 30, 0.17),
    Column("Qwen3-235B-A22B", "tbo", 4, 314, 157, 29, 315, 26.2, 0.15),
    Column("LongCat-Flash", "sbo", 1, *_LONGCAT, 16, 0.09),
)


@dataclass(frozen=True)
class OperatingPoint:
    """Of table 6: what was measured. context: of a sequence, mean; attention_precision: of its projections."""

    attention_precision: str
    context: int
    tokens_s_gpu: float
    tokens_s_user: float

    @property
    def batch(self) -> int:
        """Sequences of a GPU."""
        return round(self.tokens_s_gpu / self.tokens_s_user)

    @property
    def tpot_ms(self) -> float:
        return 1e3 / self.tokens_s_user

    @property
    def dollars(self) -> float:
        return dollars(PRICE, self.tokens_s_gpu)

    @property
    def deployment(self) -> Deployment:
        """As if at EP128 with 80 % of drafts accepted, which the table does not state."""
        return Deployment(NETWORKS["LongCat-Flash"], GPU, batch=self.batch, context=self.context, link=RDMA,
                          attention_precision=self.attention_precision)  # fmt: skip


TABLE_6 = (
    OperatingPoint("bf16", 5000, 3785, 35.0),
    OperatingPoint("bf16", 5000, 2205, 68.9),
    OperatingPoint("bf16", 5000, 804, 100.5),
    OperatingPoint("fp8", 5000, 4230, 26.4),
    OperatingPoint("fp8", 8000, 3240, 33.8),
)
MEASURED_MS = 26.0  # a token at 96 sequences, as the report says: 61.5 % of the 16 ms
FITTED = TABLE_6[:3]  # the same context and precision: the others test the fit


@cache
def achieved() -> Efficiency:
    """slowdown and fixed_us by least squares: measured step = slowdown x modelled step + fixed_us over FITTED, where a
    measured step is ms a token x 1.8."""
    pairs = [(evaluate(point.deployment), point) for point in FITTED]
    x = [result.step_us for result, _ in pairs]
    y = [1e3 * point.tpot_ms * accepted_length(result.deployment.acceptance, result.deployment.drafts)
         for result, point in pairs]  # fmt: skip
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    base = FITTED[0].deployment.efficiency
    source = f"as `report`, fitted to {len(FITTED)} points that the report measured of LongCat-Flash (table 6)"
    return replace(base, name="achieved", source=source, slowdown=slope, fixed_us=mean_y - slope * mean_x)
