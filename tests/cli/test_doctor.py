"""`doctor` reports each op correctly, and still runs where torch, the library or the packages are broken."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import longcat_ops
from longcat_ops import _environment, _library, doctor
from longcat_ops.cli import main
from longcat_ops.ops.emulated import has_kernel
from longcat_ops.ops.registry import OPS, Op

PACKAGE = Path(longcat_ops.__file__).parent


def run_doctor(*path: Path, **environment: str) -> tuple[int, dict, str]:
    """(exit code, facts, stderr) of `doctor --json` in a fresh interpreter with `path` on sys.path."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LONGCAT_OPS_")}
    result = subprocess.run(
        [sys.executable, "-m", "longcat_ops", "doctor", "--json"], capture_output=True, text=True, timeout=120,
        env=clean | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment, cwd="/",
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, json.loads(result.stdout), result.stderr


def write_torch(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "torch.py").write_text(text)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The Python files of the package without the native libraries, as an unbuilt clone has them."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "clone" / "longcat_ops", ignore=ignore)
    return tmp_path / "clone"


def test_without_torch_every_op_is_listed_with_the_remedy(tmp_path):
    broken = write_torch(tmp_path / "site", 'raise ImportError("torch is blocked here")\n')
    code, facts, _ = run_doctor(broken, PACKAGE.parent)
    assert code == 1 and not facts["ok"]
    assert facts["torch"]["version"] is None and "torch is blocked here" in facts["torch"]["problem"]
    assert "pip install" in facts["torch"]["remedy"]
    assert facts["library"]["state"] == "built" and facts["library"]["problem"]
    names = [row["name"] for row in facts["ops"]]
    assert "fused_moe" in names and "dequant_fp8" in names and "supports" not in names and "Routing" not in names
    for row in facts["ops"]:
        for device in (row["cpu"], row["cuda"]):
            assert device["backend"] == "none" and "torch" in device["reason"] and "pip install" in device["remedy"]


def test_an_old_torch_is_named(tmp_path):
    old = write_torch(tmp_path / "site", '__version__ = "2.9.1"\nclass version:\n    cuda = None\n')
    code, facts, _ = run_doctor(old, PACKAGE.parent)
    assert code == 1
    assert facts["torch"]["version"] == "2.9.1" and "2.11" in facts["torch"]["problem"]


@pytest.mark.parametrize(
    "present,state", [([], "not built"), (["_C"], "half built"), (["liblongcat_torch"], "half built")]
)
def test_hidden_libraries_are_named(tmp_path, sources, present, state):
    torch_like = write_torch(tmp_path / "site", '__version__ = "2.11.0"\nclass version:\n    cuda = None\n')
    for name in present:
        (sources / "longcat_ops" / f"{name}.so").write_bytes(b"")
    code, facts, _ = run_doctor(torch_like, sources)
    library = facts["library"]
    assert code == 1 and library["state"] == state
    assert set(library["missing"]) == {"_C", "liblongcat_torch"} - set(present)
    assert "not built" in library["problem"] and library["remedy"]
    assert facts["torch"]["problem"] == ""
    assert all(row["cpu"]["remedy"] == library["remedy"] for row in facts["ops"])


def test_a_broken_library_is_reported(tmp_path, sources):
    torch_like = write_torch(tmp_path / "site", '__version__ = "2.11.0"\nclass version:\n    cuda = None\n')
    for name in ("_C", "liblongcat_torch"):
        (sources / "longcat_ops" / f"{name}.so").write_bytes(b"no library")
    code, facts, _ = run_doctor(torch_like, sources)
    assert code == 1 and "liblongcat_torch" in facts["library"]["problem"] and facts["library"]["remedy"]


def test_gpus_come_from_the_driver_tool_without_torch(tmp_path, sources):
    broken = write_torch(tmp_path / "site", 'raise ImportError("no torch")\n')
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '570.86.10, NVIDIA H100 80GB HBM3, 81559 MiB, 9.0'\n")
    tool.chmod(0o755)
    _, facts, _ = run_doctor(broken, sources, PATH=f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    assert facts["gpus"]["driver"] == "570.86.10"
    assert facts["gpus"]["devices"] == [{"name": "NVIDIA H100 80GB HBM3", "memory": "81559 MiB", "capability": "9.0"}]
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' ; exit 9\n")
    _, facts, _ = run_doctor(broken, sources, PATH=f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    assert facts["gpus"] == {"driver": None, "devices": [], "source": "none"}


def test_variables_and_missing_packages(tmp_path, sources):
    site = write_torch(tmp_path / "site", 'raise ImportError("no torch")\n')
    (site / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tokenizers' else find(name, *a)\n"
    )
    _, facts, stderr = run_doctor(site, sources, LONGCAT_OPS_CPU_ISAS="avx2", LONGCAT_OPS_BACKEND="cpu")
    rows = {row["name"]: row for row in facts["environment"]}
    assert rows["LONGCAT_OPS_CPU_ISAS"]["nearest"] == "LONGCAT_OPS_CPU_ISA"
    assert rows["LONGCAT_OPS_BACKEND"]["nearest"] == ""
    assert "LONGCAT_OPS_CPU_ISAS" in stderr  # the import warns too
    packages = {p["name"]: p for p in facts["packages"]}
    assert packages["tokenizers"]["version"] is None and "tokenizers" in packages["tokenizers"]["remedy"]
    assert packages["safetensors"]["version"] and not packages["safetensors"]["remedy"]


@pytest.mark.parametrize(
    "version,fits,line",
    [
        ("5.24.0", True, "integration  transformers 5.24.0: fits"),
        ("5.23.7", True, "integration  transformers 5.23.7: fits"),
        ("5.25.0", False, "integration  transformers 5.25.0: does not fit: the adapter is for 5.23 or 5.24; fix: "),
        ("4.57.1", False, "integration  transformers 4.57.1: does not fit: the adapter is for 5.23 or 5.24; fix: "),
        (None, False, "integration  transformers: does not fit: not installed; the adapter is for 5.23 or 5.24; fix: "),
    ],
)
def test_the_adapter_of_transformers(monkeypatch, capsys, version, fits, line):
    def installed(name: str) -> str:
        if name == "transformers" and version is None:
            raise metadata.PackageNotFoundError(name)
        return version if name == "transformers" else found(name)

    found = metadata.version
    monkeypatch.setattr(metadata, "version", installed)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert main(["doctor"]) == 0
    printed = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("integration  transformers"))
    assert printed.startswith(line) and printed.endswith('-m pip install "transformers==5.24.*"') != fits
    assert "transformers" not in sys.modules
    row = next(row for row in doctor.report()["integrations"] if row["name"] == "transformers")
    assert (row["version"], row["fits"], bool(row["remedy"])) == (version, fits, not fits)


def test_rows_agree_with_the_library():
    """Those of communicators have no row: they need other processes."""
    importlib.import_module("longcat_ops.comm")
    rows = {row.name: row for row in doctor.op_rows()}
    registered = {
        n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("longcat_ops::")
    }
    calls = {name for name in registered if name.startswith("comm_")}
    assert calls and registered - calls <= rows.keys() and not calls & rows.keys()
    for name, row in rows.items():
        emulated = _environment.backend() == "emu"
        native = ("emu" if has_kernel(name) else "reference") if emulated else "cpu"
        if name == "fused_moe":
            assert row.cpu.reason == f"a chain of {len(OPS[name].chain)} kernels" or row.cpu.backend == "reference"
            assert "a chain of" in row.cuda.reason or not _library.load().build_info()["cuda"]
            native = native if not emulated or all(map(has_kernel, OPS[name].chain)) else "reference"
        assert row.cpu.backend == native
        if not torch.cuda.is_available():
            assert (row.cuda.backend == "none" and row.cuda.remedy) or row.cpu.backend == "none"


@pytest.mark.parametrize("backend,expected", [("reference", "reference"), ("cuda", "none")])
def test_the_backend_variable_decides(monkeypatch, backend, expected):
    monkeypatch.setitem(_environment.values, "LONGCAT_OPS_BACKEND", backend)
    rows = {row.name: row for row in doctor.op_rows()}
    assert rows["dequant_fp8"].cpu.backend == expected
    assert "LONGCAT_OPS_BACKEND" in rows["dequant_fp8"].cpu.reason


def test_a_declared_op_that_does_not_exist_fails_the_command(monkeypatch, capsys):
    monkeypatch.setitem(OPS, "moe_dream", Op("moe"))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "moe_dream" in text and "some op has no backend here" in text


def test_the_command_prints_every_section(monkeypatch, capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in (
        "platform",
        "python",
        f"torch        {torch.__version__}",
        "library      built",
        "gpu",
        "package",
        "every op",
    ):
        assert part in text
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] and {row["name"] for row in facts["ops"]} == set(doctor.op_names())
