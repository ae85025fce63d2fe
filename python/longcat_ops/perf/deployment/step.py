"""The time and the cost of a decode step, by the formulas of the LongCat-Flash technical report (arXiv:2509.01322,
section 6), with what it leaves implicit: where memory is the limit, how long hidden parts are, what fits on a GPU.

Ranks are GPUs. Each decodes `batch` sequences and holds all dense weights and 1 / ep of the experts. Left out: norms,
router, head, drafts, exchanges of tensor parallelism, uneven experts, ranks that come late, the host; `Efficiency` has
two numbers for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from ..speculation import accepted_length
from .deployment import PRECISIONS, Deployment, require
from .hardware import HEADROOM

BACK_BYTES = CACHE_BYTES = 2  # of a value on its way back, and of one in the cache: bf16


class Part(NamedTuple):
    """us, and what bounds them."""

    us: float
    bound: str


@dataclass(frozen=True)
class Parts:
    """us of one attention, of the projections ahead of its core, of one dense FFN, and of the experts' three parts."""

    attention: Part
    project: Part
    dense: Part
    dispatch: Part
    moe: Part
    combine: Part


def with_attention(d: Deployment, us: float) -> Deployment:
    """The same where one attention takes `us`; other batches and contexts keep its ratio to the model."""
    require("attention_us", us, 0 < us < 1e9, "us, more than 0 and less than 1e9")
    return replace(d, attention_factor=us / parts(replace(d, attention_factor=1.0)).attention.us)


def _slowest(flops: float, peak: float, nbytes: float, memory: float) -> Part:
    """us = max(flops / peak, bytes / memory)."""
    cores, moved = 1e6 * flops / peak, 1e6 * nbytes / memory
    return Part(cores, "tensor cores") if cores >= moved else Part(moved, "memory")


def parts(d: Deployment, micro: int = 1) -> Parts:
    """The parts of one layer with experts, over all rows of a GPU, T = batch x (1 + drafts) tokens of hidden size H:

        dispatch = T x copies x H x 1 B / link          copies: FFN experts of a token, or all choices if not zero_aware
        combine  = T x copies x H x 2 B / link
        MoE      = max(2 x T x (FFN experts x expert + shared) / peak, (active experts x expert + shared) / memory)
        dense    = max(2 x T x parameters / peak, bytes / memory)
        attention = projections, as dense, + core
        core     = max(2 x (score + value width) x heads x T x context / (660 of 989 TFLOPS),
                       batch x context x row x 2 B / memory)

    expert, shared: parameters, a byte each in fp8. active experts: those of the rank with a row, E / ep x
    (1 - (1 - k / E) ^ (T x ep)). tp ranks share heads and serve each other's sequences: flops stay, weights are 1 / tp,
    and of the cache a rank reads tp / min(tp, kv heads) as much. micro: micro-batches that run one after another, each
    of which reads all weights again.
    """
    net, gpu, eff = d.network, d.gpu, d.efficiency
    tokens, memory = d.tokens / micro, eff.memory * gpu.memory.value
    size = PRECISIONS[d.precision]
    peak = eff.products * (gpu.fp8 if d.precision == "fp8" else gpu.bf16).value

    def times(part: Part, factor: float = 1.0) -> Part:
        return Part(part.us * micro * factor, part.bound)

    def product(parameters: float, precision: str, split: int = 1) -> Part:
        own = eff.products * (gpu.fp8 if precision == "fp8" else gpu.bf16).value
        return _slowest(2 * tokens * parameters, own, PRECISIONS[precision] * parameters / split, memory)

    a, precision = net.attention, d.attention_precision or d.precision
    project, behind = (product(one, precision, d.tp) for one in (a.before, a.after))
    scored = 2 * (a.score_width + a.value_width) * a.heads * tokens * d.context
    cached = d.batch / micro * d.context * a.row * CACHE_BYTES * d.tp / min(d.tp, a.kv_heads)
    core = _slowest(scored, eff.attention * gpu.bf16.value, cached, memory)
    largest = max((project.us + behind.us, project.bound), (core.us, f"{core.bound} of its core"))
    attention = Part(project.us + core.us + behind.us, largest[1])

    active = net.experts / d.ep * (1 - (1 - d.rows / net.experts) ** (tokens * d.ep))
    shared = net.ffn(net.shared_width)
    flops = 2 * tokens * (d.rows * net.expert + shared)
    moe = _slowest(flops, peak, size * (active * net.expert + shared), memory)
    copies = d.tokens * (d.rows if d.zero_aware else net.choices)
    sent = [
        d.path.us(copies, nbytes * net.hidden, d.ep, combine) for nbytes, combine in ((size, False), (BACK_BYTES, True))
    ]
    factor, wire = d.attention_factor, f"link {d.path.name}"
    dense = product(net.ffn(net.dense_width), d.precision)
    return Parts(times(attention, factor), times(project, factor), times(dense), Part(sent[0], wire), times(moe),
                 Part(sent[1], wire))  # fmt: skip


def exposed(d: Deployment, p: Parts) -> dict[str, Part]:
    """What a layer's time is made of, by overlap; the layer is the sum. A: attentions, F: dense FFNs of the layer.

        none  A x attention + F x dense + dispatch + MoE + combine
        tbo   MoE + max(dispatch + combine, A x attention + F x dense)
        sbo   attention + max(dispatch, dense + project) + MoE + max(combine, attention - project + dense)

    In the report communication hides all else: DeepSeek-V3 and Qwen3 by tbo, LongCat-Flash by sbo.
    """
    net = d.network
    attention = Part(net.attentions * p.attention.us, p.attention.bound)
    dense = Part(net.dense_ffns * p.dense.us, p.dense.bound)
    sent = {"dispatch": p.dispatch, "combine": p.combine}
    if d.hiding == "none":
        return {"attention": attention, "dense FFN": dense, "MoE": p.moe, **sent}
    if d.hiding == "tbo":
        hidden = p.dispatch.us + p.combine.us >= attention.us + dense.us
        return {"MoE": p.moe, **(sent if hidden else {"attention": attention, "dense FFN": dense})}
    second = p.attention.us - p.project.us + p.dense.us
    bound = p.attention.bound if 2 * p.dense.us < second else p.dense.bound
    beside = {
        "first dense FFN": Part(p.dense.us + p.project.us, p.dense.bound),
        "second attention": Part(second, bound),
    }
    found = {"attention": p.attention, "MoE": p.moe}
    for (name, part), (other, compute) in zip(sent.items(), beside.items(), strict=True):
        found |= {name: part} if part.us >= compute.us else {other: compute}
    return found


@dataclass(frozen=True)
class Result:
    """A step of a deployment. parts: as its overlap runs them. layer_us, dense_layer_us: of a layer with experts, and
    of one without. weights, cache: bytes of a GPU."""

    deployment: Deployment
    parts: Parts
    exposed: dict[str, Part]
    layer_us: float
    dense_layer_us: float
    weights: float
    cache: float

    @property
    def step_us(self) -> float:
        """Layers one after another; times slowdown, plus fixed_us."""
        d = self.deployment
        layers = d.network.moe_layers * self.layer_us + d.network.dense_layers * self.dense_layer_us
        return d.efficiency.slowdown * layers + d.efficiency.fixed_us

    @property
    def tpot_ms(self) -> float:
        """ms for each accepted token: step / Omega, Omega = 1 + a + .. + a^g (`perf.speculation`)."""
        return 1e-3 * self.step_us / accepted_length(self.deployment.acceptance, self.deployment.drafts)

    @property
    def tokens_s_user(self) -> float:
        return 1e3 / self.tpot_ms

    @property
    def tokens_s_gpu(self) -> float:
        return self.deployment.batch * self.tokens_s_user

    @property
    def dollars(self) -> float | None:
        """Of a million tokens, price x 1e6 / (3600 x tokens/s of a GPU); None without a price."""
        price = self.deployment.gpu.price
        return None if price is None else dollars(price.value, self.tokens_s_gpu)

    @property
    def capacity(self) -> float:
        """Bytes that may be taken."""
        return (1 - HEADROOM) * self.deployment.gpu.capacity.value

    @property
    def fits(self) -> bool:
        return self.weights + self.cache <= self.capacity

    @property
    def binding(self) -> tuple[str, Part]:
        """The longest exposed part of a layer."""
        return max(self.exposed.items(), key=lambda one: one[1].us)


def dollars(price: float, tokens_s_gpu: float) -> float:
    """Of a million tokens at `price` dollars an hour."""
    return price * 1e6 / (3600 * tokens_s_gpu)


def evaluate(d: Deployment) -> Result:
    found = parts(d, 2 if d.hiding == "tbo" else 1)
    shown, whole = exposed(d, found), parts(d)
    return Result(d, found, shown, sum(one.us for one in shown.values()), whole.attention.us + whole.dense.us,
                  weight_bytes(d), cache_bytes(d))  # fmt: skip


def weight_bytes(d: Deployment) -> float:
    """Of a GPU: dense weights whole (attention's by tp), 1 / ep of the experts, embedding and head in bf16, and the MTP
    head if there are drafts."""
    net, size = d.network, PRECISIONS[d.precision]
    attention = net.cache_slots * net.attention.parameters
    projections = attention * PRECISIONS[d.attention_precision or d.precision] / d.tp
    moe_layers = net.moe_layers + (net.mtp_moe_layers if d.drafts else 0)
    dense = net.beside_experts - attention + (net.mtp_dense if d.drafts else 0)
    experts = moe_layers * net.experts / d.ep * net.expert
    return projections + size * (dense + experts) + 2 * net.embeddings


def cache_bytes(d: Deployment) -> float:
    """Of a GPU's sequences: a row for each token and attention, the MTP head's too if there are drafts."""
    net = d.network
    slots = net.cache_slots + (net.mtp_heads if d.drafts else 0)
    copies = d.tp / min(d.tp, net.attention.kv_heads)
    return d.batch * d.context * slots * net.attention.row * CACHE_BYTES * copies
