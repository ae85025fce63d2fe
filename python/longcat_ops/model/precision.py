"""Which projections are FP8: as stored, all, none, or by a layer-wise policy file."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import LongcatCheckpointError, LongcatShapeError, message

LEGAL = ("bf16", "fp8")


class Precision:
    """None keeps what is stored; "bf16" widens every FP8 weight to the model's dtype; "fp8" quantises every projection;
    a path names a JSON object {module or tensor name pattern: "bf16" | "fp8"}, first match wins, no match keeps what is
    stored.
    """

    def __init__(self, spec: str | Path | None = None) -> None:
        self.rules: list[tuple[str, bool]] = []
        if spec is None:
            return
        if spec in LEGAL:
            self.rules = [("*", spec == "fp8")]
            return
        file = Path(spec)
        if not file.is_file():
            expected = 'None, "bf16", "fp8" or the path of a JSON policy file'
            raise LongcatShapeError(message("from_pretrained", "precision", repr(str(spec)), expected))
        try:
            policy = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LongcatCheckpointError(f"precision policy {file} is not valid JSON: {error}") from error
        if not isinstance(policy, dict):
            raise LongcatCheckpointError(
                f"precision policy {file} holds a {type(policy).__name__}, expected an object of name patterns."
            )
        for pattern, kind in policy.items():
            if kind not in LEGAL:
                raise LongcatShapeError(
                    message("from_pretrained", "precision", f"{kind!r} for {pattern}", f"one of {LEGAL}")
                )
            self.rules.append((pattern, kind == "fp8"))

    def is_fp8(self, name: str, stored_fp8: bool) -> bool:
        """Whether the projection `name` (a published tensor name) is held as FP8."""
        module = name.removesuffix(".weight")
        for pattern, fp8 in self.rules:
            if fnmatchcase(module, pattern) or fnmatchcase(name, pattern):
                return fp8
        return stored_fp8
