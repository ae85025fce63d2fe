"""Tensors that a block computes from one of its weights and keeps, renewed when the weight has been written to."""

from __future__ import annotations

import torch
from torch import Tensor

from .block import Block


class DerivingBlock(Block):
    """A block whose buffers `derived` are computed by `derive` from its weight `origin`."""

    origin: str
    derived: tuple[str, ...]

    def derive(self, weight: Tensor) -> tuple[Tensor | None, ...]:
        """The derived tensors, contiguous and of their own memory; None where this device needs none."""
        raise NotImplementedError(f"{type(self).__name__} must say what it derives from {self.origin}")

    def renew(self) -> None:
        """Compute them anew; to be called once `origin` is there."""
        weight = getattr(self, self.origin)
        with torch.inference_mode(False), torch.no_grad():
            found = self.derive(weight.detach())
        for name, tensor in zip(self.derived, found, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self._renewed_from = weight, None if weight.is_inference() else weight._version
        derived = any(t is not None for t in found)
        # Of no values there are no sums, and to add them up torch would load its compiler, which takes two seconds.
        self._sums = _sums(weight) if derived and not weight.is_meta else None

    def follow_weights(self) -> None:
        """Renew the derived tensors if the weight has been written to in any way, `.data` included."""
        weight = getattr(self, self.origin)
        moved = self._renewed_from[0] is not weight
        if moved or (self._sums is not None and not torch.equal(self._sums, _sums(weight))):
            self.renew()

    def kept(self) -> list[Tensor | None]:
        """The derived tensors, made anew if the weight was replaced or written to; a tensor of inference mode counts no
        writes.
        """
        weight, version = self._renewed_from
        if weight is not getattr(self, self.origin) or version is None or version != weight._version:
            self.renew()
        return [getattr(self, name) for name in self.derived]


def _sums(weight: Tensor) -> Tensor:
    """i64 sums of the bytes of [N,K] or [K] over each row and each column, in words of 8 where a row has whole ones."""
    weight = weight.view(-1, weight.shape[-1])
    whole = weight.shape[1] * weight.element_size() % 8 == weight.storage_offset() * weight.element_size() % 8 == 0
    words = weight.detach().contiguous().view(torch.int64 if whole else torch.uint8)
    return torch.cat([words.sum(0), words.sum(1)])
