"""What of the dense weights each rank of a tensor-parallel group holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import LongcatShapeError, message
from ..types import BLOCK, ROW_GROUP, Routing

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("token", "all_reduce")


class Part(NamedTuple):
    """The rows and columns of a weight [N,K] that a rank holds; None: all."""

    rows: slice | None = None
    cols: slice | None = None

    def of(self, rows: int, cols: int) -> tuple[slice, slice]:
        return self.rows or slice(0, rows), self.cols or slice(0, cols)


WHOLE = Part()


@dataclass(frozen=True)
class Shares:
    """Rank `rank` of `ranks` that share out the dense FFNs by width, embedding and head by vocabulary.

    form: "token", each rank has tokens of its own and whole attentions; "all_reduce", all have the same tokens, and
    each has a part of the heads. Norms, latent projections, router and eh_proj are whole on every rank.
    """

    rank: int = 0
    ranks: int = 1
    form: str = "token"

    @property
    def same_tokens(self) -> bool:
        """Whether the ranks of the group have the same tokens, and partial sums behind each attention."""
        return self.ranks > 1 and self.form == "all_reduce"

    def width(self, size: int) -> slice:
        """Of a dense FFN: whole FP8 blocks."""
        return self._own("dense FFN width", size, BLOCK)

    def vocabulary(self, size: int) -> list[slice]:
        """Of ids, for each rank."""
        return self._all("vocabulary", size, ROW_GROUP)

    def of_vocabulary(self, size: int) -> Part:
        """This rank's rows of the embedding and the head."""
        return Part(rows=self.vocabulary(size)[self.rank]) if self.ranks > 1 else WHOLE

    def heads(self, count: int) -> slice:
        """Of the attention heads: as many on each rank."""
        if not self.same_tokens:
            return slice(0, count)
        if count % self.ranks:
            expected = f"a divisor of the {count} attention heads"
            raise LongcatShapeError(message("from_pretrained", "tp_group", f"{self.ranks} ranks", expected))
        return self._own("attention heads", count, 1)

    def rows_each(self, count: int) -> list[int]:
        """Of `count` rows that all ranks of the group have, how many each sends to the experts."""
        first, more = divmod(count, self.ranks)
        return [first + (r < more) for r in range(self.ranks)]

    def rows(self, count: int) -> slice:
        """Those that this rank sends to the experts."""
        each = self.rows_each(count)
        start = sum(each[: self.rank])
        return slice(start, start + each[self.rank])

    def to_experts(self, x: Tensor, routing: Routing) -> tuple[Tensor, Routing]:
        """The rows that this rank sends to the experts: of tokens that all ranks of the group have, its share."""
        if not self.same_tokens:
            return x, routing
        mine = self.rows(len(x))
        ids, weights, zero_weight, num_real, *rest = routing
        return x[mine], Routing(ids[mine], weights[mine], zero_weight[mine], num_real[mine], *rest)

    def _own(self, what: str, size: int, unit: int) -> slice:
        return self._all(what, size, unit)[self.rank]

    def _all(self, what: str, size: int, unit: int) -> list[slice]:
        """`size` in whole units, of which the last may be short; the first ranks have one more than the others."""
        units = -(-size // unit)
        if units < self.ranks:
            expected = f"at most {units}, the blocks of {unit} in a {what} of {size}"
            raise LongcatShapeError(message("from_pretrained", "tp_group", f"{self.ranks} ranks", expected))
        first, more = divmod(units, self.ranks)
        ends = [unit * (r * first + min(r, more)) for r in range(self.ranks)]
        return [slice(a, b) for a, b in zip(ends, [*ends[1:], size], strict=True)]


ALONE = Shares()
