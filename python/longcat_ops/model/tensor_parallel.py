"""The exchanges of a tensor-parallel group around the products of its parts.

A tensor of one rank is whole for this rank's tokens. What is not has a type of its own, which no op takes: `Partial`,
terms of a sum over the ranks, and `TokenShare`, the rows of some of the tokens. `whole` makes a tensor of either, once:
its result is a tensor and cannot be reduced again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..comm import Communicator
from ..ops.rows import embed_rows
from .products import Quantised
from .shares import Shares

Products = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Partial:
    """This rank's terms f32 [T,N] of a sum over its tensor-parallel group, whose ranks have the same tokens. The sum is
    taken in fp32 and rounded once, to `dtype`, as one process rounds it.
    """

    terms: Tensor
    group: TensorGroup
    dtype: torch.dtype

    def whole(self) -> Tensor:
        """The sum [T,N], the same bits on every rank."""
        return self.group.comm.all_reduce(self.terms).to(self.dtype)


@dataclass(frozen=True)
class TokenShare:
    """The rows of this rank's share of the tokens, of `tokens` that all ranks of its group have."""

    rows: Tensor
    group: TensorGroup
    tokens: int

    def whole(self) -> Tensor:
        """The rows of all tokens."""
        return self.group.comm.all_gather(self.rows, rows=self.group.rows_each(self.tokens))


def whole(x: Tensor | Partial | TokenShare) -> Tensor:
    return x if isinstance(x, Tensor) else x.whole()


class Company:
    """The rows of one pass on the ranks of a group in token form, each with tokens of its own. Stands for the rows of a
    decode pass where products of all of them run.

    tokens: rows of each rank, padding included. counts i32[ranks], count i32[1]: those ahead of the padding, and all.
    """

    def __init__(self, group: TensorGroup, tokens: list[int], own: Tensor) -> None:
        self.group, self.tokens = group, tokens
        self.counts = group.comm.all_gather(own)
        self.count = self.counts.sum(0, keepdim=True, dtype=torch.int32)

    def gather(self, x: Tensor) -> Tensor:
        """x [T,...] of each rank, one behind the other without their padding."""
        out = x.new_empty((sum(self.tokens), *x.shape[1:]))
        return self.group.comm.all_gather(x, out, rows=self.counts)

    def sum_own(self, terms: Tensor, dtype: torch.dtype) -> Tensor:
        """Terms [sum of T,N] of each rank -> this rank's rows [T,N] of the sum, rounded once."""
        out = terms.new_empty((self.tokens[self.group.rank], terms.shape[1]))
        return self.group.comm.reduce_scatter(terms, out, rows=self.counts).to(dtype)


@dataclass(frozen=True)
class TensorGroup(Shares):
    """One rank's part in a tensor-parallel group: its shares, and the communicator of its exchanges, which experts do
    not use. max_bytes: of one exchange.
    """

    comm: Communicator = field(kw_only=True)
    max_bytes: int = field(kw_only=True)

    def ffn(self, products: Products, x: Tensor | Quantised, rows: Any, dense: bool) -> Tensor | Partial:
        """products(x [T,H], rows) -> terms [T,H] of the output of a dense FFN, of which this rank has a part; in token
        form they run on the rows of all ranks. dense: whether they need more than quantised rows.
        """
        dtype = (x.x if isinstance(x, Quantised) else x).dtype
        if self.same_tokens:
            return Partial(products(x, rows), self, dtype)
        company: Company = rows.company
        if isinstance(x, Quantised):
            q, s = x.pair
            codes = company.gather(q.view(torch.uint8)).view(q.dtype)
            x = Quantised(company.gather(x.x) if dense else None, (codes, company.gather(s)))
        else:
            x = company.gather(x)
        return company.sum_own(products(x, company), dtype)

    def embed(self, table: Tensor, ids: Tensor, size: int, rows: Any) -> Tensor:
        """The rows of a table [size,H] for ids i64[T], of which `table` is this rank's part."""
        first = self.vocabulary(size)[self.rank].start
        if self.same_tokens:
            return self.comm.all_reduce_(embed_rows(table, ids - first))  # all other terms are 0
        company: Company = rows.company
        return company.sum_own(embed_rows(table, company.gather(ids) - first), table.dtype)

    def logits(self, product: Callable[[Tensor], Tensor], hidden: Tensor, tokens: list[int], size: int) -> Tensor:
        """product(hidden rows) -> logits of this rank's part of the vocabulary. Returns those of all `size` ids for
        hidden [n,H]; tokens: rows of each rank.
        """
        if self.same_tokens:
            parts, first = product(hidden), 0
        else:
            parts, first = product(self.comm.all_gather(hidden, rows=tokens)), sum(tokens[: self.rank])
        out, ids = parts.new_empty((len(hidden), size)), self.vocabulary(size)
        widths, most = [part.stop - part.start for part in ids], max(1, self.max_bytes // (4 * size))
        for a in range(0, len(parts), most):
            some = parts[a : a + most]
            all_parts = self.comm.all_gather(some.reshape(-1), rows=[len(some) * width for width in widths])
            begin, end = max(a, first), min(a + len(some), first + len(hidden))
            if begin < end:
                for part, found in zip(ids, all_parts.split([len(some) * width for width in widths]), strict=True):
                    out[begin - first : end - first, part] = found.view(len(some), -1)[begin - a : end - a]
        return out
