"""The ranks of a model: which experts each holds, how rows travel, what all must agree on, and whose turn it is."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..comm import Communicator, ExpertParallel, balance_experts
from ..errors import LongcatShapeError, message
from ..ops.moe import moe_place
from ..types import Placement, Routing
from .agreement import Agreement, digest
from .config import LongcatFlashConfig
from .passes import Kind
from .rows import AnyRows
from .shares import ALONE, FORMS, Shares
from .stages import Overlapped
from .tensor_parallel import Company, TensorGroup

MAX_TOKENS = 512  # rows of a rank in one pass: a chunk of a prompt, or a decode pass
_INSIDE = "some of the ranks of ep_group, which holds every rank of the model"


@dataclass(frozen=True)
class Groups:
    """What a caller says of the ranks of a model: see `from_pretrained`."""

    ep: Any = None
    tp: Any = None
    form: str = "token"

    def check(self) -> None:
        """Raises LongcatShapeError, without asking another rank, unless these are groups."""
        if self.form not in FORMS:
            raise _refuse("tp_form", f"{self.form!r}", " or ".join(map(repr, FORMS)))
        for name, group in (("ep_group", self.ep), ("tp_group", self.tp)):
            if group is None or (dist.is_initialized() and isinstance(group, dist.ProcessGroup)):
                continue
            outside = dist.is_initialized() and group == dist.GroupMember.NON_GROUP_MEMBER
            got = "a group that this rank is not in" if outside else repr(group)
            raise _refuse(name, got, "a process group of torch.distributed that has this rank")
        if self.tp is not None and self.ep is None:
            got = f"of ranks {dist.get_process_group_ranks(self.tp)}, without an ep_group"
            raise _refuse("tp_group", got, _INSIDE)


class Parallel:
    """One rank's part. The FFN experts are shared out over all ranks of `groups.ep`, the dense FFNs and the head over
    those of `groups.tp`. The constructor is a collective.

    A pass of the network is a collective of all ranks, with any number of rows, none included. A rank that has one
    takes its `turn`: it waits until the others have one of the same kind, or none, which then make one without rows.
    Who has none left comes to `rest`, which returns when nobody has.
    """

    def __init__(self, groups: Groups, *, timeout_s: float | None = None) -> None:
        self.group, self._timeout_s, self._tp_group = groups.ep, timeout_s, groups.tp
        self.agreement = Agreement(groups.ep, timeout_s)
        self.rank, self.ranks = self.agreement.rank, self.agreement.ranks
        self.members = [self.rank]  # of this rank's tp_group, as ranks of the ep_group
        self._groups: list[list[int]] = []  # the members of each
        self.tp: Shares | TensorGroup = ALONE
        self.placement: Placement | None = None
        self.experts: tuple[int, ...] = ()
        self.slots = self._top_k = self._hidden = 0
        self.exchanges: dict[str, ExpertParallel] = {}
        self.agreement.require_same("from_pretrained", "tp_form", groups.form)
        self.agreement.together(lambda: self._place(groups))

    def _place(self, groups: Groups) -> None:
        """Finds this rank's tp_group among all; collective. Raises LongcatShapeError unless they have one size and each
        rank is in one."""
        ep = dist.get_process_group_ranks(groups.ep)
        own = [dist.get_rank()] if groups.tp is None else dist.get_process_group_ranks(groups.tp)
        digests = self.agreement.of_all("the tp_group", digest(own))
        sizes = self.agreement.of_all("its size", len(own))
        if not set(own) <= set(ep):
            raise _refuse("tp_group", f"of ranks {own}, with an ep_group of ranks {ep}", _INSIDE)
        self._groups = [[r for r, other in enumerate(digests) if other == one] for one in dict.fromkeys(digests)]
        members = next(group for group in self._groups if self.rank in group)
        if len(set(sizes)) > 1 or [ep[r] for r in members] != sorted(own):
            got = f"of ranks {own}, with an ep_group of ranks {ep} whose tp_groups have {sizes} ranks"
            raise _refuse("tp_group", got, "groups of one size, the same on all ranks of each")
        self.members = [ep.index(rank) for rank in own]
        self.tp = Shares(own.index(dist.get_rank()), len(own), groups.form) if len(own) > 1 else ALONE

    def share_out(self, config: LongcatFlashConfig) -> None:
        """Who holds which experts; where they do not divide, some lie in two slots. Collective."""
        n = config.n_routed_experts
        self.slots, self._top_k, self._hidden = -(-n // self.ranks) * self.ranks, config.moe_topk, config.hidden_size
        order = list(range(n))
        if self.slots != n:
            self.placement = balance_experts([1] * n, self.ranks, self.slots - n)
            order = self.placement.experts.tolist()
        local = self.slots // self.ranks
        self.experts = tuple(order[self.rank * local : (self.rank + 1) * local])
        if self.tp.ranks > 1:
            size = exchange_bytes(config, self.tp.ranks)
            # A row's bits must not depend on the run, nor on the rank where all have the same tokens.
            comm = Communicator(self._tp_group, size, num_channels=1, deterministic=True, timeout_s=self._timeout_s)
            self.tp = TensorGroup(comm.rank, comm.ranks, self.tp.form, comm=comm, max_bytes=size)

    def join(self, model: Any) -> None:
        """Makes `model`, a LongcatFlashForCausalLM with this rank's part, the model of these ranks. Collective."""
        model.parallel, self._model, self._no_rows = self, weakref.ref(model), model.new_cache(1, 1)
        if model.device.type == "cuda":
            model.execute = Overlapped(torch.cuda.Stream(model.device))
        for layer in model.layers:
            layer.mlp.join(self)

    def exchange(self, payload: str) -> ExpertParallel:
        """Dispatch and combine for layers of this payload. A collective when it is first asked for."""
        found = self.exchanges.get(payload)
        if found is None:
            found = self.exchanges[payload] = ExpertParallel(
                self.group, num_ffn_experts=self.slots, top_k=self._top_k, hidden=self._hidden, max_tokens=MAX_TOKENS,
                payload=payload, timeout_s=self._timeout_s,
            )  # fmt: skip
        return found

    @property
    def no_graph(self) -> str:
        """Why a step of these ranks cannot be captured; "" if it can."""
        ways = [(f"rows of experts travel by `{one.backend}`", one.caps.graphs) for one in self.exchanges.values()]
        if isinstance(self.tp, TensorGroup):
            ways.append((f"ranks of a tp_group exchange rows by `{self.tp.comm.backend}`", self.tp.comm.caps.graphs))
        return next((f"its {what}, which no graph can hold" for what, graphs in ways if not graphs), "")

    def placed(self, routing: Routing, layer: int) -> Routing:
        """The routing by slots."""
        if self.placement is None:
            return routing
        device = routing.ids.device
        if self.placement.slots.device != device:
            self.placement = Placement(*(table.to(device) for table in self.placement))
        return routing._replace(ids=moe_place(routing.ids, self.placement, layer))

    def meet(self, kind: Kind, rows: AnyRows) -> None:
        """Before a pass over `rows`: its turn, unless it is agreed already, and the rows of others in it."""
        agreed = rows.tokens is not None
        if kind != Kind.TARGET and self.tp.ranks == 1:  # a pass without experts
            return
        tokens = rows.tokens if agreed else self.turn(kind, len(rows.position))
        if self.tp.ranks > 1 and not self.tp.same_tokens and not (agreed and rows.company):
            own = torch.full_like(rows.errors, tokens[self.tp.rank]) if rows.count is None else rows.count
            rows.company = Company(self.tp, tokens, own)

    def turn(self, kind: Kind, tokens: int) -> list[int]:
        """Waits for the turn of a pass over `tokens` rows. Returns the rows of each rank of the tp_group in it."""
        while True:
            served, rows = self._ask(kind, tokens)
            if served == kind:
                return rows
            self._idle(served, rows)

    def rest(self) -> None:
        """Makes passes without rows until no rank has one left. Collective."""
        while True:
            served, rows = self._ask(0, 0)
            if not served:
                return
            self._idle(served, rows)

    def _idle(self, kind: int, tokens: list[int]) -> None:
        """A pass without rows of this rank; tokens: rows of each rank of the tp_group in it."""
        model = self._model()
        ids, hidden = torch.empty(0, dtype=torch.int64, device=model.device), model.embed_tokens[:0]
        rows = model.rows(self._no_rows, [], [])
        rows.tokens = tokens
        if kind == Kind.HEAD:
            model.head(hidden, tokens=tokens)
        elif kind == Kind.MTP:
            model.draft_rows(ids, hidden, rows)
        else:
            model.hidden_rows(ids, rows)

    def _ask(self, kind: int, tokens: int) -> tuple[int, list[int]]:
        """The kind of the next pass, 0 if nobody has one, and the rows of each rank of the tp_group in it."""
        asked = self.agreement.ask("a pass", kind, tokens)
        self._require_alike([tuple(one) for one in asked], "pass", "kind and rows")
        served = min((one for one, _ in asked if one), default=0)
        rows = [count if one == served else 0 for one, count in asked]
        self._require_few(rows)
        return served, [rows[r] for r in self.members]

    def agreed_rows(self, tokens: int) -> list[int]:
        """The rows of each rank of the tp_group in passes that need no turn, as those of a step that all ranks make."""
        counts = self.agreement.of_all("the rows of a step", tokens)
        self._require_alike(counts, "pass", "rows")
        self._require_few(counts)
        return [counts[r] for r in self.members]

    def _require_few(self, rows: list[int]) -> None:
        most = MAX_TOKENS * (self.tp.ranks if self.tp.same_tokens else 1)
        if max(rows) > most:
            got, expected = f"{max(rows)} rows on rank {rows.index(max(rows))}", f"at most {most}"
            raise LongcatShapeError(message("LongcatFlashForCausalLM", "pass", got, expected, fix="fewer sequences"))

    def any_left(self, here: int) -> bool:
        """Whether any rank has something left, as this one has `here`."""
        return any(self.agreement.of_all("who has tokens left", here))

    def same_seed(self, seed: int) -> int:
        """One for all ranks that have the same tokens."""
        seeds = self.agreement.of_all("a seed", seed)
        return seeds[self.members[0]] if self.tp.same_tokens else seed

    def require_same_tokens(self, what: str, value: object) -> None:
        """Raises LongcatShapeError on every rank if ranks that should have the same tokens have others."""
        if self.tp.same_tokens:
            self._require_alike(self.agreement.of_all(what, digest(value)), what)

    def _require_alike(self, values: list[Any], what: str, shown: str = "") -> None:
        """Each rank's `values`: raises on all ranks unless those that have the same tokens have the same ones."""
        wrong = [group for group in self._groups if len({values[r] for r in group}) > 1]
        if self.tp.same_tokens and wrong:
            got = f"{shown} {[values[r] for r in wrong[0]]}" if shown else "other values"
            got, expected = f"{got} on ranks {wrong[0]}, one tp_group", "the same on all of them"
            raise LongcatShapeError(message("LongcatFlashForCausalLM", what, got, expected))

    def close(self) -> None:
        """Gives connections and memory back; the model can run no pass then."""
        for exchange in self.exchanges.values():
            exchange.close()
        if isinstance(self.tp, TensorGroup):
            self.tp.comm.close()
        self.agreement.comm.close()


def exchange_bytes(config: LongcatFlashConfig, ranks: int) -> int:
    """The largest exchange of a tensor-parallel group: fp32 rows of all ranks, or the logits of one row."""
    return max(4 * ranks * MAX_TOKENS * config.hidden_size, 4 * config.vocab_size)


def _refuse(name: str, got: object, expected: str) -> LongcatShapeError:
    return LongcatShapeError(message("from_pretrained", name, got, expected))
