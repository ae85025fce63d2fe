"""Which projections are FP8: as stored, all, none, or by a layer-wise policy file."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import LongcatShapeError, message
from . import files

LEGAL = ("bf16", "fp8")


class Precision:
    """None keeps what is stored; "bf16" widens every FP8 weight to the model's dtype; "fp8" quantises every projection;
    a path names a JSON object {module or tensor name pattern: "bf16" | "fp8"}, first match wins, no match keeps what is
    stored. of: the call and the argument that errors name.
    """

    def __init__(
        self, spec: str | Path | None = None, *, of: tuple[str, str] = ("from_pretrained", "precision")
    ) -> None:
        self._of = of
        self.rules: list[tuple[str, bool]] = []
        if spec is None:
            return
        if isinstance(spec, str) and spec in LEGAL:
            self.rules = [("*", spec == "fp8")]
            return
        if not isinstance(spec, str | Path) or not files.exists(spec):
            got = repr(files.shown(spec)) if isinstance(spec, str | Path) else f"a {type(spec).__name__}"
            raise self._refuse(got, 'None, "bf16", "fp8" or the path of a JSON policy file')
        for pattern, kind in files.read_object(spec).items():
            if not isinstance(kind, str) or kind not in LEGAL:
                raise self._refuse(f"{kind!r} for {pattern}", f"one of {LEGAL}")
            self.rules.append((pattern, kind == "fp8"))

    def check(self, can_be_fp8: Mapping[str, bool]) -> None:
        """Raises LongcatShapeError for a rule that fits no projection of a network with these tensors.

        A rule that asks for bf16 where nothing else is possible is no mistake.
        """
        for pattern, fp8 in self.rules:
            if pattern == "*":
                continue
            fitting = [name for name in can_be_fp8 if _fits(pattern, name)]
            if any(can_be_fp8[name] for name in fitting) or (fitting and not fp8):
                continue
            if fitting:
                raise self._refuse(
                    f'"fp8" for {pattern}, which is {fitting[0]}', "a projection that can be FP8",
                    "norms, routers, embeddings and the head are never quantised, kv_b_proj is absorbed dense",
                )  # fmt: skip
            fix = "patterns are shell wildcards over whole names, such as *.self_attn.* or *.experts.*"
            raise self._refuse(
                f"a policy whose pattern {pattern!r} fits no projection", "names of this network", fix=fix
            )

    def is_fp8(self, name: str, stored_fp8: bool) -> bool:
        """Whether the projection `name` (a published tensor name) is held as FP8."""
        return next((fp8 for pattern, fp8 in self.rules if _fits(pattern, name)), stored_fp8)

    def _refuse(self, got: str, expected: str, context: str | None = None, fix: str | None = None) -> LongcatShapeError:
        return LongcatShapeError(message(*self._of, got, expected, context, fix))


def _fits(pattern: str, name: str) -> bool:
    """Whether a pattern names the tensor or its module."""
    return fnmatchcase(name.removesuffix(".weight"), pattern) or fnmatchcase(name, pattern)
