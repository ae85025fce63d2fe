"""A stand-in for deep_ep 2.1.0 on the host: the signatures and the refusals of its ElasticBuffer, its values over the
process group. Rows of an expert come in another order than they were sent in, as they may on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__version__ = "2.1.0"
topk_idx_t = torch.int64
PADDING = 448.0  # of rows that align an expert's: nobody may use them
calls: list[tuple[str, dict[str, Any]]] = []  # of this process: (name, arguments that are not the default)


@dataclass
class EPHandle:
    """What the real one says of a dispatch, and `sources`, which is the stand-in's: of each row rank, token, choice."""

    do_expand: bool
    num_experts: int
    expert_alignment: int
    num_max_tokens_per_rank: int
    topk_idx: Tensor
    num_expanded_tokens: int
    psum_num_recv_tokens_per_expert: Tensor
    num_unaligned_recv_tokens_per_expert: Tensor
    sources: list[tuple[int, int, int]]


class ElasticBuffer:
    def __init__(
        self, group: Any, num_bytes: int | None = None, num_cpu_bytes: int = 0, num_max_tokens_per_rank: int = 0,
        hidden: int = 0, num_topk: int = 0, use_fp8_dispatch: bool = False, deterministic: bool = False,
        allow_hybrid_mode: bool = True, allow_multiple_reduction: bool = True, prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3, num_allocated_qps: int = 0, num_cpu_timeout_secs: int = 300, num_gpu_timeout_secs: int = 100,
        explicitly_destroy: bool = False,
    ) -> None:  # fmt: skip
        assert isinstance(group, dist.ProcessGroup)
        assert num_max_tokens_per_rank > 0 and hidden > 0 and 0 < num_topk <= 32
        for seconds in (num_cpu_timeout_secs, num_gpu_timeout_secs):
            assert isinstance(seconds, int) and 0 < seconds < 2**31
        self.group, self.rank, self.ranks, self.hidden = group, group.rank(), group.size(), hidden
        self.num_max_tokens_per_rank, self.fp8 = num_max_tokens_per_rank, use_fp8_dispatch
        self.allow_multiple_reduction, self.explicitly_destroy = allow_multiple_reduction, explicitly_destroy
        self.num_topk, self.num_bytes, self.destroyed = num_topk, 2 << 20, False
        calls.append(("ElasticBuffer", {"allow_multiple_reduction": allow_multiple_reduction}))
        dist.barrier(group)

    def destroy(self) -> None:
        assert self.explicitly_destroy and not self.destroyed
        self.destroyed = True
        calls.append(("destroy", {}))
        dist.barrier(self.group)

    def dispatch(
        self, x: Any, topk_idx: Any = None, topk_weights: Any = None, cumulative_local_expert_recv_stats: Any = None,
        num_experts: int | None = None, num_max_tokens_per_rank: int | None = None, expert_alignment: int | None = None,
        num_sms: int = 0, num_qps: int = 0, previous_event: Any = None, previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False, allocate_on_comm_stream: bool = False, handle: Any = None,
        do_handle_copy: bool = True, do_cpu_sync: bool | None = None, do_expand: bool = False,
        do_zero_padding: bool = False, use_tma_aligned_col_major_sf: bool = False,
    ) -> tuple[Any, Any, Any, EPHandle, Any]:  # fmt: skip
        assert not self.destroyed and handle is None and do_expand and do_cpu_sync in (None, True)
        assert not use_tma_aligned_col_major_sf and topk_weights is not None
        assert num_experts is not None and num_experts % self.ranks == 0
        values, sf = x if isinstance(x, tuple) else (x, None)
        assert (sf is not None) == self.fp8 == (values.dtype == torch.float8_e4m3fn)
        assert values.is_contiguous() and values.dim() == 2 and values.shape[1] == self.hidden
        assert values.shape[1] * values.element_size() % 16 == 0
        tokens, most = len(values), num_max_tokens_per_rank or self.num_max_tokens_per_rank
        assert 0 < tokens <= most
        assert topk_idx.dtype == topk_idx_t and topk_idx.is_contiguous()
        assert list(topk_idx.shape) == [tokens, self.num_topk] == list(topk_weights.shape)
        assert topk_weights.dtype == torch.float32 and topk_weights.is_contiguous()
        assert ((topk_idx >= -1) & (topk_idx < num_experts)).all()
        for row in topk_idx.tolist():
            named = [expert for expert in row if expert >= 0]
            assert len(set(named)) == len(named), "a token names an expert twice: the real one traps"
        if sf is not None:
            assert sf.element_size() == 4 and list(sf.shape) == [tokens, -(-self.hidden // 128)]
        align, local = expert_alignment or 1, num_experts // self.ranks
        raw = values.view(torch.uint8) if sf is not None else values  # gloo knows no float8
        everyone = self._gather((raw, sf, topk_idx, topk_weights))
        rows: list[Tensor] = []
        scales: list[Tensor] = []
        weights: list[float] = []
        sources: list[tuple[int, int, int]] = []
        ends: list[int] = []
        counts: list[int] = []
        for expert in range(self.rank * local, (self.rank + 1) * local):
            found = [
                (r, t, k) for r, (_, _, ids, _) in enumerate(everyone) for t, k in (ids == expert).nonzero().tolist()
            ]
            for r, t, k in reversed(found):
                their, their_sf, _, their_weights = everyone[r]
                rows.append(their[t])
                scales += [] if their_sf is None else [their_sf[t]]
                weights.append(float(their_weights[t, k]))
                sources.append((r, t, k))
            counts.append(len(found))
            ends.append(len(rows))
            for _ in range(-len(rows) % align):
                rows.append(torch.full_like(raw[0], 0x7F if sf is not None else PADDING))
                scales += [] if sf is None else [torch.full_like(sf[0], PADDING)]
                weights.append(PADDING)
                sources.append((-1, -1, -1))
        out: Any = torch.stack(rows) if rows else raw[:0].clone()
        if sf is not None:
            out = out.view(torch.float8_e4m3fn), torch.stack(scales) if scales else sf[:0].clone()
        kept = topk_idx.clone() if do_handle_copy else topk_idx
        whole, exact = (torch.tensor(n, dtype=torch.int32) for n in (ends, counts))
        made = EPHandle(do_expand, num_experts, align, most, kept, len(rows), whole, exact, sources)
        calls.append(("dispatch", {"topk_idx": kept, "expert_alignment": expert_alignment}))
        return out, None, torch.tensor(weights, dtype=torch.float32), made, SimpleNamespace(event=None)

    def combine(
        self, x: Tensor, handle: EPHandle, topk_weights: Any = None, bias: Any = None, num_sms: int = 0,
        num_qps: int = 0, previous_event: Any = None, previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        assert not self.destroyed and isinstance(handle, EPHandle) and handle.do_expand
        assert topk_weights is None or self.allow_multiple_reduction, "the real one asserts this on the device"
        assert x.dtype == torch.bfloat16 and x.is_contiguous() and x.shape[1] == self.hidden
        assert self.hidden % 256 == 0 and len(x) >= len(handle.sources)
        tokens, choices = handle.topk_idx.shape
        biases = [] if bias is None else [bias] if isinstance(bias, Tensor) else list(bias)
        assert len(biases) <= 2 and (not isinstance(bias, tuple) or len(bias) == 2)
        for one in biases:
            assert one.dtype == torch.bfloat16 and one.is_contiguous() and list(one.shape) == [tokens, self.hidden]
        everyone = self._gather((x[: len(handle.sources)], handle.sources))
        total = torch.zeros(tokens, self.hidden)
        for one in biases:
            total += one.float()
        back = {(t, k): rows[i] for rows, sources in everyone for i, (r, t, k) in enumerate(sources) if r == self.rank}
        if self.allow_multiple_reduction:
            per_rank, local = {}, handle.num_experts // self.ranks
            for (t, k), row in sorted(back.items()):
                place = (t, int(handle.topk_idx[t, k]) // local)
                per_rank[place] = per_rank.get(place, 0) + row.float()
            back = {place: row.bfloat16() for place, row in per_rank.items()}
        bypass = not biases
        for t in range(tokens):
            found = [back[place] for place in sorted(back) if place[0] == t]
            if bypass and len(found) == 2:
                total[t] = (found[0] + found[1]).float()  # in bf16
            else:
                for row in found:
                    total[t] += row.float()
        assert choices == self.num_topk
        calls.append(("combine", {"biases": len(biases), "topk_weights": topk_weights}))
        return total.bfloat16(), None, SimpleNamespace(event=None)

    def _gather(self, mine: Any) -> list[Any]:
        found = [None] * self.ranks
        dist.all_gather_object(found, mine, group=self.group)
        return found
