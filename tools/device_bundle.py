"""Packs what a machine with a GPU needs to check this source tree without compiling, into .device (git-ignored).

    python tools/device_bundle.py                              # for this interpreter's CPython
    python tools/device_bundle.py --python /usr/bin/python3.12 # for another one: it needs headers, but no torch

The libraries are those of the last `./run build`, which must have found nvcc. Tests and benches are not packed: they
are part of the source tree, and the bundle is only good for the tree it was made of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from conformance.library import build_for_device
from device_check.environment import BUNDLE, ROOT, bundle, load_problem, source_files, source_hash

PACKAGE = ROOT / "python" / "longcat_ops"
LIBRARIES = ("liblongcat_kernels.so", "liblongcat_torch.so")


def fail(text: str) -> None:
    raise SystemExit(f"device_bundle: {text}")


def interpreter_facts(python: str) -> dict:
    code = (
        "import json, sys, sysconfig; print(json.dumps({'suffix': sysconfig.get_config_var('EXT_SUFFIX'), "
        "'include': sysconfig.get_path('include'), 'version': sys.version.split()[0]}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{python} does not run: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def compile_module(facts: dict, package: Path) -> Path:
    """_C for another CPython. Its source is small and knows no torch; the rest comes from the last build."""
    if not (Path(facts["include"]) / "Python.h").exists():
        fail(f"Python {facts['version']} has no headers in {facts['include']}: install its dev package")
    cores = [path for path in ROOT.glob("build/*/liblongcat_core.a") if (path.parent / LIBRARIES[0]).exists()]
    trees = sorted(cores, key=lambda path: path.stat().st_mtime)
    if not trees:
        fail(f"there is no build/*/liblongcat_core.a beside a {LIBRARIES[0]}: ./run build")
    import pybind11

    target = package / f"_C{facts['suffix']}"
    includes = [
        facts["include"],
        pybind11.get_include(),
        ROOT / "cpp",
        ROOT / "cuda",
        ROOT / "cuda/include",
        trees[-1].parent / "generated",
    ]
    command = [shutil.which("g++") or "c++", "-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += ["-DLONGCAT_WITH_CUDA", *(f"-I{path}" for path in includes), ROOT / "cpp/bindings/module.cpp", trees[-1]]
    command += [f"-L{package}", "-Wl,--no-as-needed", "-llongcat_torch", "-llongcat_kernels", "-Wl,--as-needed"]
    command += ["-Wl,--exclude-libs,ALL", "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN", "-o", target]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"_C for Python {facts['version']} does not compile:\n{done.stderr[-3000:]}")
    return target


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
    own = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if own.name == f"_C{facts['suffix']}" and own.exists():
        shutil.copy2(own, package)
    else:
        compile_module(facts, package)
    build_for_device(folder)
    shutil.rmtree(folder / "generated", ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    manifest = {"python": facts["version"], "sources": source_hash(), "bytes": size}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


WITHOUT_TORCH = """
import ctypes, importlib, sys, longcat_ops
importlib.import_module("longcat_ops._C").build_info()
ctypes.CDLL(sys.argv[1])
"""


def pack_problem(folder: Path, python: str) -> str:
    """Whether what is packed loads under `python`; where that has no torch, over the libraries of this one's torch."""
    import torch

    packed = bundle(folder)
    has_torch = subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    if has_torch:
        return load_problem(packed, python)
    variables = packed.variables() | {"LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    command = [python, "-c", WITHOUT_TORCH, str(packed.conformance)]
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
