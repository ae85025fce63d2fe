"""Streaming safetensors checkpoints under the published tensor names, checked whole before a byte is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import LongcatCheckpointError, LongcatUnsupportedError
from ..model import files
from ..model.shares import ALONE, Shares
from ..model.source import SCALE_SUFFIX, Expected, Recorder, Source, scale_shape

if TYPE_CHECKING:
    from ..model.config import LongcatFlashConfig

INDEX = "model.safetensors.index.json"
_EXPERT = re.compile(r"model\.layers\.(0|[1-9]\d{0,8})\.mlp\.experts\.(0|[1-9]\d{0,8})\.(gate|up|down)_proj\.weight")
_MTP = "model.mtp."
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}


def read_index(file: Path) -> dict[str, str]:
    """Tensor name -> file of a folder's index. Raises LongcatCheckpointError if it is none, or leads out of it."""
    try:
        entries = files.read_object(file, files.MAX_INDEX)["weight_map"]
        if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries.values()):
            raise TypeError("weight_map must give each tensor a file name")
    except (LongcatCheckpointError, KeyError, TypeError) as error:
        raise LongcatCheckpointError(f"{file} is not an index: expected JSON with `weight_map` ({error}).") from error
    for name in entries.values():
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise LongcatCheckpointError(f"{file} names {files.shown(name)}, expected a file of the folder.")
    return {tensor: str(PurePath(name)) for tensor, name in entries.items()}


def expected_tensors(config: LongcatFlashConfig, *, mtp: bool, mtp_embedding: bool = False,
                     experts: Sequence[int] | None = None, tp: Shares = ALONE) -> dict[str, Expected]:  # fmt: skip
    """Every tensor a network of this configuration loads, by published name, found by building it without weights."""
    from ..model.model import LongcatFlashForCausalLM

    known = {"model.mtp.norm.weight": mtp, "model.mtp.embed_tokens.weight": mtp_embedding}
    recorder = Recorder(lambda name: known.get(name, False), experts=experts, tp=tp)
    LongcatFlashForCausalLM(recorder, config)
    return recorder.expected


class Header:
    """Names, shapes, dtypes and files of all tensors of a folder, read from the safetensors headers alone."""

    def __init__(self, path: str | Path) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise LongcatUnsupportedError(
                "loading a checkpoint needs the package safetensors, which is not installed.\n"
                "  fix: pip install 'longcat_ops[model]'"
            ) from error
        self._open, self._error = safe_open, SafetensorError
        self.path = Path(path)
        if not files.is_folder(self.path):
            raise LongcatCheckpointError(
                f"{files.shown(path)} is not a folder; a checkpoint is a folder with config.json and *.safetensors."
            )
        self.file_of: dict[str, Path] = {}
        self.shape: dict[str, tuple[int, ...]] = {}
        self.dtype: dict[str, torch.dtype] = {}
        self.files = self._files()
        for file in self.files:
            self._scan(file)
        self._check_index()

    def _files(self) -> list[Path]:
        index = self.path / INDEX
        self.indexed = read_index(index) if files.exists(index) else None
        if self.indexed is None:
            found = files.weight_files(self.path)
            if not found:
                raise LongcatCheckpointError(f"{self.path} holds no {files.WEIGHTS} file.")
            for file in found:
                files.require_regular(file)
            return found
        names = sorted(set(self.indexed.values()))
        missing = [n for n in names if not files.exists(self.path / n)]
        if missing:
            listed = ", ".join(map(files.shown, missing[:4])) + (" ..." if len(missing) > 4 else "")
            raise LongcatCheckpointError(
                f"{index} names {len(names)} files, {len(missing)} of them are missing: {listed}"
            )
        for name in names:
            files.require_regular(self.path / name)
        return [self.path / n for n in names]

    def _scan(self, file: Path) -> None:
        size = files.require_regular(file).st_size
        try:
            with self._open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    view = handle.get_slice(name)
                    if name in self.file_of:
                        raise LongcatCheckpointError(
                            f"tensor {name} is in {self.file_of[name].name} and in {file.name}."
                        )
                    kind = view.get_dtype()
                    if kind not in _DTYPES:
                        raise LongcatCheckpointError(
                            f"{file}: tensor {name} has dtype {kind}, expected one of {sorted(_DTYPES)}."
                        )
                    self.file_of[name], self.shape[name] = file, tuple(view.get_shape())
                    self.dtype[name] = _DTYPES[kind]
        except (self._error, OSError) as error:
            raise LongcatCheckpointError(
                f"{file} ({size} bytes) is not a complete safetensors file: {error}.\n"
                "  fix: copy or download the file again; its header and its length must agree"
            ) from error

    def _check_index(self) -> None:
        absent = [n for n in self.indexed or () if n not in self.file_of]
        if absent:
            where = self.indexed[absent[0]]
            raise LongcatCheckpointError(
                f"the index places {absent[0]} in {where}, which does not hold it ({len(absent)} such names)."
            )

    def num_bytes(self, name: str) -> int:
        count = 1
        for size in self.shape[name]:
            count *= size
        return count * self.dtype[name].itemsize


def check_names(header: Header, expected: dict[str, Expected], ignored: Iterable[str]) -> None:
    """Raise one LongcatCheckpointError with every missing, unexpected and mis-shaped tensor and its nearest name."""
    ignored = set(ignored)
    no_mtp = not any(n.startswith(_MTP) for n in header.shape)
    scaled = {n: expected.get(n.removesuffix(SCALE_SUFFIX)) for n in header.shape if n.endswith(SCALE_SUFFIX)}
    pairs = {n: scale_shape(*e.shape) for n, e in scaled.items() if e is not None and e.quantisable}
    problems: list[tuple[str, str, Iterable[str]]] = []  # text, then a name and where to look for its nearest
    unexpected = [n for n in header.shape if n not in expected and n not in pairs and n not in ignored]
    for name, want in expected.items():
        got = header.shape.get(name)
        if got is None and no_mtp and name.startswith(_MTP):
            continue
        if got is None:
            problems.append((f"missing {name} {list(want.shape)}", name, unexpected))
            continue
        fp8, where = header.dtype[name] == torch.float8_e4m3fn, f"{header.file_of[name].name}: {name}"
        if got != want.shape:
            problems.append((f"{where} has shape {list(got)}, expected {list(want.shape)}", name, ()))
        elif fp8 and not want.quantisable:
            problems.append((f"{where} is float8_e4m3fn, expected bf16, f16 or f32 (never quantised)", name, ()))
        elif fp8 and name + SCALE_SUFFIX not in header.shape:
            problems.append((f"{where} is float8_e4m3fn, but {name}{SCALE_SUFFIX} is missing", name, ()))
        elif not fp8 and want.quantisable and name + SCALE_SUFFIX in header.shape:
            problems.append((f"{where} has scales but is {header.dtype[name]}, expected float8_e4m3fn", name, ()))
    for name, want in pairs.items():
        got = header.shape.get(name)
        if got is not None and got != want:
            where = f"{header.file_of[name].name}: {name}"
            problems.append((f"{where} has shape {list(got)}, expected {list(want)} (128x128 blocks)", name, ()))
    if no_mtp and (promised := sum(name.startswith(_MTP) for name in expected)):
        text = f"the MTP head that num_nextn_predict_layers promises is absent, all {promised} tensors of it"
        problems.append((f"{text}\n  fix: num_nextn_predict_layers: 0 in config.json goes without it", "", ()))
    known = [*expected, *pairs]
    problems += [(f"unexpected {n} {list(header.shape[n])}", n, known) for n in unexpected]
    if problems:
        # Nearest names only for what is shown: looking one up among tens of thousands takes a second.
        shown = "\n  ".join(text + _nearest(name, among) for text, name, among in problems[:12]) + (
            f"\n  ... and {len(problems) - 12} more" if len(problems) > 12 else ""
        )
        raise LongcatCheckpointError(
            f"{header.path} does not match its config.json: {len(problems)} problems.\n  {shown}"
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known)[:20000], n=1, cutoff=0.8)
    return f" (nearest known name: {near[0]})" if near else ""


class CheckpointSource(Source):
    """Reads each tensor when the model asks for it; experts of other ranks are never touched."""

    def __init__(self, path: str | Path, config: LongcatFlashConfig, dtype: torch.dtype | None = None, *,
                 device: torch.device | str = "cpu", precision: str | Path | None = None,
                 experts: Sequence[int] | None = None, tp: Shares = ALONE,
                 progress: bool | None = None) -> None:  # fmt: skip
        self.header = header = Header(path)
        stored = header.dtype.get("model.embed_tokens.weight", torch.bfloat16)
        super().__init__(dtype or stored, device, precision, experts, tp)
        wanted = config.num_nextn_predict_layers
        self.mtp = any(n.startswith(_MTP) for n in header.shape) if wanted is None else bool(wanted)
        parts = dict(mtp=self.mtp, mtp_embedding="model.mtp.embed_tokens.weight" in header.shape)
        self.expected = expected_tensors(config, **parts, experts=experts, tp=tp)
        check_names(header, self.expected, self._not_ours(config))
        everyones = self.expected if experts is None else expected_tensors(config, **parts)
        self.precision.check({name: want.can_be_fp8 for name, want in everyones.items()})
        self.check_fp8(self.expected, lambda name: header.dtype[name] == torch.float8_e4m3fn)
        total = sum(self._bytes(name) for name in header.shape)
        self._stack, self._handles = ExitStack(), {}
        self._bar = _progress_bar(total, progress)

    def _not_ours(self, config: LongcatFlashConfig) -> list[str]:
        """Legal names that are not read: other ranks' experts, an unwanted MTP head, and what transformers writes for
        the zero experts, gate and up (but no down) of ids N .. N + Z - 1.
        """
        shape, width = self.header.shape, (config.expert_ffn_hidden_size, config.hidden_size)
        found = [name for name in shape if name.startswith(_MTP) and not self.mtp]
        for name in shape:
            match = _EXPERT.fullmatch(name.removesuffix(SCALE_SUFFIX))
            if not match or int(match[1]) >= config.num_layers:
                continue
            expert, down = int(match[2]), f"{name[: match.start(3)]}down_proj.weight"
            if expert < config.n_routed_experts:
                if self.expert_range is not None and expert not in self.expert_range:
                    found.append(name)
            elif expert < config.num_experts and match[0] == name and shape[name] == width and down not in shape:
                found.append(name)
        return found

    def has(self, name: str) -> bool:
        if name.startswith(_MTP) and not self.mtp:
            return False
        return name in self.header.shape

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._read(name, self._file(name).get_tensor(name))

    def fetch_part(self, name: str, shape: tuple[int, int], rows: slice, cols: slice) -> Tensor:
        """Reads these alone."""
        if (rows, cols) == (slice(0, shape[0]), slice(0, shape[1])):
            return self.fetch(name, shape)
        return self._read(name, self._file(name).get_slice(name)[rows, cols])

    def _file(self, name: str) -> Any:
        file = self.header.file_of[name]
        if file not in self._handles:
            self._handles[file] = self._stack.enter_context(self.header._open(file, framework="pt"))
        return self._handles[file]

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        self._bar.set_postfix_str(name.removesuffix(".weight"), refresh=False)
        self._bar.update(tensor.nbytes)
        return tensor

    def _bytes(self, name: str) -> int:
        """Bytes of a stored tensor that this rank reads, but for the ends of FP8 blocks."""
        want = self.expected.get(name.removesuffix(SCALE_SUFFIX))
        return int(self.header.num_bytes(name) * want.share) if want else 0

    def close(self) -> None:
        self._bar.close()
        self._stack.close()
        self._handles.clear()


class _NoBar:
    def set_postfix_str(self, *_: object, **__: object) -> None: ...

    def update(self, _: int) -> None: ...

    def close(self) -> None: ...


def _progress_bar(total: int, progress: bool | None) -> object:
    """Bytes over read + convert; None: only on a terminal, and only if tqdm is installed."""
    if progress is False:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    disable = None if progress is None else False
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="loading", disable=disable)
