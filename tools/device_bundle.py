"""Packs what a machine with a GPU needs to check this source tree without compiling, into .device (git-ignored).

    python tools/device_bundle.py                              # for this interpreter's CPython
    python tools/device_bundle.py --python /usr/bin/python3.12 # for another one: it needs headers, but no torch

The libraries are those of the last `./run build`, which must have found nvcc. Tests and benches are not packed: they
are part of the source tree, and the bundle is only good for the tree it was made of. On a device with another CPython
the check compiles _C, which takes seconds, and needs g++, pybind11 and the headers of that CPython there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

from conformance.library import build_for_device
from device_check import traced
from device_check.environment import BUNDLE, CORE, MODULE_PARTS, ROOT, bundle, load_problem, source_files, source_hash
from device_check.module import Interpreter, compile_module

PACKAGE = ROOT / "python" / "longcat_ops"
LIBRARIES = ("liblongcat_kernels.so", "liblongcat_torch.so")


def fail(text: str) -> None:
    raise SystemExit(f"device_bundle: {text}")


def interpreter_facts(python: str) -> Interpreter:
    code = (
        "import json, sys, sysconfig; print(json.dumps({'suffix': sysconfig.get_config_var('EXT_SUFFIX'), "
        "'include': sysconfig.get_path('include'), 'version': sys.version.split()[0]}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{python} does not run: {done.stderr.strip()[-300:]}")
    return Interpreter(**json.loads(done.stdout))


def build_tree() -> Path:
    """The newest build tree that has what _C is linked with."""
    cores = [path for path in ROOT.glob(f"build/*/{CORE}") if (path.parent / LIBRARIES[0]).exists()]
    if not cores:
        fail(f"there is no build/*/{CORE} beside a {LIBRARIES[0]}: ./run build")
    return max(cores, key=lambda path: path.stat().st_mtime).parent


def pack_module(folder: Path, package: Path, python: Interpreter) -> None:
    """Packs _C for `python`, and the parts that another interpreter needs to compile its own."""
    tree, parts = build_tree(), folder / MODULE_PARTS
    shutil.copytree(tree / "generated", parts / "generated", ignore=shutil.ignore_patterns("emu"))
    shutil.copy2(tree / CORE, parts)
    own = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if own.name == f"_C{python.suffix}" and own.exists():
        shutil.copy2(own, package)
    else:
        try:
            compile_module(python, package, parts / CORE, parts / "generated")
        except RuntimeError as error:
            fail(str(error))


def pack_pytest_plugin(folder: Path) -> None:
    """Packs pytest-benchmark (pure Python), which benches need and the device may lack."""
    for file in distribution("pytest-benchmark").files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = folder / "python" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), target)


def pack(folder: Path, python: str) -> dict:
    """Writes the bundle and returns its manifest."""
    missing = [name for name in LIBRARIES if not (PACKAGE / name).exists()]
    if missing:
        fail(f"{' and '.join(missing)} not in {PACKAGE.relative_to(ROOT)}: ./run build with nvcc on PATH")
    newest = max(source_files(ROOT, ("cmake", "cpp", "cuda")), key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > min((PACKAGE / name).stat().st_mtime for name in LIBRARIES):
        fail(f"the libraries are older than {newest.relative_to(ROOT)}: ./run build")
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "python" / "longcat_ops"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in LIBRARIES:
        shutil.copy2(PACKAGE / name, package)
    facts = interpreter_facts(python)
    pack_module(folder, package, facts)
    pack_pytest_plugin(folder)
    build_for_device(folder)
    traced.build(folder)
    subprocess.run(["strip", "--strip-unneeded", *folder.rglob("*.so")], check=True)  # names only a debugger reads
    shutil.rmtree(folder / "generated", ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    manifest = {"python": facts.version, "sources": source_hash(), "bytes": size}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


WITHOUT_TORCH = """
import ctypes, importlib, sys, longcat_ops
importlib.import_module("longcat_ops._C").build_info()
for library in sys.argv[1:]:
    ctypes.CDLL(library)
"""


def pack_problem(folder: Path, python: str) -> str:
    """Why the bundle does not load under `python`; if that has no torch, with this interpreter's torch libraries."""
    import torch

    packed = bundle(folder)
    has_torch = subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    if has_torch:
        return load_problem(packed, python)
    variables = packed.variables() | {"LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    command = [python, "-c", WITHOUT_TORCH, str(packed.conformance), str(packed.traced)]
    done = subprocess.run(command, env=os.environ | variables, cwd="/", capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()[-500:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter of the device's CPython version")
    parser.add_argument("--out", type=Path, default=BUNDLE)
    options = parser.parse_args(arguments)
    manifest = pack(options.out.resolve(), options.python)
    if problem := pack_problem(options.out.resolve(), options.python):
        fail(f"what was packed does not load under {options.python}: {problem}")
    print(f"{options.out}: {manifest['bytes'] / 1e6:.1f} MB for Python {manifest['python']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
