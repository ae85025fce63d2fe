"""torch.ops.longcat_ops.comm_dispatch_* and comm_combine_*: the halves of expert parallelism, their checks, and the
text that describes each to other ranks.

A token, which each half says that it writes, keeps them in order in graphs of torch.compile. None does: that would be a
kernel between any two of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..types import Plan, Routing
from . import checks, ops
from .experts.base import ExpertConfig, ExpertWay, ReducingWay
from .experts.rows import PAYLOADS
from .runner import Prepared

SCHEMAS = {
    "dispatch_send": (
        "(int ep, int buffer, Tensor x, Tensor ids, Tensor offsets, Tensor row_of, Tensor src_of, Tensor(a!) token) "
        "-> ()"
    ),
    "dispatch_recv": ("(int ep, int buffer, Tensor(a!) q, Tensor(b!)? s, Tensor(c!) offsets, Tensor(d!) token) -> ()"),
    "combine_send": "(int ep, int buffer, Tensor y, Tensor(a!) token) -> ()",
    "combine_recv": "(int ep, int buffer, Tensor(a!) returned, Tensor(b!) token) -> ()",
    # of a way that reduces, for dispatch_send and combine_recv
    "dispatch_weighted": (
        "(int ep, int buffer, Tensor x, Tensor ids, Tensor weights, Tensor offsets, Tensor row_of, Tensor src_of, "
        "Tensor(a!) token) -> ()"
    ),
    "combine_reduced": ("(int ep, int buffer, Tensor bias, Tensor? add, Tensor(a!) out, Tensor(b!) token) -> ()"),
}
MAX_EXPERTS, MAX_TOP_K, MAX_BUFFERS, WIDTH = 1024, 32, 4, 16


@dataclass(frozen=True)
class Given:
    """What the checks know of an ExpertParallel."""

    config: ExpertConfig
    limits: checks.Limits


def limits_of(x: Any, ranks: Any) -> checks.Limits:
    """Where tensors lie: with other ranks, where the group computes; else where x does."""
    if ranks.ranks > 1:
        return ranks.given.limits
    return checks.Limits(0, 1, (x.device.type if isinstance(x, Tensor) else "cpu",), 0)


def constructor(config: ExpertConfig, backends: tuple[str, ...], ranks: int) -> None:
    """The arguments of an ExpertParallel."""
    op, c = "ExpertParallel", config
    for name, least, most in (
        ("num_ffn_experts", 1, MAX_EXPERTS), ("top_k", 1, MAX_TOP_K), ("hidden", WIDTH, 1 << 20),
        ("max_tokens", 1, 1 << 20), ("buffers", 1, MAX_BUFFERS),
    ):  # fmt: skip
        value = getattr(c, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise checks.refuse(op, name, f"{value!r}", f"an int in {least} .. {most}")
    if c.hidden % WIDTH:
        raise checks.refuse(op, "hidden", c.hidden, f"a multiple of {WIDTH}")
    if c.num_ffn_experts % ranks:
        raise checks.refuse(op, "num_ffn_experts", c.num_ffn_experts, f"a multiple of {ranks} ranks")
    if c.payload not in PAYLOADS:
        raise checks.refuse(op, "payload", f"{c.payload!r}", " or ".join(map(repr, PAYLOADS)))
    checks.constructor(config, backends, op)


def routed(op: str, x: Any, ids: Any, weights: Any, given: Given) -> None:
    """x, and what the router made of it. What is the same on every rank of a right program comes first."""
    c = given.config
    for name, value in (("x", x), ("routing", ids), ("routing", weights)):
        if not isinstance(value, Tensor):
            raise checks.refuse(op, name, f"of type {type(value).__name__}", "of tensors")
    _rows(op, "x", x, given)
    if ids.dim() != 2 or ids.shape[1] != c.top_k:
        raise checks.refuse(op, "routing.ids", f"of shape {list(ids.shape)}", f"[T, {c.top_k}], top_k columns")
    own_tokens(op, x, ids, given)


@checks.rank_local
def own_tokens(op: str, x: Tensor, ids: Tensor, given: Given) -> None:
    most = given.config.max_tokens
    if len(x) > most:
        fix = "construct it with more max_tokens, or pass chunks, as `fused_moe` does"
        raise LongcatShapeError(message(op, "x", f"{len(x)} tokens", f"at most {most}, max_tokens", fix=fix))
    if len(ids) != len(x):
        raise checks.refuse(op, "routing.ids", f"of {len(ids)} tokens", f"of {len(x)}, as `x`")


def _rows(op: str, name: str, x: Tensor, given: Given) -> None:
    """A bf16 matrix of the right width."""
    width = given.config.hidden
    checks.tensor(op, name, x, given.limits, (torch.bfloat16,))
    if x.dim() != 2 or x.shape[1] != width:
        raise checks.refuse(op, name, f"of shape {list(x.shape)}", f"[.., {width}], hidden columns")


def returning(op: str, y: Any, given: Given, rows: int) -> None:
    """y, one row for each that a dispatch may bring."""
    if not isinstance(y, Tensor):
        raise checks.refuse(op, "y", f"of type {type(y).__name__}", "a torch.Tensor")
    _rows(op, "y", y, given)
    if len(y) != rows:
        raise checks.refuse(op, "y", f"of {len(y)} rows", f"of {rows}, those of q")


def _of_buffer(op: str, given: Given, buffer: int) -> str:
    """The text of a call. Raises if there is no such buffer."""
    if not 0 <= buffer < given.config.buffers:
        raise checks.refuse(op, "buffer", buffer, f"0 .. {given.config.buffers - 1}")
    return f"{op} of buffer {buffer}"


def dispatch_send(
    given: Given, way: ExpertWay, buffer: int, x: Tensor, ids: Tensor, offsets: Tensor, row_of: Tensor, src_of: Tensor,
    token: Tensor,
) -> Prepared:  # fmt: skip
    text = _of_buffer("dispatch_send", given, buffer)
    routed("dispatch_send", x, ids, row_of, given)

    def act() -> None:
        way.dispatch_send(buffer, x, ids, Plan(offsets, row_of, src_of))

    return text, act


def dispatch_recv(
    given: Given, way: ExpertWay, buffer: int, q: Tensor, s: Tensor | None, offsets: Tensor, token: Tensor
) -> Prepared:
    text, own = _of_buffer("dispatch_recv", given, buffer), way.buffers[buffer]
    _written("dispatch_recv", {"q": (q, own.q), "s": (s, own.s), "offsets": (offsets, own.offsets)}, given)

    def act() -> None:
        way.dispatch_recv(buffer, q, s, offsets)

    return text, act


def combine_send(given: Given, way: ExpertWay, buffer: int, y: Tensor, token: Tensor) -> Prepared:
    text = _of_buffer("combine_send", given, buffer)
    returning("combine_send", y, given, len(way.buffers[buffer].q))

    def act() -> None:
        way.combine_send(buffer, y)

    return text, act


def combine_recv(given: Given, way: ExpertWay, buffer: int, returned: Tensor, token: Tensor) -> Prepared:
    text = _of_buffer("combine_recv", given, buffer)
    _written("combine_recv", {"returned": (returned, way.buffers[buffer].returned)}, given)

    def act() -> None:
        way.combine_recv(buffer, returned)

    return text, act


def dispatch_weighted(
    given: Given, way: ReducingWay, buffer: int, x: Tensor, ids: Tensor, weights: Tensor, offsets: Tensor,
    row_of: Tensor, src_of: Tensor, token: Tensor,
) -> Prepared:  # fmt: skip
    text = _of_buffer("dispatch_weighted", given, buffer)
    routed("dispatch_weighted", x, ids, weights, given)

    def act() -> None:
        way.dispatch_weighted(buffer, x, ids, weights, Plan(offsets, row_of, src_of))

    return text, act


def summed(op: str, x: Any, routing: Any, add: Any, tokens: int, given: Given, strided: bool = False) -> None:
    """What this rank adds to the experts' sums of `tokens` tokens. strided: x and add need not be contiguous."""
    if not isinstance(routing, Routing):
        raise checks.refuse(op, "routing", f"of type {type(routing).__name__}", "a Routing, from moe_route")
    for name, value in (("x", x), ("add", add)):
        if value is None and name == "add":
            continue
        if not isinstance(value, Tensor):
            raise checks.refuse(op, name, f"of type {type(value).__name__}", "a torch.Tensor")
        _rows(op, name, value.contiguous() if strided else value, given)
        _like_dispatch(op, name, value, tokens)
    for name in ("zero_weight", "weights"):
        value = getattr(routing, name)
        if not isinstance(value, Tensor):
            raise checks.refuse(op, f"routing.{name}", f"of type {type(value).__name__}", "a torch.Tensor")
        checks.tensor(op, f"routing.{name}", value, given.limits, (torch.float32,))
        _like_dispatch(op, f"routing.{name}", value, tokens)


@checks.rank_local
def _like_dispatch(op: str, name: str, x: Tensor, tokens: int) -> None:
    if len(x) != tokens:
        raise checks.refuse(op, name, f"of {len(x)} tokens", f"of {tokens}, those of the dispatch")


def combine_reduced(
    given: Given, way: ReducingWay, buffer: int, bias: Tensor, add: Tensor | None, out: Tensor, token: Tensor
) -> Prepared:
    text = _of_buffer("combine_reduced", given, buffer)
    checks.output("combine_reduced", "out", out, bias, bias.shape, given.limits)

    def act() -> None:
        way.combine_reduced(buffer, bias, add, out)

    return text, act


def _written(op: str, named: dict[str, tuple[Any, Tensor | None]], given: Given) -> None:
    """Each is like the memory of the buffer."""
    for name, (got, own) in named.items():
        if (got is None) != (own is None):
            raise checks.refuse(op, name, "None" if got is None else "a tensor", "the other, by the payload")
        if own is not None:
            checks.output(op, name, got, own, own.shape, given.limits)


HALVES = dispatch_send, dispatch_recv, combine_send, combine_recv, dispatch_weighted, combine_reduced
CALLS = {f.__name__: f for f in HALVES}
assert CALLS.keys() == SCHEMAS.keys()
ops.define(SCHEMAS)
