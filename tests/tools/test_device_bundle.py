"""tools/device_bundle.py packs a bundle that loads from elsewhere and refuses what it must not pack."""

from __future__ import annotations

import _ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cuda_tools
import device_bundle
from device_check import environment as environments
from device_check import traced

PACKAGE = device_bundle.PACKAGE
needs_kernels = pytest.mark.skipif(
    not (PACKAGE / "liblongcat_kernels.so").exists(), reason="CPU-only build: nvcc was not found"
)
# Imports the bundle, runs one of its ops, and prints where it was imported from.
USE = """
import torch, longcat_ops, pytest_benchmark.plugin
q, s = longcat_ops.per_token_group_quant_fp8(torch.full((1, 128), 448.0))
assert q.float().eq(448).all() and s.eq(1).all()
print(longcat_ops.__file__, longcat_ops._library.load().build_info()["cuda"], pytest_benchmark.__file__)
"""


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats the libraries as up to date, and a copy of one stands in for those that nvcc compiles slowly."""
    monkeypatch.setattr(device_bundle, "source_files", lambda *_: [Path(sys.executable).resolve()])

    def stand_in(name: str, library: Path) -> None:
        return lambda folder: shutil.copy2(library, folder / name)

    # Small where few cases are compiled, as large as the kernels where all are.
    monkeypatch.setattr(device_bundle, "build_for_device", stand_in(environments.CONFORMANCE, Path(_ctypes.__file__)))
    monkeypatch.setattr(device_bundle.traced, "build", stand_in(environments.TRACED, PACKAGE / "liblongcat_kernels.so"))


def used(bundle: Path) -> str:
    """The output of a process outside the source tree with only the bundle on its path."""
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(bundle / "python"), "HOME": str(bundle)}
    done = subprocess.run([sys.executable, "-c", USE], env=bare, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_kernels
def test_the_bundle_loads_in_a_bare_environment(
    no_compiler: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bundle = tmp_path / "bundle"
    assert device_bundle.main(["--out", str(bundle)]) == 0
    assert "MB for Python" in capsys.readouterr().out
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["sources"] == environments.source_hash() and manifest["bytes"] < 60e6
    names = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert {"manifest.json", environments.CONFORMANCE, "python/longcat_ops/ops/registry.py"} <= names
    assert not [name for name in names if "emu.so" in name or "__pycache__" in name]
    package, cuda, plugin = used(bundle).split()
    assert Path(package).is_relative_to(bundle) and cuda == "True" and Path(plugin).is_relative_to(bundle)
    assert environments.bundle_problem(bundle) == ""
    assert environments.bundle_problem(bundle, tmp_path) != ""  # of another tree
    (bundle / "python" / "longcat_ops" / "__init__.py").unlink()
    assert environments.load_problem(environments.bundle(bundle)) != ""


@pytest.mark.slow
@needs_kernels
def test_the_module_is_compiled_for_an_interpreter_that_has_none(no_compiler: None, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    device_bundle.main(["--out", str(bundle)])
    (own,) = (bundle / "python" / "longcat_ops").glob("_C*.so")
    own.unlink()
    assert environments.bundle_problem(bundle) == "" and own.exists()
    assert Path(used(bundle).split()[0]).is_relative_to(bundle)
    own.unlink()
    (bundle / environments.MODULE_PARTS / environments.CORE).unlink()
    assert "does not compile" in environments.bundle_problem(bundle)


@pytest.mark.slow
@needs_kernels
def test_the_traced_kernels_have_their_functions_and_enough_registers(tmp_path: Path) -> None:
    """The traced library exports its functions, and its large GEMMs, which redistribute registers between warps, have
    168 a thread: with fewer they would hang."""
    library = traced.build(tmp_path)
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True).stdout
    functions = set(re.findall(r" T (lc_\w+)", symbols))
    assert {"lc_trace", "lc_trace_carveout", "lc_trace_launches", "lc_moe_permute_quant", "lc_moe_combine"} <= functions
    tool = cuda_tools.find_tool("cuobjdump")
    if tool is None:
        pytest.skip("cuobjdump is not installed: pip install .[test]")
    usage = subprocess.run([tool, "--dump-resource-usage", library], capture_output=True, text=True).stdout
    registers = {name: int(count) for name, count in re.findall(r"Function (\S+):\s+REG:(\d+)", usage)}
    large = {name: count for name, count in registers.items() if re.search(r"moe_\w*gemm_kernelI.*?Lj(128|256)E", name)}
    assert len(large) == 6 and all(count >= 168 for count in large.values()), registers


@needs_kernels
def test_libraries_older_than_their_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = device_bundle.ROOT / "README.md"
    monkeypatch.setattr(device_bundle, "source_files", lambda *_: [new])
    monkeypatch.setattr(device_bundle, "LIBRARIES", ("__init__.py",))
    monkeypatch.setattr(device_bundle, "PACKAGE", tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    os.utime(tmp_path / "package" / "__init__.py", (0, 0))
    with pytest.raises(SystemExit, match=r"older than README\.md: \./run build"):
        device_bundle.pack(tmp_path / "bundle", sys.executable)


def test_a_build_without_kernels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_bundle, "LIBRARIES", ("libabsent.so",))
    with pytest.raises(SystemExit, match=r"libabsent\.so not in python/longcat_ops: \./run build with nvcc"):
        device_bundle.pack(tmp_path / "bundle", sys.executable)
    with pytest.raises(SystemExit, match="does not run"):
        device_bundle.interpreter_facts("/bin/false")
