"""The blocks that layers and the MTP head share: linear, RMSNorm, MLA (plain and absorbed), dense FFN.

Weights come from a `source` (see model/source.py), asked by published tensor name while a block is built.
Accumulation happens in `acc_dtype(x)`: fp32, or fp64 in an fp64 model. In a decode pass a row's bits depend on nothing
but the row and its past; a chunk of a prompt, whose rows are fixed by their positions, may take torch's products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.sums import acc_dtype
from ..types import BLOCK
from . import products
from .block import Block
from .config import LongcatFlashConfig
from .derived import DerivingBlock
from .products import Quantised, ops_for
from .rotary import rotate
from .rows import PromptRows, Rows
from .shares import WHOLE, Part, Shares
from .source import Source
from .tensor_parallel import Company, Partial, TensorGroup


class Linear(Block):
    """y = x @ W.T, W dense [N,K] or an FP8 pair (x is then quantised 1x128 on the way in).

    part: the rows and columns of W that this rank holds. Columns make y terms, in fp32, of a sum over ranks. name: the
    published one of the module.
    """

    def __init__(self, source: Source, name: str, rows: int, cols: int, part: Part = WHOLE) -> None:
        super().__init__()
        self.name = name
        weight = source.linear(f"{name}.weight", rows, cols, part=part)
        self.fp8 = isinstance(weight, tuple)
        self.terms = part.cols is not None
        # An FP8 weight begins with a block: these outputs are of another rank, these inputs are zeros.
        self.above, self.before = (s.start % BLOCK * self.fp8 for s in part.of(rows, cols))
        self.dtype = source.dtype
        data, scale = weight if isinstance(weight, tuple) else (weight, None)
        self.register_buffer("weight", data)
        self.register_buffer("scale", scale)

    def product_sizes(self) -> list[tuple[int, int]]:
        """[N,K] of the dense products of a decode pass."""
        return [] if self.fp8 else [tuple(self.weight.shape)]

    def forward(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor:
        """x [T,K] -> [T,N] in the model's dtype, or fp32 terms."""
        if not self.fp8 and rows.count is None and not self.terms:
            return products.prompt_linear(dense_of(x), self.weight)
        if self.before:
            x = F.pad(dense_of(x), (self.before, 0))
        tokens, dtype = (len(x.pair[0]), self.dtype) if isinstance(x, Quantised) else (len(x), x.dtype)
        out = self.weight.new_empty((tokens, len(self.weight)), dtype=torch.float32 if self.terms else dtype)
        return self.into(out, x, rows.count)[:, self.above :]

    def into(self, out: Tensor, x: Tensor | Quantised, count: Tensor | None) -> Tensor:
        """x [T,K] -> out [T,N], rows any distance apart, by a product in which a row has bits of its own; its first
        `count` i32[1] rows, or all.
        """
        if not self.fp8:
            return products.linear(dense_of(x), self.weight, out, count)
        return products.fp8_linear(x, (self.weight, self.scale), out, count)


def embed(tp: Shares, table: Tensor, ids: Tensor, size: int, rows: Rows | PromptRows) -> Tensor:
    """The rows of a table of `size` rows for ids i64[T], of which `table` is this rank's part."""
    ids = ids.to(table.device).contiguous()
    if isinstance(tp, TensorGroup):
        return tp.embed(table, ids, size, rows)
    return ops_for(table.dtype).embed_rows(table, ids)


def dense_of(x: Tensor | Quantised) -> Tensor:
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
        if weight.is_meta:  # as in `renew`: torch would load its compiler to multiply
            return (None if self.gain == 1 else weight.new_empty(weight.shape),)
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
        c, hidden, self.tp = config, config.hidden_size, source.tp
        heads = self.tp.heads(c.num_attention_heads)
        self.slot, self.heads, self.latent = slot, heads.stop - heads.start, c.kv_lora_rank

        def of_heads(width: int) -> slice | None:
            """Those of a dimension with so many for each head."""
            return slice(heads.start * width, heads.stop * width) if self.tp.same_tokens else None

        self.nope, self.rope, self.value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        self.softmax_scale = c.qk_head_dim**-0.5
        self.q_a_proj = Linear(source, f"{name}.q_a_proj", c.q_lora_rank, hidden)
        self.q_a_layernorm = RMSNorm(source, f"{name}.q_a_layernorm", c.q_lora_rank, c.lora_norm_eps, c.q_lora_scale)
        rows, per_head = c.num_attention_heads * c.qk_head_dim, of_heads(c.qk_head_dim)
        self.q_b_proj = Linear(source, f"{name}.q_b_proj", rows, c.q_lora_rank, Part(rows=per_head))
        self.kv_a_proj = Linear(source, f"{name}.kv_a_proj_with_mqa", c.latent_width, hidden)
        self.kv_a_layernorm = RMSNorm(source, f"{name}.kv_a_layernorm", self.latent, c.lora_norm_eps, c.kv_lora_scale)
        cols, both = c.num_attention_heads * self.value, self.nope + self.value
        self.o_proj = Linear(source, f"{name}.o_proj", hidden, cols, Part(cols=of_heads(self.value)))
        # kv_b is always dense: its halves are also needed apart, per head, to absorb them into query and output.
        kv_b = source.linear(f"{name}.kv_b_proj.weight", c.num_attention_heads * both, self.latent, dense=True,
                             part=Part(rows=of_heads(both)))  # fmt: skip
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

    def forward(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor | Partial:
        """x [T,H] -> [T,H]; stores the latent rows of the tokens, then attends over each past and itself."""
        return self.attend(self.project(x, rows), rows)

    def project(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor:
        """x [T,H] -> queries [T,h,nope+rope]; stores the latent rows of the tokens."""
        q, _ = self.q_a_layernorm.before(self.q_b_proj.fp8, self.q_a_proj(x, rows))
        q = self.q_b_proj(q, rows).unflatten(1, (self.heads, -1))
        norm, latents = self.kv_a_layernorm, rows.cache.rows[self.slot]
        where = rows.cache.page_table, rows.sequence, rows.position
        ops_for(q.dtype).mla_write(self.kv_a_proj(x, rows), norm.gained, norm.eps, rows.rope, *where, latents)
        return q

    def attend(self, q: Tensor, rows: Rows | PromptRows) -> Tensor | Partial:
        """Queries [T,h,nope+rope] -> [T,H], over each past and the row itself, which `project` has stored."""
        attend = self.attend_plain if isinstance(rows, PromptRows) else self.attend_absorbed
        y = self.o_proj(attend(q, rows), rows)
        return Partial(y, self.tp, q.dtype) if self.tp.same_tokens else y

    def attend_plain(self, q: Tensor, rows: PromptRows) -> Tensor:
        """Prefill of one sequence: keys and values are expanded from the latent rows, all queries q [T,h,nope+rope] at
        once.
        """
        start, end = rows.start, rows.end
        past = rows.cache.read(self.slot, rows.owner, end)[:end]  # [L, latent+rope]
        kv = products.prompt_linear(past[:, : self.latent], self.kv_b_proj).view(end, self.heads, -1).transpose(0, 1)
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
        self.tp = source.tp
        mine = self.tp.width(width) if self.tp.ranks > 1 else None
        self.gate_proj = Linear(source, f"{name}.gate_proj", width, hidden, Part(rows=mine))
        self.up_proj = Linear(source, f"{name}.up_proj", width, hidden, Part(rows=mine))
        self.down_proj = Linear(source, f"{name}.down_proj", hidden, width, Part(cols=mine))

    @property
    def fp8(self) -> bool:
        """Whether it wants its rows quantised."""
        return self.gate_proj.fp8 or self.up_proj.fp8

    @property
    def dense(self) -> bool:
        """Whether it wants its rows as they are, too."""
        return not (self.gate_proj.fp8 and self.up_proj.fp8)

    def forward(self, x: Tensor | Quantised, rows: Rows | PromptRows) -> Tensor | Partial:
        """x [T,H] -> [T,H] in the model's dtype."""
        return self.products(x, rows) if self.tp.ranks == 1 else self.tp.ffn(self.products, x, rows, self.dense)

    def products(self, x: Tensor | Quantised, rows: Rows | PromptRows | Company) -> Tensor:
        """x [T,H] -> [T,H], of the part of the width that is here."""
        if isinstance(rows, PromptRows):
            gate_up = torch.cat([self.gate_proj(x, rows), self.up_proj(x, rows)], -1)
        else:
            width, like = len(self.gate_proj.weight), x.pair[0] if isinstance(x, Quantised) else x
            gate_up = like.new_empty((len(like), 2 * width), dtype=self.gate_proj.dtype)  # [T,2I]
            self.gate_proj.into(gate_up[:, :width], x, rows.count)
            self.up_proj.into(gate_up[:, width:], x, rows.count)
        operators = ops_for(gate_up.dtype)
        if not self.down_proj.fp8:
            return self.down_proj(operators.silu_and_mul(gate_up), rows)
        return self.down_proj(Quantised(None, operators.silu_and_mul_quant_fp8(gate_up)), rows)
