"""C2T: a small classifier decides which drafts are worth a row of the target's pass.

Of each draft it knows the joint probability, by the draft head, of this draft and those ahead of it, the entropy of the
distribution that it is the likeliest token of, and its depth. Two layers make a score of them: how likely the target
accepts. A draft below `beta` is not verified, and costs nothing: the step computes the rows that are left. What is
decided depends on the head's distribution alone, not on the draft that was drawn, so texts stay what they are.

C2T: A Classifier-Based Tree Construction Method in Speculative Decoding, arXiv:2502.13652; for a chain of drafts, its
appendix F. `python -m longcat_ops c2t` trains one (engine/c2t_training.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatCheckpointError, LongcatShapeError, message
from ..model import files
from ..model.checks import described, is_integer, require

FILE_NAME = "c2t.json"  # beside a checkpoint
TOP = 1000  # probabilities of which the paper takes the entropy
MOST_UNITS = 256
INPUTS = ("joint probability", "entropy", "depth")
_FORMAT = "longcat_ops c2t 1"


@dataclass(frozen=True)
class DraftFilter:
    """The classifier, and what it lets pass. `generate` and `Engine` take it as `draft_filter`.

    Args:
        hidden: of each unit of the hidden layer, which is a ReLU, the weights of joint probability, entropy (nats) and
            depth, and its bias; 1 to 256 units.
        output: the weights of the units, and a bias; the sigmoid of that sum is the score.
        beta: drafts of a lower score are not verified. 0 keeps all, more than 1 none.
        top: the entropy is of so many of the largest probabilities.
        about: what it was trained on.

    Raises: LongcatShapeError for numbers that do not fit each other.
    """

    hidden: Sequence[Sequence[float]]
    output: Sequence[float]
    beta: float = 0.5
    top: int = TOP
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        op, units = "DraftFilter", len(self.hidden)
        require(1 <= units <= MOST_UNITS, op, "hidden", f"{units} units", f"1 .. {MOST_UNITS}")
        widths = sorted({len(unit) for unit in self.hidden})
        require(widths == [4], op, "hidden", f"units of {widths} numbers", "4: three weights and a bias")
        require(len(self.output) == units + 1, op, "output", f"{len(self.output)} numbers", f"{units + 1}")
        finite = all(map(_is_finite, [*self.output, *(value for unit in self.hidden for value in unit)]))
        require(finite, op, "hidden", "numbers that are not finite in float32", "finite ones")
        require(_is_finite(self.beta), op, "beta", described(self.beta), "a finite number")
        require(is_integer(self.top) and 1 <= self.top < 2**31, op, "top", described(self.top), "an integer from 1 on")

    def with_beta(self, beta: float) -> DraftFilter:
        """The same classifier with another threshold."""
        return replace(self, beta=beta)

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(hidden f32 [H,4], output f32 [H+1]), as `filter_drafts` takes them."""
        return (
            torch.tensor([list(unit) for unit in self.hidden], dtype=torch.float32, device=device),
            torch.tensor(list(self.output), dtype=torch.float32, device=device),
        )

    def scores(self, features: Tensor) -> Tensor:
        """f64 [N]: the score of each row of features [N,3], in the order of INPUTS."""
        hidden, output = (t.double() for t in self.tensors())
        units = (features.double() @ hidden[:, :3].T + hidden[:, 3]).relu()
        return (units @ output[:-1] + output[-1]).sigmoid()

    @classmethod
    def load(cls, path: str | Path, beta: float | None = None) -> DraftFilter:
        """From a file, or from c2t.json in the folder of a checkpoint. beta: None takes the file's.

        Raises: LongcatCheckpointError for a file that is not there, or is none.
        """
        file = Path(path) / FILE_NAME if files.is_folder(path) else Path(path)
        if not files.exists(file):
            raise LongcatCheckpointError(
                f"{files.shown(file)} does not exist: nothing was trained that says which drafts to verify.\n"
                f"  fix: python -m longcat_ops c2t {files.shown(file.parent)} --prompts FILE"
            )
        found = files.read_object(file)
        if found.get("format") != _FORMAT:
            raise LongcatCheckpointError(f"{files.shown(file)} has format {found.get('format')!r}, not {_FORMAT!r}.")
        try:
            classifier = cls(found["hidden"], found["output"], found["beta"], found["top"], found.get("about", {}))
        except (LongcatShapeError, KeyError, TypeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"holds no classifier: {error}"
            raise LongcatCheckpointError(f"{files.shown(file)} {what}") from error
        return classifier if beta is None else classifier.with_beta(beta)

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        found = {
            "format": _FORMAT, "inputs": INPUTS, "top": self.top, "beta": self.beta, "about": dict(self.about),
            "output": list(self.output), "hidden": [list(unit) for unit in self.hidden],
        }  # fmt: skip
        part = Path(f"{path}.{os.getpid()}.part")
        try:
            part.write_text(_lines(found), encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def check_draft_filter(op: str, draft_filter: object) -> None:
    """Raises LongcatShapeError for anything but a DraftFilter or None."""
    legal = draft_filter is None or isinstance(draft_filter, DraftFilter)
    if not legal:
        expected = "a longcat_ops.DraftFilter or None"
        raise LongcatShapeError(message(op, "draft_filter", described(draft_filter), expected))


def _is_finite(value: object) -> bool:
    """A number that float32 holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= torch.finfo(torch.float32).max  # False for NaN


def _lines(found: dict[str, Any]) -> str:
    """JSON, an entry a line, of `hidden` a unit a line."""
    units = ",\n".join(f"    {json.dumps(unit)}" for unit in found.pop("hidden"))
    entries = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    return "{\n" + ",\n".join([*entries, f'  "hidden": [\n{units}\n  ]']) + "\n}\n"
