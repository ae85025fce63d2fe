"""Finds and loads the native library once; the only place that knows how. Imports no torch until `load` is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import LongcatError, LongcatShapeError, LongcatUnsupportedError
from .ops.registry import Described

if TYPE_CHECKING:
    import torch

MIN_TORCH = (2, 11)
PACKAGE = Path(__file__).resolve().parent
BACKENDS = ("reference", "cpu", "emu", "cuda")

# Every environment variable of the library, with its legal values or the kind of value.
VARIABLES: dict[str, tuple[str, ...] | str] = {
    "LONGCAT_OPS_BACKEND": BACKENDS,
    "LONGCAT_OPS_COMM": "text",
    "LONGCAT_OPS_TIMEOUT_S": "seconds",
    "LONGCAT_OPS_LOG": ("off", "info", "config", "launch"),
    "LONGCAT_OPS_CPU_ISA": ("baseline", "avx2", "avx512"),
}
_PREFIX = "LONGCAT_OPS_"
_environment = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
_loaded: ModuleType | None = None
_failure: LongcatError | None = None


class LongcatLibraryError(LongcatUnsupportedError, ImportError):
    """torch or the native library is missing, too old or incomplete; the text ends with the command that helps."""


def warn_unknown_variables() -> None:
    """Warns of a `LONGCAT_OPS_*` variable that nothing reads, naming the nearest that exists."""
    for name in sorted(_environment.keys() - VARIABLES.keys()):
        import difflib

        near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.0)[0]
        warnings.warn(f"environment variable {name} is not known to longcat_ops; did you mean {near}?", stacklevel=3)


def backend() -> str:
    """Where CPU tensors go: LONGCAT_OPS_BACKEND as it was when longcat_ops was imported."""
    return _environment.get("LONGCAT_OPS_BACKEND") or "cpu"


def load_if_torch_is_imported() -> None:
    """So that `import torch, longcat_ops` alone registers `torch.ops.longcat_ops`; a failure waits for first use."""
    if hasattr(sys.modules.get("torch"), "ops"):
        with contextlib.suppress(Exception):
            load()


def load() -> ModuleType:
    """The `_C` module, with `torch.ops.longcat_ops` registered. Raises `LongcatLibraryError`, the same on each call."""
    global _loaded, _failure
    if _loaded is None:
        if _failure is not None:
            raise _failure.with_traceback(None)
        try:
            _loaded = _load()
        except LongcatError as error:
            _failure = error
            raise
    return _loaded


def _load() -> ModuleType:
    _check_variables()
    _check_files()
    require_torch()
    module = _import_native()
    # `__version__` is defined by the package itself, which is fully imported by the time anything is used.
    python_version = importlib.import_module(__package__).__version__
    native_version = module.build_info()["version"]
    if native_version != python_version:
        raise LongcatLibraryError(
            f"longcat_ops {python_version} found native libraries of version {native_version} in {PACKAGE}.\n"
            f"  fix: {_build_command()}"
        )
    from .ops import registration, tensors

    module.set_fake_types(*tensors.FAKES)
    registration.register(backend())
    return module


def _check_variables() -> None:
    for name, legal in VARIABLES.items():
        value = _environment.get(name)
        if not value:
            continue
        if isinstance(legal, tuple) and value not in legal:
            raise LongcatShapeError(f"environment variable {name} is {value!r}, expected one of {', '.join(legal)}.")
        if legal == "seconds" and not _is_positive_number(value):
            raise LongcatShapeError(f"environment variable {name} is {value!r}, expected a positive number of seconds.")
    if backend() == "emu" and not (PACKAGE / "liblongcat_emu.so").exists():
        raise LongcatUnsupportedError(
            "LONGCAT_OPS_BACKEND=emu: the host emulator is built in a source tree and is not part of this build.\n"
            "  fix: unset LONGCAT_OPS_BACKEND, or use cpu or reference; in a clone: python tools/build_emulator.py"
        )


def _is_positive_number(value: str) -> bool:
    try:
        return 0 < float(value) < float("inf")
    except ValueError:
        return False


def _check_files() -> None:
    missing = [name for name in ("_C", "liblongcat_torch") if not list(PACKAGE.glob(f"{name}*.so"))]
    if missing:
        raise LongcatLibraryError(
            f"longcat_ops in {PACKAGE} is not built: {' and '.join(missing)} missing.{_shadow_note()}\n"
            f"  fix: {_build_command()}"
        )
    if cut_short := [path.name for path in PACKAGE.glob("*.so") if _is_cut_short(path)]:
        raise LongcatLibraryError(
            f"longcat_ops in {PACKAGE}: {', '.join(cut_short)} is cut short, as by an interrupted build or copy.\n"
            f"  fix: {_build_command()}"
        )


def import_module(name: str) -> ModuleType:
    """The module `longcat_ops.<name>`, which needs torch. Raises `LongcatLibraryError` where torch does not fit."""
    require_torch()
    return importlib.import_module(f"{__package__}.{name}")


def require_torch() -> None:
    """Raises `LongcatLibraryError` with the remedy where torch is missing, broken or too old."""
    wanted = ".".join(map(str, MIN_TORCH))
    try:
        import torch
    except (ImportError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        found = "torch is not installed" if absent else f"torch cannot load: {error}"
        raise LongcatLibraryError(
            f"longcat_ops needs torch >= {wanted}, and in {sys.executable} {found}.\n"
            f'  fix: {sys.executable} -m pip install "torch>={wanted}"'
        ) from error
    found = torch.__version__
    if parse_version(found) < MIN_TORCH:
        raise LongcatLibraryError(
            f"longcat_ops needs torch >= {wanted}, found torch {found} in {Path(torch.__file__).parent}.\n"
            f'  fix: {sys.executable} -m pip install "torch>={wanted}"'
        )


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor of a version such as "2.11.0a0+git1234"."""
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _import_native() -> ModuleType:
    try:
        return importlib.import_module(f"{__package__}._C")
    except ImportError as error:
        tags = ", ".join(sorted(path.name for path in PACKAGE.glob("_C*.so")))
        raise LongcatLibraryError(
            f"the native libraries of longcat_ops in {PACKAGE} cannot be loaded: {error}\n"
            f"  found: {tags}; this Python is {sys.implementation.cache_tag}\n"
            f"  fix: {_build_command()}"
        ) from error


def _is_cut_short(path: Path) -> bool:
    """Whether an ELF file ends before its section headers, which linkers put last. Loading one can kill the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64:
        return True
    offset = int.from_bytes(header[40:48], "little")
    entry_size, count = (int.from_bytes(header[at : at + 2], "little") for at in (58, 60))
    return offset + entry_size * count > path.stat().st_size


def _source_root() -> Path | None:
    root = PACKAGE.parent.parent
    return root if (root / "CMakeLists.txt").is_file() else None


def _shadow_note() -> str:
    """A hint when this is the source tree and an installed copy exists further down sys.path."""
    if _source_root() is None:
        return ""
    for entry in sys.path:
        other = Path(entry or ".").resolve() / PACKAGE.name
        if other != PACKAGE and list(other.glob("_C*.so")):
            return f" An installed copy is in {other}, but the source tree comes first on sys.path."
    return ""


def _build_command() -> str:
    root = _source_root()
    if root is None:
        return f"{sys.executable} -m pip install --force-reinstall --no-deps --no-build-isolation longcat_ops"
    return f"cd {root} && ./run build   (or: {sys.executable} -m pip install --no-build-isolation -e .)"


def describe(tensor: torch.Tensor) -> Described:
    """The descriptor of a tensor, its address left out."""
    device = tensor.device
    return Described(str(tensor.dtype), tuple(tensor.shape), tensor.stride(), device.type, device.index or 0, 0)


def find_problem(op: str, *arguments: Any) -> tuple[str, str, str]:
    """(code, reason, fix) of the C++ check of `op` for its schema arguments, outputs optional; empty when legal."""
    return load().check(op, *arguments)


def require(op: str, *arguments: Any) -> None:
    """The check as a kernel makes it: a RuntimeError whose text starts with the code, as C++ raises it."""
    code, reason, fix = find_problem(op, *arguments)
    if code:
        raise RuntimeError(f"[{code}] {reason}" + (f"\n  fix: {fix}" if fix else ""))


def refuse(op: str, flatten: Callable[..., tuple[Any, ...]], args: tuple, kwargs: dict, error: Exception) -> NoReturn:
    """Raises what is wrong with the arguments of a failed call, or `error` itself if nothing is.

    flatten: from the call's arguments to those of the schema. An error of the check inside `torch.ops.longcat_ops`
    becomes the exception its code names.
    """
    if isinstance(error, LongcatError):
        raise error
    text = str(error)
    for code in ("LC-SHAPE", "LC-UNSUPPORTED"):
        marker = f"[{code}] "
        if marker in text:
            raise _exception_class(code)(text.split(marker, 1)[1]) from None
    from .ops.arguments import schema_arguments

    try:
        arguments = schema_arguments(op, flatten, args, kwargs)
    except TypeError:  # the call itself is malformed; Python's own text says how
        raise error from None
    check(op, *arguments)
    raise error


def check(op: str, *arguments: Any) -> None:
    """Raises `LongcatShapeError` or `LongcatUnsupportedError` if the C++ check of `op` refuses the arguments."""
    code, reason, fix = find_problem(op, *arguments)
    if code:
        raise _exception_class(code)(f"{reason}\n  fix: {fix}" if fix else reason)


def _exception_class(code: str) -> type[LongcatError]:
    return LongcatShapeError if code == "LC-SHAPE" else LongcatUnsupportedError
