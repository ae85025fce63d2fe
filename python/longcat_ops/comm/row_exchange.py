"""Rows of one plan between the ranks of an ExpertParallel, there and back: what dispatch and combine do around their
sums, with any values. `longcat_ops.training.functional` makes gradients of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..errors import LongcatError
from ..types import Plan
from .expert_parallel import ExpertParallel


class RowExchange:
    """Moves rows by the plan that each rank made of its own tokens over all N experts, as often as wanted. Each method
    is a collective, as is the constructor, which reads the counts of all ranks on the host; on one rank (`local`)
    nothing is read and nothing moves.

    Args:
        ep: of the backend `local` or `torch`; it takes any dtype here, whatever its payload. Its buffers are not used.
        plan: moe_plan(ids, N, weights) of this rank's tokens, at most max_tokens.

    Raises:
        LongcatUnsupportedError: the backend moves no rows. LongcatShapeError: an argument is not as above.
        LongcatTimeoutError, LongcatCommError: as other calls of an ExpertParallel.
    """

    def __init__(self, ep: ExpertParallel, plan: Plan) -> None:
        self._ranks = ep._ranks
        self._rows = len(plan.src_of)
        self._routes = self._ranks.routes(plan)

    @property
    def offsets(self) -> Tensor:
        """i32 [local experts + 1]: which of the rows that arrive are those of each local expert."""
        return self._routes.offsets

    def forth(self, rows: Tensor) -> Tensor:
        """To the ranks of the experts.

        Args:
            rows: [R, H] contiguous, bfloat16, float16, float32 or float64, in the order of this rank's plan.

        Returns:
            The rows of all ranks for the local experts, by expert, then by rank, then in the order of that rank's plan:
                as many as came; with `local` `rows` itself.
        """
        return self._ranks.forth(rows, self._routes)

    def back(self, rows: Tensor) -> Tensor:
        """Where they came from: the transpose of `forth`.

        Args:
            rows: [as many as `forth` returns, or more, H], contiguous, as there.

        Returns:
            [R, H] in the order of this rank's plan, 0 behind the last; with `local` `rows` itself.
        """
        returned = self._ranks.back(rows, self._routes)
        if len(returned) == self._rows:
            return returned
        padded = returned.new_zeros(self._rows, returned.shape[1])
        padded[: len(returned)] = returned
        return padded


@contextmanager
def refusing(ep: ExpertParallel, op: str) -> Iterator[None]:
    """What this block raises of the library's errors, before anything is sent, reaches the other ranks."""
    try:
        yield
    except LongcatError as error:
        ep._ranks.refuse(op, error)
