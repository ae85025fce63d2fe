"""What is known of stored weights before one is read: names and dtypes from files if there are any, else the config."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from ..model import config_keys, files
from ..model.config import LongcatFlashConfig
from ..model.source import SCALE_SUFFIX
from .checkpoint import INDEX, Header, read_index

# Names of the list of modules that stay as they are: transformers, vLLM, compressed-tensors, the published files.
_EXCEPTIONS = ("modules_to_not_convert", "ignored_layers", "ignore", "disable_quant_module")
_EXPERT = re.compile(r"\.experts\.\d+(?=\.|$)")


class Declared:
    """Which projections a quantization_config says are FP8. `doubts` says what it leaves open."""

    def __init__(self, raw: dict[str, Any] | None) -> None:
        raw = raw or {}
        self.doubts: list[str] = []
        self.targets = self._targets(raw)
        self.exceptions: set[str] = set()
        for key in _EXCEPTIONS:
            entries = raw.get(key) or []
            if isinstance(entries, list) and all(isinstance(e, str) for e in entries):
                self.exceptions.update(e.removesuffix(".weight") for e in entries)
            else:
                self.doubts.append(f"cannot tell what {key} excepts: {str(entries)[:80]} is no list of names")
        self.patterns = [e for e in self.exceptions if e.startswith("re:") or "*" in e or "?" in e]

    def _targets(self, raw: dict[str, Any]) -> list[str]:
        """Entries of what is FP8; "Linear" is every projection."""
        method = raw.get("quant_method")
        if not raw:
            return []
        if method == "fp8" and raw.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn", None):
            if raw.get("weight_block_size", [128, 128]) != [128, 128]:
                self.doubts.append(
                    f"weight_block_size is {raw['weight_block_size']}; the loader reads [128, 128] alone"
                )
            return ["Linear"]
        groups = raw.get("config_groups")
        if method == "compressed-tensors" and isinstance(groups, dict):
            found = [group for group in groups.values() if _is_fp8_group(group)]
            if len(found) == len(groups):
                self.doubts.append("compressed-tensors names its scales otherwise; the loader reads `_scale_inv` alone")
                return [target for group in found for target in group["targets"]]
        self.doubts.append(
            f"cannot tell which projections are quantised: quantization_config of quant_method {method!r}; "
            "they are counted as if none were"
        )
        return []

    def is_fp8(self, name: str) -> bool:
        """Whether the projection `name` (a published tensor name) is said to be FP8."""
        module = name.removesuffix(".weight")
        return any(t == "Linear" or _fits(t, module) for t in self.targets) and not self._excepting(module)

    def notes(self, names: Iterable[str]) -> list[str]:
        """`doubts`, and the exceptions that match none of these tensors (expert 0 stands for all)."""
        if not self.targets:
            return self.doubts
        used = {entry for name in names for entry in self._excepting(name.removesuffix(".weight"))}
        # Those of other experts count as named when expert 0 is excepted beside them.
        open_ = [e for e in sorted(self.exceptions - used) if _EXPERT.sub(".experts.0", e) not in used]
        if not open_:
            return self.doubts
        return [
            *self.doubts,
            f"cannot tell what {len(open_)} exceptions of quantization_config name, such as {open_[0]}",
        ]

    def _excepting(self, module: str) -> set[str]:
        """The exceptions that hold for a module: its whole name, or successive parts of it."""
        parts = module.split(".")
        inside = {".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
        return inside & self.exceptions | {p for p in self.patterns if _fits(p, module)}


def _is_fp8_group(group: object) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        return False
    targets = group.get("targets")
    named = isinstance(targets, list) and all(isinstance(t, str) for t in targets)
    return named and (group["weights"].get("num_bits"), group["weights"].get("type")) == (8, "float")


def _fits(entry: str, module: str) -> bool:
    if not entry.startswith("re:"):
        return fnmatchcase(module, entry) or f".{entry}." in f".{module}."
    try:
        return re.match(entry[3:], module) is not None
    except re.error:
        return False


@dataclass(frozen=True)
class Stored:
    """What is known of the stored tensors: names (None: nothing), their files, their dtype and which are FP8."""

    names: frozenset[str] | None
    file_of: dict[str, str]
    dtype: torch.dtype
    is_fp8: Callable[[str], bool]
    note: str
    declared: Declared  # what the config says of the precision; nothing, where the names do

    def has_mtp(self, config: LongcatFlashConfig) -> bool:
        wanted = config.num_nextn_predict_layers
        if wanted is not None:
            return bool(wanted)
        return self.names is None or any(n.startswith("model.mtp.") for n in self.names)

    def has(self, name: str) -> bool:
        return self.names is None or name in self.names


def read_stored(path: Path, config: LongcatFlashConfig) -> Stored:
    """From a checkpoint folder's index or headers, or from the config alone. Raises LongcatCheckpointError."""
    dtype = getattr(torch, config_keys.dtype_name("torch_dtype", config.torch_dtype) or "bfloat16")
    dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype  # only projections are FP8
    folder = files.is_folder(path)
    if folder and files.exists(path / INDEX):
        file_of = read_index(path / INDEX)
        return _from_names(file_of, dtype, f"names from {INDEX} ({len(file_of)} tensors)")
    if folder and files.weight_files(path):
        header = Header(path)
        file_of = {n: f.name for n, f in header.file_of.items()}
        note = f"names from the headers of {len(header.files)} file(s), {len(file_of)} tensors"
        return _from_names(file_of, header.dtype.get("model.embed_tokens.weight", dtype), note)
    declared = Declared(config.quantization_config)
    assumed = "FP8 projections (quantization_config)" if declared.targets else str(dtype).removeprefix("torch.")
    note = f"config alone: stored precision taken as {assumed}"
    if config.num_nextn_predict_layers is None:
        note += ", with an MTP head"
    return Stored(None, {}, dtype, declared.is_fp8, f"{note}, MTP embedding a tensor of its own", declared)


def _from_names(file_of: dict[str, str], dtype: torch.dtype, note: str) -> Stored:
    names = frozenset(file_of)
    scales = (SCALE_SUFFIX, "_scale")  # compressed-tensors has the other name; the loader will refuse it
    return Stored(names, file_of, dtype, lambda name: any(name + end in names for end in scales), note, Declared(None))
