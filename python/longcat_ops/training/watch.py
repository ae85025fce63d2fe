"""Looks for silent data corruption during training, now and then, at a price that can be chosen.

The LongCat-Flash technical report (arXiv:2509.01322) does so with the backward of attention; here it is any function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from ..errors import LongcatCorruptionError
from .checks import require_int
from .checksums import Checksums, checksum
from .determinism import same_random_numbers

_Result = TypeVar("_Result")
_OP = "Watch"


class Watch:
    """Every n-th step, a computation runs twice and its bits are compared, and so are some tensors at rest.

        watch = Watch(weights, every=100, at_once=8)
        for batch in batches:
            gradients = watch.run(backward, batch)
            watch.before_update()
            optimizer.step()
            watch.after_update()

    Weights and the state of an optimizer rest between two updates. After an update the next `at_once` of them get
    their checksums, in turn, and before the next update these are compared. So a step that is looked at costs a second
    `run` and the reading of these tensors twice; the other steps cost nothing.

    Args:
        tensors: by name, what rests between updates. every: steps from one look to the next; the first step is one.
        at_once: tensors of a look.

    Raises:
        LongcatShapeError: an argument is not as above. All methods: LongcatCorruptionError, which names the tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, every: int = 100, at_once: int = 8) -> None:
        require_int(_OP, "every", every, 1)
        require_int(_OP, "at_once", at_once, 1)
        self.every, self.at_once, self.step = every, at_once, 0
        self._sums = Checksums(tensors)
        self._resting: list[str] = []

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What rests between updates."""
        return self._sums.tensors

    @property
    def is_due(self) -> bool:
        """Whether the next `run` runs twice."""
        return self.step % self.every == 0

    def run(self, fn: Callable[..., _Result], *args: Any) -> _Result:
        """fn(*args), on a due step twice, from the same state of torch's random numbers; the bits of all tensors in
        the result, in containers of any kind, are compared. fn leaves everything else as it finds it: it returns
        gradients, for example, and does not add to `.grad`.
        """
        if not self.is_due:
            return fn(*args)
        with same_random_numbers():
            first = _sums(fn(*args))
        result = fn(*args)
        second = _sums(result)
        names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
        if names:
            raise LongcatCorruptionError(_OP, self.step, names, "differ between two runs of the same computation")
        return result

    def before_update(self) -> None:
        """Nobody has written to the tensors since `after_update`, and somebody is about to."""
        resting, self._resting = self._resting, []
        if names := self._sums.changed(resting):
            raise LongcatCorruptionError(_OP, self.step, names, "changed between two updates, and nobody wrote to them")

    def after_update(self) -> None:
        """An update has written to the tensors: the step is over."""
        self.step += 1
        if self.is_due:
            self._resting = self._sums.turn(self.at_once)
            self._sums.renew(self._resting)


def _sums(result: Any) -> dict[str, int]:
    """The checksum of each tensor of a result, by its path in it."""
    return {
        f"result{keystr(path)}": checksum(leaf)
        for path, leaf in tree_flatten_with_path(result)[0]
        if isinstance(leaf, Tensor)
    }
