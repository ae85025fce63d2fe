"""tools/device_bundle.py: what it packs loads from elsewhere, and what it must not pack it refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import device_bundle
from device_check import environment as environments

needs_kernels = pytest.mark.skipif(
    not (device_bundle.PACKAGE / "liblongcat_kernels.so").exists(), reason="CPU-only build: nvcc was not found"
)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are taken to be new, and any library stands for that of the conformance cases."""
    monkeypatch.setattr(device_bundle, "source_files", lambda *_: [Path(sys.executable).resolve()])

    def build(folder: Path) -> None:
        shutil.copy2(device_bundle.PACKAGE / "liblongcat_kernels.so", folder / environments.CONFORMANCE)

    monkeypatch.setattr(device_bundle, "build_for_device", build)


@needs_kernels
def test_the_bundle_loads_and_knows_its_sources(
    no_compiler: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert device_bundle.main(["--out", str(tmp_path / "bundle")]) == 0
    assert "MB for Python" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["sources"] == environments.source_hash() and manifest["bytes"] < 30e6
    names = {str(p.relative_to(tmp_path / "bundle")) for p in (tmp_path / "bundle").rglob("*") if p.is_file()}
    assert {"manifest.json", environments.CONFORMANCE, "python/longcat_ops/ops/registry.py"} <= names
    assert not [name for name in names if "emu.so" in name or "__pycache__" in name]
    assert environments.bundle_problem(tmp_path / "bundle", tmp_path) != ""  # of another tree
    (tmp_path / "bundle" / "python" / "longcat_ops" / "__init__.py").unlink()
    assert environments.load_problem(environments.bundle(tmp_path / "bundle")) != ""


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
