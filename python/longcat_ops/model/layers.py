"""The blocks of one ScMoE layer: linear, RMSNorm, RoPE, MLA (plain and absorbed), dense FFN, MoE with zero experts.

Weights come from a `source` (see model/source.py), asked by published tensor name while a block is built.
Accumulation happens in `acc_dtype(x)`: fp32, or fp64 in an fp64 model. In a decode pass a row's bits depend on nothing
but the row and its past; a chunk of a prompt, whose rows are fixed by their positions, may take torch's products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _environment
from ..ops.router import split_bf16x3
from ..reference.sums import acc_dtype
from . import products, prompt_experts
from .block import Block
from .config import LongcatFlashConfig
from .derived import DerivingBlock
from .products import Quantised, ops_for
from .rotary import rotate
from .rows import PromptRows, Rows
from .source import Source


class Linear(Block):
    """y = x @ W.T, W dense [N,K] or an FP8 pair (x is then quantised 1x128 on the way in)."""

    def __init__(self, source: Source, name: str, rows: int, cols: int) -> None:
        super().__init__()
        weight = source.linear(f"{name}.weight", rows, cols)
        self.fp8 = isinstance(weight, tuple)
        self.dtype = source.dtype
        data, scale = weight if isinstance(weight, tuple) else (weight, None)
        self.register_buffer("weight", data)
        self.register_buffer("scale", scale)

    def product_sizes(self) -> list[tuple[int, int]]:
        """[N,K] of the dense products of a decode pass."""
        return [] if self.fp8 else [tuple(self.weight.shape)]

    def forward(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor:
        """x [T,K] -> [T,N] in the model's dtype."""
        if not self.fp8 and rows.count is None:
            return F.linear(_dense(x), self.weight)
        tokens, dtype = (len(x.pair[0]), self.dtype) if isinstance(x, Quantised) else (len(x), x.dtype)
        return self.into(self.weight.new_empty((tokens, len(self.weight)), dtype=dtype), x, rows.count)

    def into(self, out: Tensor, x: Tensor | Quantised, count: Tensor | None) -> Tensor:
        """x [T,K] -> out [T,N], rows any distance apart, by a product in which a row has bits of its own; its first
        `count` i32[1] rows, or all.
        """
        if not self.fp8:
            return products.linear(_dense(x), self.weight, out, count)
        return products.fp8_linear(x, (self.weight, self.scale), out, count)


def _dense(x: Tensor | Quantised) -> Tensor:
    return x.x if isinstance(x, Quantised) else x


class RMSNorm(DerivingBlock):
    """x / rms(x) * (gain * weight) in fp32 with an fp32 weight, rounded once (Zhang and Sennrich, arXiv:1910.07467)."""

    origin, derived = "weight", ("gained_weight",)

    def __init__(self, source: Source, name: str, size: int, eps: float, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", source.dense(f"{name}.weight", (size,), acc_dtype(source.dtype)))
        self.eps, self.gain = eps, gain
        self.renew()

    def derive(self, weight: Tensor) -> tuple[Tensor | None]:
        """gain * weight [size]."""
        return (None if self.gain == 1 else weight * self.gain,)

    @property
    def gained(self) -> Tensor:
        """gain * weight [size]."""
        return self.weight if self.gain == 1 else self.kept()[0]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x [T,size] -> [T,size] in x's dtype, in y if it is given."""
        return ops_for(self.weight.dtype).rms_norm(x, self.gained, self.eps, y=y)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual), [T,size] each."""
        return ops_for(self.weight.dtype).rms_norm(x, self.gained, self.eps, residual)

    def before(self, fp8: bool, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor | Quantised, Tensor | None]:
        """(norm of x or of x + residual, x + residual); the norm quantised on the way where an FP8 product follows."""
        operators = ops_for(self.weight.dtype)
        if not fp8:
            y = operators.rms_norm(x, self.gained, self.eps, residual)
            return (y, None) if residual is None else y
        q, s, y, total = operators.rms_norm_quant_fp8(x, self.gained, self.eps, residual)
        return Quantised(y, (q, s)), total


class MLA(DerivingBlock):
    """Multi-head latent attention over one cache slot (DeepSeek-V2, arXiv:2405.04434; scales: LongCat-Flash technical
    report, arXiv:2509.01322, section 2.3).
    """

    origin, derived = "kv_b_proj", ("w_k",)

    def __init__(self, source: Source, name: str, config: LongcatFlashConfig, slot: int) -> None:
        super().__init__()
        c, hidden = config, config.hidden_size
        self.slot, self.heads, self.latent = slot, c.num_attention_heads, c.kv_lora_rank
        self.nope, self.rope, self.value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        self.softmax_scale = c.qk_head_dim**-0.5
        self.q_a_proj = Linear(source, f"{name}.q_a_proj", c.q_lora_rank, hidden)
        self.q_a_layernorm = RMSNorm(source, f"{name}.q_a_layernorm", c.q_lora_rank, c.lora_norm_eps, c.q_lora_scale)
        self.q_b_proj = Linear(source, f"{name}.q_b_proj", self.heads * c.qk_head_dim, c.q_lora_rank)
        self.kv_a_proj = Linear(source, f"{name}.kv_a_proj_with_mqa", c.latent_width, hidden)
        self.kv_a_layernorm = RMSNorm(source, f"{name}.kv_a_layernorm", self.latent, c.lora_norm_eps, c.kv_lora_scale)
        self.o_proj = Linear(source, f"{name}.o_proj", hidden, self.heads * self.value)
        # kv_b is always dense: its halves are also needed apart, per head, to absorb them into query and output.
        kv_b = source.linear(f"{name}.kv_b_proj.weight", self.heads * (self.nope + self.value), self.latent, dense=True)
        self.register_buffer("kv_b_proj", kv_b)
        self.renew()

    def derive(self, weight: Tensor) -> tuple[Tensor]:
        """w_k [h,latent,nope]: the half of kv_b that makes keys, as the absorbed product of queries reads it."""
        w_k = weight.view(self.heads, -1, self.latent)[:, : self.nope]
        return (w_k.transpose(1, 2).clone(memory_format=torch.contiguous_format),)

    def product_sizes(self) -> list[tuple[int, int]]:
        """[N,K] of the products that are this block's own: of the absorbed key half, and of the value half."""
        return [(self.latent, self.nope), (self.value, self.latent)]

    @property
    def fp8(self) -> bool:
        """Whether it wants its rows quantised."""
        return self.q_a_proj.fp8 or self.kv_a_proj.fp8

    def forward(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor:
        """x [T,H] -> [T,H]; stores the latent rows of the tokens, then attends over each past and itself."""
        q, _ = self.q_a_layernorm.before(self.q_b_proj.fp8, self.q_a_proj(x, rows))
        q = self.q_b_proj(q, rows).unflatten(1, (self.heads, -1))
        norm, latents = self.kv_a_layernorm, rows.cache.rows[self.slot]
        where = rows.cache.page_table, rows.sequence, rows.position
        ops_for(q.dtype).mla_write(self.kv_a_proj(x, rows), norm.gained, norm.eps, rows.rope, *where, latents)
        attend = self.attend_plain if isinstance(rows, PromptRows) else self.attend_absorbed
        return self.o_proj(attend(q, rows), rows)

    def attend_plain(self, q: Tensor, rows: PromptRows) -> Tensor:
        """Prefill of one sequence: keys and values are expanded from the latent rows, all queries q [T,h,nope+rope] at
        once.
        """
        start, end = rows.start, rows.end
        past = rows.cache.read(self.slot, rows.owner, end)[:end]  # [L, latent+rope]
        kv = F.linear(past[:, : self.latent], self.kv_b_proj).view(end, self.heads, -1).transpose(0, 1)
        k_nope, v = kv.split([self.nope, self.value], -1)  # [h,L,nope], [h,L,value]
        k = torch.cat([k_nope, past[:, self.latent :].expand(self.heads, -1, -1)], -1)
        turned = rotate(q[..., self.nope :], rows.rope[start:end])
        q = torch.cat([q[..., : self.nope], turned], -1).transpose(0, 1)  # [h,T,nope+rope]
        mask = None
        if start > 0:
            mask = torch.ones(q.shape[1], end, dtype=torch.bool, device=q.device).tril(start)
        # torch has a fused kernel for keys and values of one width; it is 1.5 to 4 times as fast on a CPU.
        width = max(q.shape[-1], v.shape[-1])
        q, k, v = (F.pad(t, (0, width - t.shape[-1]))[None] for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=start == 0, scale=self.softmax_scale)
        return o[0, ..., : self.value].transpose(0, 1).flatten(1)

    def attend_absorbed(self, q: Tensor, rows: Rows) -> Tensor:
        """Decode and verify: MQA of each query q [T,h,nope+rope] over latent rows, W_k and W_v absorbed."""
        (w_k,), w_v = self.kept(), self.kv_b_proj.view(self.heads, -1, self.latent)[:, self.nope :]
        q = products.ops_of(q, self.latent, self.nope).mla_query(q, w_k, rows.rope, rows.position)
        context = products.attention_of(q, self.latent).mla_decode(
            q, rows.cache.rows[self.slot], rows.cache.page_table, rows.sequence, rows.position, latent=self.latent,
            scale=self.softmax_scale,
        )  # fmt: skip
        o = q.new_empty((len(q), self.heads, self.value))
        products.per_head(context.transpose(0, 1), w_v, o.transpose(0, 1), rows.num_rows[: self.heads])
        return o.flatten(1)


class FFN(Block):
    """Dense SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202)."""

    def __init__(self, source: Source, name: str, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(source, f"{name}.gate_proj", width, hidden)
        self.up_proj = Linear(source, f"{name}.up_proj", width, hidden)
        self.down_proj = Linear(source, f"{name}.down_proj", hidden, width)

    @property
    def fp8(self) -> bool:
        """Whether it wants its rows quantised."""
        return self.gate_proj.fp8 or self.up_proj.fp8

    def forward(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor:
        """x [T,H] -> [T,H] in the model's dtype."""
        if isinstance(rows, PromptRows):
            gate_up = torch.cat([self.gate_proj(x, rows), self.up_proj(x, rows)], -1)
        else:
            width, like = len(self.gate_proj.weight), x.x if isinstance(x, Quantised) else x
            gate_up = like.new_empty((len(like), 2 * width))  # [T,2I]
            self.gate_proj.into(gate_up[:, :width], x, rows.count)
            self.up_proj.into(gate_up[:, width:], x, rows.count)
        operators = ops_for(gate_up.dtype)
        if not self.down_proj.fp8:
            return self.down_proj(operators.silu_and_mul(gate_up), rows)
        return self.down_proj(Quantised(None, operators.silu_and_mul_quant_fp8(gate_up)), rows)


class MoE(DerivingBlock):
    """Router over FFN + zero experts in fp32, then the expert chain (LongCat-Flash technical report, section 2.1 and
    eq. 8).
    """

    origin, derived = "router", ("router_split",)

    def __init__(self, source: Source, name: str, config: LongcatFlashConfig) -> None:
        super().__init__()
        c, wide = config, acc_dtype(source.dtype)
        router = f"{name}.router"
        self.config = config
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

    def forward(self, x: Tensor, rows: Rows | PromptRows) -> Tensor:
        """x [T,H] -> [T,H] in x's dtype; appends num_real u8[T] to `rows.num_real`."""
        c = self.config
        routes, (split,) = ops_for(self.router.dtype), self.kept()
        routing = routes.moe_route(
            routes.router_gemm(x, self.router, split=split), self.bias, top_k=c.moe_topk, num_experts=c.num_experts,
            num_zero_experts=c.zero_expert_num, scale=c.routed_scaling_factor, num_valid=rows.count, errors=rows.errors,
        )  # fmt: skip
        rows.num_real.append(routing.num_real)
        chain = ops_for(x.dtype, x.device)
        plan = chain.moe_plan(routing.ids, len(self.down), routing.weights)  # without one, ids are read on the host
        rows_each = len(x) * c.moe_topk / c.num_experts
        if isinstance(rows, PromptRows) and prompt_experts.pay(x, self.gate_up, self.down, rows_each):
            return prompt_experts.fused_moe(x, routing, self.gate_up, self.down, plan)
        gate_up = self.gate_up if self.gate_up_scale is None else (self.gate_up, self.gate_up_scale)
        down = self.down if self.down_scale is None else (self.down, self.down_scale)
        return chain.fused_moe(x, routing, gate_up, down, plan=plan)


class ScMoELayer(Block):
    """Two attentions, two dense FFNs, and a MoE on a shortcut from the first post-attention norm to the output
    (LongCat-Flash technical report, section 2).
    """

    def __init__(self, source: Source, name: str, config: LongcatFlashConfig, layer: int) -> None:
        super().__init__()
        c, hidden = config, config.hidden_size

        def norm(kind: str, i: int) -> RMSNorm:
            return RMSNorm(source, f"{name}.{kind}.{i}", hidden, c.rms_norm_eps)

        self.input_layernorm = nn.ModuleList(norm("input_layernorm", i) for i in (0, 1))
        self.post_attention_layernorm = nn.ModuleList(norm("post_attention_layernorm", i) for i in (0, 1))
        self.self_attn = nn.ModuleList(MLA(source, f"{name}.self_attn.{i}", c, 2 * layer + i) for i in (0, 1))
        self.mlps = nn.ModuleList(FFN(source, f"{name}.mlps.{i}", hidden, c.ffn_hidden_size) for i in (0, 1))
        self.mlp = MoE(source, f"{name}.mlp", c)

    def forward(self, x: Tensor, rows: Rows | PromptRows) -> Tensor:
        """x [T,H] -> [T,H] in x's dtype: both attentions write their cache rows, the MoE appends to `rows.num_real`."""
        attention, ffn = self.self_attn, self.mlps
        n, _ = self.input_layernorm[0].before(attention[0].fp8, x)
        p, h = self.post_attention_layernorm[0].before(ffn[0].fp8, attention[0](n, rows), x)
        shortcut = self.mlp(_dense(p), rows)  # needed only at the end: everything below can run beside it
        n, h = self.input_layernorm[1].before(attention[1].fp8, ffn[0](p, rows), h)
        p, h = self.post_attention_layernorm[1].before(ffn[1].fp8, attention[1](n, rows), h)
        add = ops_for(x.dtype).add_rows
        return add(add(h, ffn[1](p, rows)), shortcut)
