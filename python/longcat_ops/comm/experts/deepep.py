"""The backend `deepep`: DeepEP's ElasticBuffer, over several machines. IT HAS NEVER RUN: neither DeepEP nor a GPU was
there. Its calls were read from DeepEP 2.1.0, commit dd758ca of deepseek-ai/DeepEP (deep_ep/buffers/elastic.py,
csrc/elastic/buffer.hpp), and a stand-in with those signatures tests them.

What that API makes different from the other backends:

- The output has not the bits of one rank: DeepEP sums and does not weigh, so the experts' rank rounds each weighted row
  to bf16, and this rank the zero experts' term. The sum itself is one, in float32, in the order bias, add, choices, and
  rounded once (`allow_multiple_reduction=False` with expanded rows), so ranks and machines do not change it. The price:
  each choice's row comes back on its own.
- The rows of an expert come in the order in which they arrive. DeepEP's `deterministic` would sort copies of them.
- `combine_send` only weighs. The bias is an argument of DeepEP's combine, so all travels in the second half.
- The host reads the counts of a dispatch (`do_cpu_sync`): else DeepEP makes rows for the worst case, and the weighing
  would pass over all of them. q is DeepEP's tensor, of as many rows as came; nothing is copied. Neither a CUDA graph
  nor a graph of torch.compile can hold the calls.
- A token that names an expert twice trips an assertion of DeepEP on the device, which ends the CUDA context. So does a
  rank that does not come to a combine, after the longer of GPU_LEAST_S and twice the deadline. A dispatch waits on the
  host, too, and names who is missing at the deadline.
- `close` is a collective: DeepEP's destroy() is. A rank that knows of a failure leaves it out, and its memory stays.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._library import parse_version
from ...errors import LongcatCommError, LongcatUnsupportedError
from ...ops.quant import per_token_group_quant_fp8
from ...types import BLOCK, Plan
from ..rungs.base import Session
from .base import COUNTERS, Buffer, ExpertCaps, ExpertConfig, ReducingWay
from .rows import row_bytes

MODULE, MAJOR = "deep_ep", 2
FLOOR = (2, 10)  # of torch
DEVICES = ("cuda",)
WIDTH = 256  # hidden of its combine: 32 lanes of 16 bytes
GPU_LEAST_S = 100  # its own default. A wait on the device that ends so ends the CUDA context
FOREVER_S = 10**6


def objection(device: torch.device) -> str:
    """Imports nothing: the import of DeepEP starts its compiler and looks for NCCL. `build` does that."""
    if device.type not in DEVICES:
        return "CUDA tensors only: this process group has no GPU"
    if parse_version(torch.__version__) < FLOOR:
        return f"torch is {torch.__version__}, and DeepEP needs {FLOOR[0]}.{FLOOR[1]} or newer"
    if MODULE in sys.modules:
        return _problem(sys.modules[MODULE])
    try:
        spec = importlib.util.find_spec(MODULE)
    except (ImportError, ValueError) as error:
        return f"{MODULE} cannot be found: {error}"
    if spec is None:
        return f"the package {MODULE} is not installed"
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((place / "buffers" / "elastic.py").is_file() for place in places):
        return f"{MODULE} in {', '.join(map(str, places))} has no ElasticBuffer: {MAJOR}.x is needed"
    return ""


def _problem(module: Any) -> str:
    """Why an imported module is not the right one."""
    version = str(getattr(module, "__version__", "without a version"))
    if version.split(".")[0] != str(MAJOR):
        return f"{MODULE} is {version}, and {MAJOR}.x is needed"
    lacking = [name for name in ("ElasticBuffer", "topk_idx_t") if not hasattr(module, name)]
    return f"{MODULE} {version} has no {lacking[0]}" if lacking else ""


def build(session: Session) -> ElasticExperts:
    """Collective."""
    hidden = session.config.hidden
    if hidden % WIDTH:
        raise LongcatUnsupportedError(f"hidden is {hidden}, and DeepEP needs a multiple of {WIDTH}")
    try:
        module = importlib.import_module(MODULE)
    except Exception as error:  # its import asserts about NCCL, nvcc and the GPU
        raise LongcatUnsupportedError(f"import {MODULE}: {type(error).__name__}: {error}") from error
    if problem := _problem(module):
        raise LongcatUnsupportedError(problem)
    return ElasticExperts(session, module)


class ElasticExperts(ReducingWay):
    """module: deep_ep."""

    no_graph = "the backend deepep reads the counts of rows on the host"

    def __init__(self, session: Session, module: Any) -> None:
        c, ranks, device = session.config, session.ranks, session.device
        assert isinstance(c, ExpertConfig)
        self.config, self.ranks, self.rank, self.device = c, ranks, session.rank, device
        self.watch, self.local = session.watch.channels[0], c.num_ffn_experts // ranks
        self._ids, fp8 = module.topk_idx_t, c.payload == "fp8"
        limit = math.ceil(c.timeout_s) or FOREVER_S
        self._engine: Any = module.ElasticBuffer(
            session.group, num_max_tokens_per_rank=c.max_tokens, hidden=c.hidden, num_topk=c.top_k,
            use_fp8_dispatch=fp8, allow_multiple_reduction=False, num_cpu_timeout_secs=limit,
            num_gpu_timeout_secs=max(GPU_LEAST_S, 2 * limit), explicitly_destroy=True,
        )  # fmt: skip
        rows = ranks * c.max_tokens * min(c.top_k, self.local)
        self.caps = ExpertCaps("deepep", self.local, rows, False, 1, c.buffers, self._engine.num_bytes, False)
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
        q = torch.empty(0, c.hidden, dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16, device=device)
        s = torch.empty(0, -(-c.hidden // BLOCK), dtype=torch.float32, device=device) if fp8 else None
        offsets = torch.zeros(self.local + 1, dtype=torch.int32, device=device)
        self.buffers = [Buffer(q, s, offsets, q.new_empty(0, c.hidden)) for _ in range(c.buffers)]
        self._came: list[Any] = [None] * c.buffers  # what combine needs: handle, weights of the rows, tokens
        self._weighed: list[Any] = [None] * c.buffers

    def dispatch_weighted(self, buffer: int, x: Tensor, ids: Tensor, weights: Tensor, plan: Plan) -> None:
        c, tokens = self.config, len(x)
        sent = plan.row_of >= 0
        chosen = ids.masked_fill(~sent, -1)
        if not tokens:  # one that chooses nothing, since DeepEP nowhere says that none is legal
            x, chosen, weights = x.new_zeros(1, c.hidden), ids.new_full((1, c.top_k), -1), weights.new_zeros(1, c.top_k)
        rows, _, row_weights, handle, _ = self._call(lambda: self._engine.dispatch(
            per_token_group_quant_fp8(x) if c.payload == "fp8" else x, topk_idx=chosen.to(self._ids).contiguous(),
            topk_weights=weights.float().contiguous(), num_experts=c.num_ffn_experts,
            num_max_tokens_per_rank=c.max_tokens, expert_alignment=1, do_cpu_sync=True, do_expand=True,
        ))  # fmt: skip
        q, s = rows if isinstance(rows, tuple) else (rows, None)
        # Of expanded rows psum is where each expert ends, if nothing is padded: alignment 1.
        offsets = torch.nn.functional.pad(handle.psum_num_recv_tokens_per_expert, (1, 0))
        self.buffers[buffer] = Buffer(q, s, offsets, self.buffers[buffer].returned)
        self._came[buffer] = handle, row_weights, tokens
        self._count(ids, sent, plan, len(q))

    def dispatch_recv(self, buffer: int, q: Tensor, s: Tensor | None, offsets: Tensor) -> None:
        for given, own in zip((q, s, offsets), self.buffers[buffer], strict=False):
            if given is not None and given.data_ptr() != own.data_ptr():  # it came through another dispatch's graph
                raise LongcatUnsupportedError("dispatch_recv: no graph of torch.compile holds the backend deepep")

    def combine_send(self, buffer: int, y: Tensor) -> None:
        weights = self._came[buffer][1]
        self._weighed[buffer] = torch.mul(y, weights[:, None], out=torch.empty_like(y))  # in float32, rounded once

    def combine_reduced(self, buffer: int, bias: Tensor, add: Tensor | None, out: Tensor) -> None:
        handle, _, tokens = self._came[buffer]
        if not tokens:
            bias, add = bias.new_zeros(1, self.config.hidden), None
        # With a bias, even of zeros, DeepEP never sums in bf16.
        result, _, _ = self._call(lambda: self._engine.combine(
            self._weighed[buffer], handle, bias=bias if add is None else (bias, add)
        ))  # fmt: skip
        out.copy_(result[:tokens])
        self._came[buffer] = self._weighed[buffer] = None

    def _call(self, act: Callable[[], Any]) -> Any:
        """What DeepEP returns; its error with what the other ranks do."""
        start = time.monotonic()
        try:
            return act()
        except Exception as error:
            cause = self.watch.find_cause(time.monotonic() - start, error)
            text = f"{self.watch.op}: DeepEP on rank {self.rank}: {type(error).__name__}: {error}"
            raise self.watch.watch.poison(cause or LongcatCommError(text)) from error

    def _count(self, ids: Tensor, sent: Tensor, plan: Plan, came: int) -> None:
        """Reads nothing. DeepEP sends a token once to each rank, and back a row for each choice; what it says beside
        (ids, weights, counts) and forwards between machines is not counted."""
        first = self.rank * self.local
        rows, own = plan.offsets[-1], plan.offsets[first + self.local] - plan.offsets[first]
        to = torch.where(sent, ids // self.local, self.ranks).long()
        reached = torch.zeros(len(ids), self.ranks + 1, dtype=torch.bool, device=ids.device).scatter_(1, to, True)
        reached[:, [self.rank, self.ranks]] = False
        moved = reached.sum() * row_bytes(self.config.hidden, self.config.payload)
        moved += (came - own) * 2 * self.config.hidden
        self.counters += torch.stack([rows, rows - own, ids.numel() - rows, moved])

    def refused(self, rank_local: bool) -> None:
        """The others may wait in DeepEP for this rank, which nothing ends before their deadline: no more calls."""
        if rank_local:
            text = f"{self.watch.op}: rank {self.rank} refused a call that other ranks may have begun"
            self.watch.watch.poison(LongcatCommError(f"{text}; DeepEP's buffer is out of step."))

    def poll(self) -> None:
        """Nothing of DeepEP can be asked."""

    def abort(self) -> None:
        """DeepEP's kernels wait until their own deadline."""

    def close(self) -> None:
        """Collective, except after a failure."""
        engine, self._engine = self._engine, None
        if engine is not None and self.watch.watch.failure is None:
            engine.destroy()
