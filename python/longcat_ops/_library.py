"""Finds and loads the native library once; the only place that knows how. Imports no torch until `load` is called."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from . import _environment
from .errors import LongcatError, LongcatUnsupportedError

MIN_TORCH = (2, 11)
PACKAGE = Path(__file__).resolve().parent

# The version that the native library must have, and what runs once it is loaded. Higher layers set both, since this
# module may not import them.
package_version = ""
when_loaded: list[Callable[[ModuleType], None]] = []

_loaded: ModuleType | None = None
_failure: LongcatError | None = None


class LongcatLibraryError(LongcatUnsupportedError, ImportError):
    """torch or the native library is missing, too old or incomplete; the text ends with the command that repairs it."""


def load_if_torch_is_imported() -> None:
    """Lets `import torch, longcat_ops` alone register `torch.ops.longcat_ops`; a failure is raised on first use."""
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
    _environment.check()
    _check_emulator()
    _check_files()
    require_torch()
    module = _import_native()
    native_version = module.build_info()["version"]
    if native_version != package_version:
        raise LongcatLibraryError(
            f"longcat_ops {package_version} found native libraries of version {native_version} in {PACKAGE}.\n"
            f"  fix: {build_command()}"
        )
    for function in when_loaded:
        function(module)
    return module


def _check_emulator() -> None:
    if _environment.backend() == "emu" and not (PACKAGE / "liblongcat_emu.so").exists():
        raise LongcatUnsupportedError(
            "LONGCAT_OPS_BACKEND=emu: the host emulator is built in a source tree and is not part of this build.\n"
            "  fix: unset LONGCAT_OPS_BACKEND, or use cpu or reference; in a clone: python tools/build_emulator.py"
        )


def _check_files() -> None:
    missing = [name for name in ("_C", "liblongcat_torch") if not list(PACKAGE.glob(f"{name}*.so"))]
    if missing:
        raise LongcatLibraryError(
            f"longcat_ops in {PACKAGE} is not built: {' and '.join(missing)} missing.{_shadow_note()}\n"
            f"  fix: {build_command()}"
        )
    if cut_short := [path.name for path in PACKAGE.glob("*.so") if _is_cut_short(path)]:
        raise LongcatLibraryError(
            f"longcat_ops in {PACKAGE}: {', '.join(cut_short)} is cut short, as by an interrupted build or copy.\n"
            f"  fix: {build_command()}"
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
            f"  fix: {build_command()}"
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


def build_command() -> str:
    root = _source_root()
    if root is None:
        return f"{sys.executable} -m pip install --force-reinstall --no-deps --no-build-isolation longcat_ops"
    return f"cd {root} && ./run build   (or: {sys.executable} -m pip install --no-build-isolation -e .)"
