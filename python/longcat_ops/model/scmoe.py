"""The ScMoE layer: a MoE with zero experts on a shortcut beside two attentions and two dense FFNs, stage by stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _environment
from ..comm import Dispatch, ExpertParallel
from ..ops import bf16_gemm, gemm, moe
from ..ops.router import split_bf16x3
from ..reference.experts import products
from ..reference.sums import acc_dtype
from ..types import Fp8Pair, Routing
from . import prompt_experts
from .block import Block
from .config import LongcatFlashConfig
from .derived import DerivingBlock
from .layers import FFN, MLA, RMSNorm, dense_of
from .parallel import Parallel
from .products import Quantised, ops_for
from .rows import AnyRows, PromptRows, Rows
from .source import Source
from .stages import Executor, serial, stage
from .tensor_parallel import Partial, TokenShare, whole

Arrived = tuple[Tensor, Tensor | None, Tensor, Dispatch]  # q, s, offsets, handle


class MoE(DerivingBlock):
    """Router over FFN + zero experts in fp32, then the expert chain (LongCat-Flash technical report, section 2.1 and
    eq. 8).
    """

    origin, derived = "router", ("router_split",)

    def __init__(self, source: Source, name: str, config: LongcatFlashConfig, layer: int) -> None:
        super().__init__()
        c, wide = config, acc_dtype(source.dtype)
        router = f"{name}.router"
        self.config, self.layer = config, layer
        self.parallel: Parallel | None = None
        self.exchange: ExpertParallel | None = None
        self.register_buffer(
            "router", source.dense(f"{router}.classifier.weight", (c.num_experts, c.hidden_size), wide)
        )
        self.register_buffer("bias", source.dense(f"{router}.e_score_correction_bias", (c.num_experts,), wide))
        gate_up, down = source.experts(f"{name}.experts", c.n_routed_experts, c.expert_ffn_hidden_size, c.hidden_size)
        for key, weight in (("gate_up", gate_up), ("down", down)):
            data, scale = weight if isinstance(weight, tuple) else (weight, None)
            self.register_buffer(key, data)
            self.register_buffer(f"{key}_scale", scale)
        self.renew()

    def derive(self, weight: Tensor) -> tuple[Tensor | None]:
        """router_split bf16 [3,E,H]: the terms that the kernel for Hopper reads in place of the router's weight."""
        reads_weight = weight.device.type == "cpu" and _environment.backend() != "emu"
        return (None if weight.dtype == torch.float64 or reads_weight else split_bf16x3(weight),)

    def route(self, x: Tensor, rows: Rows | PromptRows) -> Routing:
        """The experts of x [T,H]; appends num_real u8[T] to `rows.num_real`."""
        c = self.config
        routes, (split,) = ops_for(self.router.dtype), self.kept()
        routing = routes.moe_route(
            routes.router_gemm(x, self.router, split=split), self.bias, top_k=c.moe_topk, num_experts=c.num_experts,
            num_zero_experts=c.zero_expert_num, scale=c.routed_scaling_factor, num_valid=rows.count, errors=rows.errors,
        )  # fmt: skip
        rows.num_real.append(routing.num_real)
        return routing if self.parallel is None else self.parallel.placed(routing, self.layer)

    def join(self, parallel: Parallel) -> None:
        """This rank's part of the experts is here, and rows travel to those of others. Collective."""
        self.parallel = parallel
        self.exchange = parallel.exchange("fp8" if self.gate_up_scale is not None else "bf16")

    def weights(self) -> tuple[Tensor | Fp8Pair, Tensor | Fp8Pair]:
        """(gate_up, down) of the experts that are here."""
        gate_up = self.gate_up if self.gate_up_scale is None else (self.gate_up, self.gate_up_scale)
        return gate_up, self.down if self.down_scale is None else (self.down, self.down_scale)

    def experts(self, x: Tensor, routing: Routing, rows: Rows | PromptRows) -> Tensor:
        """The sum of the experts of x [T,H], zero experts included."""
        c, chain = self.config, ops_for(x.dtype, x.device)
        plan = chain.moe_plan(routing.ids, len(self.down), routing.weights)  # without one, ids are read on the host
        rows_each = len(x) * c.moe_topk / c.num_experts
        if isinstance(rows, PromptRows) and prompt_experts.pay(x, self.gate_up, self.down, rows_each):
            return prompt_experts.fused_moe(x, routing, self.gate_up, self.down, plan)
        return chain.fused_moe(x, routing, *self.weights(), plan=plan)

    def local_experts(self, arrived: Arrived) -> Tensor:
        """The outputs of this rank's experts for the rows that came to them."""
        q, s, offsets, handle = arrived
        y = torch.empty((handle.rows, q.shape[1]), dtype=torch.bfloat16, device=q.device)
        families = moe, gemm, bf16_gemm
        rows = q if s is None else (q, s)
        return products(families, rows, offsets, *self.weights(), y, max_m_hint=handle.max_m_hint)


class ScMoELayer(Block):
    """Two attentions, two dense FFNs, and a MoE on a shortcut from the first post-attention norm to the output
    (LongCat-Flash technical report, section 2).
    """

    def __init__(self, source: Source, name: str, config: LongcatFlashConfig, layer: int) -> None:
        super().__init__()
        c, hidden, self.tp = config, config.hidden_size, source.tp

        def norm(kind: str, i: int) -> RMSNorm:
            return RMSNorm(source, f"{name}.{kind}.{i}", hidden, c.rms_norm_eps)

        self.input_layernorm = nn.ModuleList(norm("input_layernorm", i) for i in (0, 1))
        self.post_attention_layernorm = nn.ModuleList(norm("post_attention_layernorm", i) for i in (0, 1))
        self.self_attn = nn.ModuleList(MLA(source, f"{name}.self_attn.{i}", c, 2 * layer + i) for i in (0, 1))
        self.mlps = nn.ModuleList(FFN(source, f"{name}.mlps.{i}", hidden, c.ffn_hidden_size) for i in (0, 1))
        self.mlp = MoE(source, f"{name}.mlp", c, layer)

    def forward(self, x: Tensor, rows: Rows | PromptRows, execute: Executor = serial) -> Tensor:
        """x [T,H] -> [T,H] in x's dtype: both attentions write their cache rows, the MoE appends to `rows.num_real`."""
        stages = self.STAGES if self.mlp.parallel is None else self.PARALLEL
        return execute(self, stages, rows, {"x": x}, "out")

    # The MoE stands on a shortcut, needed only at the end: whatever lies between can run beside it.
    STAGES = (
        stage("attend_first", "x", "p h"),
        stage("route", "p", "routing"),
        stage("run_experts", "p routing", "shortcut"),
        stage("first_ffn", "p h", "n h_ffn"),
        stage("project_second", "n", "q"),
        stage("attend_second", "q h_ffn", "p_second h_second"),
        stage("second_ffn", "p_second", "dense"),
        stage("add", "h_second dense shortcut", "out"),
    )
    # The same with experts on other ranks: rows travel beside the first FFN and the second attention.
    PARALLEL = (
        *STAGES[:2],
        stage("send_rows", "p routing", "sent", True),
        *STAGES[3:5],
        stage("receive_rows", "sent", "arrived", True),
        stage("run_local_experts", "arrived", "y"),
        stage("send_results", "y arrived", "returning", True),
        *STAGES[5:7],
        stage("receive_results", "returning p routing", "shortcut", True),
        STAGES[7],
    )

    def attend_first(self, rows: AnyRows, x: Tensor) -> tuple[Tensor | Quantised, Tensor]:
        """(what the dense FFN and the router see, the residual) behind the first attention."""
        n, _ = self.input_layernorm[0].before(self.self_attn[0].fp8, x)
        return self.post_attention_layernorm[0].before(self.mlps[0].fp8, whole(self.self_attn[0](n, rows)), x)

    def route(self, rows: AnyRows, p: Tensor | Quantised) -> Routing:
        return self.mlp.route(dense_of(p), rows)

    def run_experts(self, rows: AnyRows, p: Tensor | Quantised, routing: Routing) -> Tensor:
        return self.mlp.experts(dense_of(p), routing, rows)

    def send_rows(self, rows: AnyRows, p: Tensor | Quantised, routing: Routing) -> Dispatch:
        return self.mlp.exchange.dispatch_send(*self.tp.to_experts(dense_of(p), routing))

    def receive_rows(self, rows: AnyRows, sent: Dispatch) -> Arrived:
        return self.mlp.exchange.dispatch_recv(sent)

    def run_local_experts(self, rows: AnyRows, arrived: Arrived) -> Tensor:
        return self.mlp.local_experts(arrived)

    def send_results(self, rows: AnyRows, y: Tensor, arrived: Arrived) -> Dispatch:
        handle = arrived[-1]
        self.mlp.exchange.combine_send(y, handle)
        return handle

    def receive_results(self, rows: AnyRows, returning: Dispatch, p: Tensor | Quantised,
                        routing: Routing) -> Tensor | TokenShare:  # fmt: skip
        x, sent = self.tp.to_experts(dense_of(p), routing)
        y = self.mlp.exchange.combine_recv(returning, x, sent)
        return TokenShare(y, self.tp, len(dense_of(p))) if self.tp.same_tokens else y

    def first_ffn(self, rows: AnyRows, p: Tensor | Quantised, h: Tensor) -> tuple[Tensor | Quantised, Tensor]:
        """(what the second attention sees, the residual)."""
        return self.input_layernorm[1].before(self.self_attn[1].fp8, whole(self.mlps[0](p, rows)), h)

    def project_second(self, rows: AnyRows, n: Tensor | Quantised) -> Tensor:
        return self.self_attn[1].project(n, rows)

    def attend_second(self, rows: AnyRows, q: Tensor, h: Tensor) -> tuple[Tensor | Quantised, Tensor]:
        """(what the second dense FFN sees, the residual)."""
        context = whole(self.self_attn[1].attend(q, rows))
        return self.post_attention_layernorm[1].before(self.mlps[1].fp8, context, h)

    def second_ffn(self, rows: AnyRows, p: Tensor | Quantised) -> Tensor | Partial:
        return self.mlps[1](p, rows)

    def add(self, rows: AnyRows, h: Tensor, dense: Tensor | Partial, shortcut: Tensor | TokenShare) -> Tensor:
        add = ops_for(h.dtype).add_rows
        return add(add(h, whole(dense)), whole(shortcut))
