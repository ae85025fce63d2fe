"""The tool that reads torch's files for what the adapter uses: the installed torch passes, planted changes do not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import torch_symm_contract as contract
from longcat_ops.comm.providers.torch_symm import FUNCTIONS, HANDLE

MODULE = '''
from typing import overload
@overload
def empty(*size: int) -> None: ...
def empty(*size, dtype=None, device=None):
    """Text."""
def rendezvous(tensor, group): ...
def get_backend(device): ...
'''
STUB = (
    "class Store: ...\nclass _SymmetricMemory:\n    signal_pad_size: int\n    def barrier(self) -> None: ...\n"
    + "".join(f"    @property\n    def {name}(self) -> int: ...\n" for name in HANDLE)
)
FILES = {contract.MODULE: MODULE, contract.STUB: STUB, contract.VERSION: "__version__ = '2.14.1+cpu'\n"}


def write(folder: Path, files: dict[str, str], as_wheel: bool) -> Path:
    if as_wheel:
        path = folder / "torch-2.14.1.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
        return path
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_installed_torch_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert contract.main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"ok    torch {torch.__version__} (site-packages): 3 functions, 6 attributes of the handle")


@pytest.mark.parametrize("as_wheel", [False, True])
def test_a_torch_with_everything_passes(tmp_path: Path, as_wheel: bool) -> None:
    finding = contract.check(write(tmp_path, FILES, as_wheel))
    assert (finding.version, finding.problems, finding.notes) == ("2.14.1+cpu", [], [])


CHANGES = {
    "no version": ({contract.VERSION: ""}, "torch/version.py: no version"),
    "no module": ({contract.MODULE: None}, "__init__.py: no such file"),
    "no stub": ({contract.STUB: None}, "_distributed_c10d.pyi: no such file"),
    "no class": ({contract.STUB: STUB.replace("_SymmetricMemory", "_Symm")}, "no class _SymmetricMemory"),
    "a method for a property": (
        {contract.STUB: STUB.replace("    @property\n    def offset", "    def offset")},
        "_SymmetricMemory has no property offset",
    ),
    **{
        f"no {name}": ({contract.STUB: STUB.replace(f"def {name}(", f"def {name}_(")}, f"has no property {name}")
        for name in HANDLE
    },
    **{
        f"no {name}": ({contract.MODULE: MODULE.replace(f"def {name}(", f"def {name}_(")}, f"no function {name}")
        for name in FUNCTIONS
    },
    "group has another name": (
        {contract.MODULE: MODULE.replace("group", "group_name")},
        "rendezvous has no parameter group: it has tensor, group_name",
    ),
    "one more parameter": (
        {contract.MODULE: MODULE.replace("device=None)", "device=None, *, pool)").replace("*size, ", "size, ")},
        "empty needs a parameter pool, which is not given",
    ),
    "sizes as one argument": (
        {contract.MODULE: MODULE.replace("def empty(*size, dtype", "def empty(size=(), dtype")},
        "empty has no parameter *",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_torch_that_changed_does_not(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, text = CHANGES[name]
    files = {file: source for file, source in (FILES | changes).items() if source is not None}
    assert contract.main([str(write(tmp_path, files, as_wheel=True))]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("FAIL  torch ")
    assert "(torch-2.14.1.whl)" in shown
    assert text in shown


@pytest.mark.parametrize(("version", "missing"), [("2.11.0", False), ("2.13.9", False), ("2.14.0", True)])
def test_what_old_stubs_leave_out_is_a_note(tmp_path: Path, version: str, missing: bool) -> None:
    without = STUB.replace("def offset(", "def offset_(")
    files = FILES | {contract.STUB: without, contract.VERSION: f"__version__ = '{version}'"}
    finding = contract.check(write(tmp_path, files, as_wheel=True))
    note = "offset is in no stub before 2.14: only importing this torch can tell"
    assert finding.notes == [note] * (not missing)
    assert finding.problems == [f"{contract.STUB}: _SymmetricMemory has no property offset"] * missing


def test_a_torch_below_the_floor_is_noted(tmp_path: Path) -> None:
    finding = contract.check(write(tmp_path, FILES | {contract.VERSION: "__version__ = '2.9.0'"}, as_wheel=True))
    assert finding.notes == ["below the floor 2.11: the adapter refuses it"]
