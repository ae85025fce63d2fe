"""Expert parallelism: each rank holds a part of the FFN experts, and tokens travel to those they chose."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.compiler import is_compiling

from .. import _environment, _library
from ..errors import LongcatError, LongcatShapeError, message
from ..ops import bf16_gemm, gemm, moe
from ..ops.expert_chain import most_rows
from ..reference.experts import products
from ..types import Fp8Pair, Plan, Routing
from . import expert_calls
from .experts import layer
from .experts.base import COUNTERS, Dispatch, ExpertCaps, ExpertConfig
from .experts.group_ranks import GroupRanks
from .experts.in_flight import ARRIVED, FREE, RETURNING, SENT, InFlight
from .experts.ladder import BACKENDS, LADDER
from .experts.local import LocalRanks
from .member import Closing, members, open_session
from .runner import captured, is_capturing


class ExpertParallel(Closing):
    """Dispatch and combine of a MoE layer whose N FFN experts are spread over the ranks of a group: expert g is on rank
    g // (N / ranks).

    A choice of id -1 or of weight 0, which a zero expert leaves, never travels: `combine` adds zero experts from the
    local x. The output has the bits of `fused_moe` on one rank, whatever the number of ranks, the backend and the
    company of a row. Calls have one order on every rank, on one CUDA stream or on streams that wait for each other.

    The constructor is a collective of all ranks of `group`, with the same arguments on each.

    Args:
        group: a ProcessGroup of torch.distributed that this rank is in; None: the default group, or this process alone
            where there is none.
        num_ffn_experts: N, those that ids name; with a `Placement` the number of its slots. A multiple of the ranks.
        top_k: choices of a token, 1 .. 32. hidden: H, a multiple of 16.
        max_tokens: of one rank in one dispatch. Memory grows with it; `fused_moe` passes more tokens in chunks.
        payload: what travels to experts: "fp8", quantised once as `moe_permute_quant` does, or "bf16".
        backend: "local": one rank. "nvl": kernels of this library between GPUs behind NVLink. "torch": all-to-all of
            torch.distributed. "deepep": DeepEP's ElasticBuffer, never taken unless named; its output has not the bits
            of one rank, and rows of an expert come in any order (`caps.one_rank_bits`). "auto": the first of the first
            three that all ranks can use; `why_not` says why none above it.
        buffers: dispatches that may wait for their combine, 1 .. 4.
        timeout_s: how long a call waits for other ranks. None: LONGCAT_OPS_TIMEOUT_S, else 30. 0: for ever.

    Raises:
        LongcatShapeError: an argument is not legal, or not the same on every rank.
        LongcatUnsupportedError: a backend that a rank cannot use.
        LongcatTimeoutError: a rank did not come.

    A call that this rank got wrong raises here before anything is sent; the others raise LongcatCommError with its rank
    and its text. A rank that does not come, or whose process ends, is named by LongcatTimeoutError on every other, with
    the stage. After either this is poisoned; a new one, over a group of the ranks that are left, then works.
    """

    def __init__(
        self, group: Any = None, *, num_ffn_experts: int, top_k: int, hidden: int, max_tokens: int = 512,
        payload: str = "fp8", backend: str = "auto", buffers: int = 2, timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        if is_capturing():
            raise captured("ExpertParallel", "it talks to other ranks")
        alone = group is None and not (dist.is_available() and dist.is_initialized())
        ranks = 1 if alone else members("ExpertParallel", group)[2]
        problem: LongcatError | None = None
        config = ExpertConfig(1, "auto", 1, 1, True, 30.0, "auto")
        try:
            _library.load()
            limit = _environment.timeout_s() if timeout_s is None else timeout_s
            given = ExpertConfig(1, backend, 1, 1, True, limit, "auto", num_ffn_experts, top_k, hidden, max_tokens,
                                 payload, buffers)  # fmt: skip
            expert_calls.constructor(given, BACKENDS, ranks)
            config = given
        except LongcatError as error:
            problem = error
        if ranks == 1 and problem is not None:
            raise problem
        self._ranks: LocalRanks | GroupRanks
        if ranks == 1 and backend in ("auto", "local"):
            self._ranks = LocalRanks(config)
        else:
            with torch.inference_mode(False):  # else its memory could be written in that mode alone
                session, way, _, why_not = open_session(LADDER, group, config, problem)
                self._ranks = GroupRanks(session, way, why_not)
        self._in_flight = InFlight(buffers)

    rank = property(lambda self: self._ranks.rank)
    ranks = property(lambda self: self._ranks.ranks)
    num_ffn_experts = property(lambda self: self._ranks.config.num_ffn_experts)

    @property
    def caps(self) -> ExpertCaps:
        return self._ranks.caps

    @property
    def backend(self) -> str:
        return self._ranks.caps.backend

    @property
    def why_not(self) -> dict[str, str]:
        """Why each other backend is not used."""
        return self._ranks.why_not

    @property
    def counters(self) -> Tensor:
        """i64 [4] on the device, since the construction: rows of this rank's dispatches; those of them that left the
        rank; choices that cost none, of zero experts above all; bytes sent to other ranks, there and back. `local`
        sends nothing and counts nothing."""
        return self._ranks.counters

    def counts(self) -> dict[str, int]:
        """`counters` by name. Reads the device."""
        return dict(zip(COUNTERS, self.counters.tolist(), strict=True))

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor | None, Tensor, Dispatch]:
        """The rows that all ranks have for this rank's experts.

        Args:
            x: bf16 [T, H], contiguous; T may be 0, and another on each rank.
            routing: of x, from `moe_route`; its ids may be slots from `moe_place`.

        Returns:
            q [R, H] e4m3 and s f32 [R, ceil(H / 128)], or bf16 and None; offsets i32 [local experts + 1]; handle. The
                rows of expert e are offsets[e] .. offsets[e + 1] - 1, by rank, then in the order of each rank's plan;
                rows behind the last are not set. The memory is the buffer's: it is valid until `combine` is called.

        Raises:
            LongcatShapeError: an argument is not as above. LongcatCommError: all buffers wait for their combine.
        """
        return self.dispatch_recv(self.dispatch_send(x, routing))

    def dispatch_send(self, x: Tensor, routing: Routing) -> Dispatch:
        """The first half of `dispatch`: sends."""
        buffer, ranks = self._in_flight.free(), self._ranks
        if buffer is None:
            ranks.refuse("dispatch", self._in_flight.full("dispatch"))
        try:
            plan = self._planned(x, routing)
        except LongcatError as error:
            ranks.refuse("dispatch", error)
        ranks.dispatch_send(buffer, x, routing, plan)
        handle = Dispatch(plan, buffer, ranks.rows(buffer, len(x)), self._hint(len(x)))
        self._in_flight.sent(handle)
        return handle

    def _hint(self, tokens: int) -> int:
        """Rows that the largest local expert is expected to have, if each rank has `tokens` tokens. A rank without any
        knows nothing of the others; a graph of torch.compile guards on the hint, and shall serve every number."""
        c = self._ranks.config
        if is_compiling() and not torch.fx.experimental.symbolic_shapes.has_static_value(tokens):
            tokens = c.max_tokens
        return most_rows(self.ranks * (tokens if tokens else c.max_tokens), c.top_k, c.num_ffn_experts)

    def dispatch_recv(self, handle: Dispatch) -> tuple[Tensor, Tensor | None, Tensor, Dispatch]:
        """The second half of `dispatch`: waits for the rows of all ranks."""
        self._expect("dispatch_recv", handle, SENT)
        q, s, offsets = self._ranks.dispatch_recv(handle.buffer)
        self._in_flight.set(handle, ARRIVED)
        return q, s, offsets, handle

    def combine(self, y: Tensor, handle: Dispatch, x: Tensor, routing: Routing, add: Tensor | None = None) -> Tensor:
        """out[t] = sum over k of weights[t, k] * (output of the expert of choice k) + zero_weight[t] * x[t] + add[t],
        in float32 in this order, rounded once: `moe_combine`; `deepep` rounds more often.

        Args:
            y: bf16 [R, H], contiguous: the local experts' outputs, row by row as in q.
            handle: of the dispatch, once. x, routing: as there. add: bf16 [T, H] or None.

        Returns:
            bf16 [T, H].

        Raises:
            LongcatShapeError: an argument is not as above. LongcatCommError: the handle is not that of a dispatch whose
                rows have arrived.
        """
        self._expect("combine", handle, ARRIVED)
        if not is_compiling():
            try:
                given = expert_calls.Given(self._ranks.config, expert_calls.limits_of(x, self._ranks))
                expert_calls.summed("combine", x, routing, add, len(handle.plan.row_of), given, strided=True)
            except LongcatError as error:
                self._ranks.refuse("combine", error)
        self.combine_send(y, handle)
        return self.combine_recv(handle, x, routing, add)

    def combine_send(self, y: Tensor, handle: Dispatch) -> None:
        """The first half of `combine`: sends the outputs back."""
        self._expect("combine", handle, ARRIVED)
        if not is_compiling():
            try:
                given = expert_calls.Given(self._ranks.config, expert_calls.limits_of(y, self._ranks))
                expert_calls.returning("combine", y, given, handle.rows)
            except LongcatError as error:
                self._ranks.refuse("combine", error)
        self._ranks.combine_send(handle.buffer, y)
        self._in_flight.set(handle, RETURNING)

    def combine_recv(self, handle: Dispatch, x: Tensor, routing: Routing, add: Tensor | None = None) -> Tensor:
        """The second half of `combine`: waits for the outputs of all ranks, and sums."""
        self._expect("combine_recv", handle, RETURNING)
        ranks = self._ranks
        if ranks.reduces:
            out = ranks.combine_reduced(handle.buffer, len(handle.plan.row_of), routing, x, add)
            self._in_flight.set(handle, FREE)
            return out
        returned = ranks.combine_recv(handle.buffer)
        self._in_flight.set(handle, FREE)
        return moe.moe_combine(returned, handle.plan, routing, x, add)

    def fused_moe(
        self, x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *,
        add: Tensor | None = None, most_tokens: int | None = None,
    ) -> Tensor:  # fmt: skip
        """`longcat_ops.fused_moe` over all ranks: the same bits.

        Args:
            x: bf16 [T, H], any T: it goes through in chunks of max_tokens. routing: of x.
            w_gate_up, w_down: this rank's experts, as `longcat_ops.fused_moe` takes all of them; gate_up is an FP8 pair
                if the payload is "fp8", else bf16.
            add: bf16 [T, H] or None: added as in `combine`.
            most_tokens: the largest T of any rank, the same number on each; None: every rank has this rank's T.

        Returns:
            bf16 [T, H].
        """
        c = self._ranks.config
        if not is_compiling():
            try:
                layer.require(x, routing, w_gate_up, w_down, add, most_tokens, c, self.ranks)
            except LongcatError as error:
                self._ranks.refuse("fused_moe", error)
        most = len(x) if most_tokens is None else most_tokens
        if len(x) > most:  # while a graph is compiled
            raise LongcatShapeError(message("fused_moe", "most_tokens", most, f"at least {len(x)}, the rows of `x`"))
        if most <= c.max_tokens:
            return self._chunk(x, routing, w_gate_up, w_down, add, most)
        out = x.new_empty(x.shape)
        for first in range(0, most, c.max_tokens):
            part = slice(first, first + c.max_tokens)
            own = routing._replace(**{name: getattr(routing, name)[part] for name in
                                      ("ids", "weights", "zero_weight", "num_real")})  # fmt: skip
            here = None if add is None else add[part]
            out[part] = self._chunk(x[part], own, w_gate_up, w_down, here, min(c.max_tokens, most - first))
        return out

    def _chunk(self, x: Tensor, routing: Routing, w_gate_up: Any, w_down: Any, add: Tensor | None, most: int) -> Tensor:
        """most: tokens of any rank; rows come from all, also to a rank that has few tokens."""
        q, s, offsets, handle = self.dispatch(x, routing)
        y = x.new_empty((handle.rows, x.shape[1]))
        families = moe, gemm, bf16_gemm
        products(families, q if s is None else (q, s), offsets, w_gate_up, w_down, y, max_m_hint=self._hint(most))
        return self.combine(y, handle, x, routing, add)

    def check(self) -> None:
        """Raises if this is closed or poisoned, by this rank or another, or if launched work is late."""
        self._ranks.check()

    def abort(self, reason: str = "") -> None:
        """Ends calls that run, on every rank, and poisons this for all. Any thread may call it. Never waits for another
        rank."""
        self._ranks.abort(reason)

    def close(self) -> None:
        """Gives connections and memory back. A second call does nothing. No collective, but a rank that calls an
        operation after another has closed gets an error."""
        self._ranks.close()

    def _planned(self, x: Tensor, routing: Routing) -> Plan:
        ranks = self._ranks
        if not is_compiling():  # the op checks when the graph runs
            ranks.require_open("dispatch")
            if not isinstance(routing, Routing):
                got = f"of type {type(routing).__name__}"
                raise LongcatShapeError(message("dispatch", "routing", got, "a Routing, from moe_route"))
            given = expert_calls.Given(ranks.config, expert_calls.limits_of(x, ranks))
            expert_calls.routed("dispatch", x, routing.ids, routing.weights, given)
        return moe.moe_plan(routing.ids, ranks.config.num_ffn_experts, routing.weights)

    def _expect(self, op: str, handle: Any, state: str) -> None:
        if (problem := self._in_flight.problem(op, handle, state)) is not None:
            self._ranks.refuse(op, problem)
