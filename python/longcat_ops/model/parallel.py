"""The ranks that share the experts of a network: which each holds, how rows travel, and what all must agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

import torch

from ..comm import Communicator, ExpertParallel, balance_experts
from ..errors import LongcatCommError, LongcatShapeError, LongcatUnsupportedError, message
from ..ops.moe import moe_place
from ..types import Placement, Routing
from .config import LongcatFlashConfig

MAX_TOKENS = 512  # rows of a rank in one pass: a chunk of a prompt, or a decode pass
CONTROL_BYTES = 4096
T = TypeVar("T")


class Parallel:
    """One rank's part. Each rank has tokens of its own through attention, router and MoE; the FFN experts are shared
    out over all ranks of `group`. The constructor is a collective.

    A pass of the network is a collective of all ranks, of any kind and with any number of rows, none included: each MoE
    layer exchanges rows once. `agree` tells who has passes left.
    """

    def __init__(self, group: Any, *, timeout_s: float | None = None) -> None:
        self.group, self._timeout_s = group, timeout_s
        self.control = Communicator(group, CONTROL_BYTES, backend="gloo", num_channels=1, timeout_s=timeout_s)
        self.rank, self.ranks = self.control.rank, self.control.ranks
        self.placement: Placement | None = None
        self.experts: tuple[int, ...] = ()
        self.slots = self._top_k = self._hidden = 0
        self.exchanges: dict[str, ExpertParallel] = {}

    def share_out(self, config: LongcatFlashConfig) -> None:
        """Who holds which experts. Where they do not divide, some lie in two slots."""
        n = config.n_routed_experts
        self.slots, self._top_k, self._hidden = -(-n // self.ranks) * self.ranks, config.moe_topk, config.hidden_size
        order = list(range(n))
        if self.slots != n:
            self.placement = balance_experts([1] * n, self.ranks, self.slots - n)
            order = self.placement.experts.tolist()
        local = self.slots // self.ranks
        self.experts = tuple(order[self.rank * local : (self.rank + 1) * local])

    def join(self, model: Any) -> None:
        """Makes `model`, a LongcatFlashForCausalLM with this rank's experts, the model of these ranks. Collective."""
        if model.row_by_row:
            expected = "one whose rows run together: bf16, widths that are multiples of 8"
            raise LongcatUnsupportedError(message("from_pretrained", "ep_group", "a model of this kind", expected))
        model.parallel = self
        for layer in model.layers:
            layer.mlp.join(self)

    def idle(self, model: Any) -> None:
        """A pass without rows, while other ranks have some."""
        for layer in model.layers:
            layer.idle(model.embed_tokens[:0])

    def exchange(self, payload: str) -> ExpertParallel:
        """Dispatch and combine for layers of this payload. A collective when it is first asked for."""
        found = self.exchanges.get(payload)
        if found is None:
            found = self.exchanges[payload] = ExpertParallel(
                self.group, num_ffn_experts=self.slots, top_k=self._top_k, hidden=self._hidden, max_tokens=MAX_TOKENS,
                payload=payload, timeout_s=self._timeout_s,
            )  # fmt: skip
        return found

    def placed(self, routing: Routing, layer: int) -> Routing:
        """The routing by slots."""
        if self.placement is None:
            return routing
        device = routing.ids.device
        if self.placement.slots.device != device:
            self.placement = Placement(*(table.to(device) for table in self.placement))
        return routing._replace(ids=moe_place(routing.ids, self.placement, layer))

    def agree(self, value: int) -> list[int]:
        """Every rank's number. Collective; read on the host."""
        return self.control.all_gather(torch.tensor([value], dtype=torch.int64)).tolist()

    def require_same(self, what: str, value: object) -> None:
        """Raises LongcatShapeError on every rank if ranks have other values of `what`. Collective."""
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        text = json.dumps(plain, sort_keys=True, default=str)
        found = self.agree(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big"))
        if len(set(found)) > 1:
            alike = [[r for r, other in enumerate(found) if other == one] for one in dict.fromkeys(found)]
            got = ", ".join(f"one on ranks {ranks}" for ranks in alike)
            raise LongcatShapeError(message("from_pretrained", what, got, "the same on every rank"))

    def together(self, work: Callable[[], T]) -> T:
        """work() on every rank. Where it fails on one, all raise: that rank its error, the others one that names it."""
        error: Exception | None = None
        try:
            value = work()
        except Exception as raised:
            error = raised
        failed = [r for r, bad in enumerate(self.agree(int(error is not None))) if bad]
        if error is not None:
            raise error
        if failed:
            raise LongcatCommError(f"from_pretrained: ranks {failed} failed and say why, so no rank has a model.")
        return value

    def close(self) -> None:
        """Gives connections and memory back; the model can run no pass then."""
        for exchange in self.exchanges.values():
            exchange.close()
        self.control.close()
