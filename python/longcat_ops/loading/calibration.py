"""What a calibration has found: both measures of every unit of a checkpoint, and the policy that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import LongcatShapeError, message
from ..model.config import LongcatFlashConfig

MTP = "MTP"  # stands where a layer's number does


@dataclass(frozen=True)
class Thresholds:
    """Above them a scheme flags. A: max_input. B: both errors of one block (`block_errors`).

    max_input: e4m3 is normal from 2^-6 to 448, a factor of 28,672. Where an input is larger than that, inputs of 1 in
        its group of 128 fall below the normal range.
    relative: 2^-5 is what rounding is expected to cost at most within the normal range, so a block above it has values
        below that range.
    absolute: None is 2^-4 / sqrt(hidden_size). Over so many inputs of mean square 1, a weight with this error makes one
        of 2^-4 in its output, which is what e4m3 costs a value of 1 at most.
    """

    max_input: float = 28672.0
    relative: float = 2.0**-5
    absolute: float | None = None

    def filled(self, config: LongcatFlashConfig) -> Thresholds:
        """With a number for `absolute`. Raises LongcatShapeError for one that is negative or not finite."""
        absolute = 2.0**-4 / config.hidden_size**0.5 if self.absolute is None else self.absolute
        for name, value in (("max_input", self.max_input), ("relative", self.relative), ("absolute", absolute)):
            if not 0 <= value < float("inf"):
                raise LongcatShapeError(message("calibrate", name, value, "a finite number that is not negative"))
        return Thresholds(self.max_input, self.relative, absolute)


@dataclass
class Unit:
    """A projection, or all gate_up or all down of a layer's experts, which loaders take whole.

    layer: its number, or "MTP". kind: which one of a layer. patterns: of a policy, for its modules. max_input: the
    largest magnitude of its inputs. relative, absolute: the errors of the block where, in weight `worst`. by_input,
    by_error: whether scheme A, B flags it, or one of its experts. experts: those that both flag. unused: experts that
    the text never chose. impossible: why no op takes it in FP8.
    """

    layer: str
    kind: str
    patterns: tuple[str, ...]
    max_input: float = 0.0
    relative: float = 0.0
    absolute: float = 0.0
    worst: str = ""
    block: tuple[int, int] = (0, 0)
    score: float = -1.0  # of that block: the one that comes first to scheme B
    by_input: bool = False
    by_error: bool = False
    both: bool = False
    experts: list[int] = field(default_factory=list)
    unused: int = 0
    impossible: str = ""

    @property
    def stays_dense(self) -> bool:
        return self.both or bool(self.impossible)

    @property
    def reason(self) -> str:
        """Why it becomes what it becomes."""
        if self.impossible:
            return f"bf16: {self.impossible.splitlines()[0]}"
        if self.both:
            return "bf16: large inputs and large errors" + (f", in experts {_list(self.experts)}" * bool(self.experts))
        if self.by_input and self.by_error:
            return "FP8: no expert has both large inputs and large errors"
        return "FP8: " + (
            "only inputs are large" if self.by_input else "only errors are" if self.by_error else "neither"
        )


@dataclass(frozen=True)
class Calibration:
    """All units of a checkpoint in order, as measured over so many tokens. policy: as the loader reads it."""

    thresholds: Thresholds
    tokens: int
    units: list[Unit]

    @property
    def policy(self) -> dict[str, str]:
        dense = [pattern for unit in self.units if unit.stays_dense for pattern in unit.patterns]
        return dict.fromkeys(dense, "bf16") | {"*": "fp8"}


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
