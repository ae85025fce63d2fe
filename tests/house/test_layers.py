"""Includes follow the layers: cuda/ compiles alone, only cpp/bindings sees torch, folders form no cycle."""

from __future__ import annotations

import re
import shutil
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
SOURCES = (".h", ".cuh", ".inc", ".cpp", ".cu")
ROOTS = ("cuda", "cuda/include", "cpp")  # include paths, in search order
GENERATED = {"common/version.h": "cuda/common", "ptx/wgmma_shapes.inc": "cuda/ptx"}  # generated file -> its folder

# Every folder and what it may include besides itself. Any other folder of cuda/ is a family of kernels.
SHARED = {"cuda/include", "cuda/common", "cuda/ptx", "cuda/device", "cuda/launch"}
LAYERS = {
    "cuda/include": set(),
    "cuda/common": set(),
    "cuda/ptx": set(),
    "cuda/device": {"cuda/common", "cuda/ptx"},
    "cuda/launch": {"cuda/include", "cuda/common", "cuda/ptx", "cuda/device"},
    "cuda": {"cuda/include", "cuda/common", "cuda/launch"},
    "cuda/comm": {*SHARED, "cuda/moe_dispatch"},  # rows that go to other GPUs
    "cpp/check": {"cuda/common"},
    "cpp/cost": {"cpp/check", "cuda/common", "cuda/gemm"},
    "cpp/ops": {
        "cpp/check",
        "cpp/cost",
        "cuda/common",
        "cuda/mla",
        "cuda/moe_dispatch",
        "cuda/moe_route",
        "cuda/router",
        "cuda/rows",
        "cuda/sampling",
        "cuda/step",
    },
    "cpp/cpu": {"cpp/check", "cuda/common"},
    "cpp/emu": {"cuda/include", "cuda/common", "cuda/ptx", "cuda/launch"},
    "cpp/bindings": {"cpp/ops", "cpp/check", "cpp/cpu", "cuda/include", "cuda/comm", "cuda/common", "cuda/launch"},
}
# With LC_EMULATE the emulator replaces the PTX layer.
EXCEPTIONS = {("cuda/ptx/ptx.cuh", "cpp/emu/ptx.h")}

FOREIGN = {  # libraries, and the only folders that may include them
    r"(torch|ATen|c10|pybind11|Python)\b": ("cpp/bindings",),
    r"cuda(_\w+)?\.h$|crt/|cooperative_groups": ("cuda",),
}


def folder_of(path: str) -> str:
    """The layer of a path: its first two levels, so cpp/emu/ptx belongs to cpp/emu."""
    return "/".join(path.split("/")[:-1][:2])


def resolve(root: Path, source: Path, name: str) -> str | None:
    """The file of this tree that an include names."""
    for folder in (source.parent, *(root / part for part in ROOTS)):
        if (folder / name).is_file():
            return (folder / name).resolve().relative_to(root).as_posix()
    return f"{GENERATED[name]}/{Path(name).name}" if name in GENERATED else None


def may_include(folder: str, target: str) -> bool:
    return target == folder or target in LAYERS.get(folder, SHARED if folder.startswith("cuda/") else set())


def violations(root: Path) -> list[str]:
    root = root.resolve()
    found, graph, used = [], {}, set()
    for source in sorted(path for top in ("cuda", "cpp") for path in (root / top).rglob("*") if path.suffix in SOURCES):
        name = source.relative_to(root).as_posix()
        folder = folder_of(name)
        if folder not in LAYERS and not folder.startswith("cuda/"):
            found.append(f"{name}: {folder} has no row in LAYERS")
        for bracket, included in INCLUDE.findall(source.read_text(encoding="utf-8")):
            target = resolve(root, source, included)
            if target is None:
                found += foreign_problems(name, bracket, included)
            elif (name, target) in EXCEPTIONS:
                used.add((name, target))
            else:
                graph.setdefault(folder, set()).update({folder_of(target)} - {folder})
                if not may_include(folder, folder_of(target)):
                    found.append(f"{name} includes {target}: {folder} may not")
                if target.endswith(".cuh") and name.startswith("cpp/") and folder != "cpp/emu":
                    found.append(f"{name} includes {target}: device code")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a circle: " + " -> ".join(reversed(error.args[1])))
    return found + [
        f"{source} no longer includes {target}: an exception too many" for source, target in EXCEPTIONS - used
    ]


def foreign_problems(name: str, bracket: str, included: str) -> list[str]:
    for pattern, places in FOREIGN.items():
        if re.match(pattern, included):
            return [] if name.startswith(tuple(f"{place}/" for place in places)) else [f"{name} includes {included}"]
    return [f"{name} includes {included}, which is nowhere"] if bracket == '"' else []


def test_includes_go_the_right_way() -> None:
    assert violations(ROOT) == []


def test_the_kernel_library_has_nothing_else_within_reach() -> None:
    text = re.sub(r"#[^\n]*", "", (ROOT / "CMakeLists.txt").read_text())
    (found,) = re.findall(r"target_include_directories\(\s*longcat_kernels\s+([^)]*)\)", text)
    assert found.split() == ["PUBLIC", "cuda/include", "PRIVATE", "cuda", "${CMAKE_BINARY_DIR}/generated"]
    linked = re.findall(r"target_link_libraries\(\s*longcat_kernels\s+([^)]*)\)", text)
    assert [line.split() for line in linked] == [["PRIVATE", "CUDA::cudart_static"]]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for top in ("cuda", "cpp"):
        shutil.copytree(ROOT / top, root / top)
    return root


@pytest.mark.parametrize(
    ("source", "include", "problem"),
    [
        (
            "cuda/gemm/params.cuh",
            '"check/error.h"',
            "cuda/gemm/params.cuh includes cpp/check/error.h: cuda/gemm may not",
        ),
        ("cuda/launch/launch.h", '"../../cpp/emu/world.h"', "includes cpp/emu/world.h: cuda/launch may not"),
        ("cuda/common/text.h", "<launch/status.h>", "includes cuda/launch/status.h: cuda/common may not"),
        ("cuda/ptx/thread.cuh", '"emu/ptx.h"', "cuda/ptx/thread.cuh includes cpp/emu/ptx.h: cuda/ptx may not"),
        ("cuda/ptx/convert.cuh", '"device/math.cuh"', "a circle: "),
        ("cuda/quant/row_tiles.cuh", '"gemm/layout.h"', "includes cuda/gemm/layout.h: cuda/quant may not"),
        ("cuda/runtime.cu", "<torch/all.h>", "cuda/runtime.cu includes torch/all.h"),
        ("cpp/check/arguments.h", "<ATen/ATen.h>", "cpp/check/arguments.h includes ATen/ATen.h"),
        ("cpp/cost/explain.h", '"ops/table.h"', "includes cpp/ops/table.h: cpp/cost may not"),
        (
            "cpp/cost/explain.cpp",
            '"gemm/params.cuh"',
            "cpp/cost/explain.cpp includes cuda/gemm/params.cuh: device code",
        ),
        ("cpp/emu/world.cpp", '"gemm/config.h"', "cpp/emu/world.cpp includes cuda/gemm/config.h: cpp/emu may not"),
        ("cpp/cpu/quant.h", "<cuda_runtime.h>", "cpp/cpu/quant.h includes cuda_runtime.h"),
        ("cpp/cpu/quant.h", '"cpu/gone.h"', "cpp/cpu/quant.h includes cpu/gone.h, which is nowhere"),
        ("cpp/other/new.h", '"check/error.h"', "cpp/other/new.h: cpp/other has no row in LAYERS"),
    ],
)
def test_a_wrong_include_is_found(copy: Path, source: str, include: str, problem: str) -> None:
    path = copy / source
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n#include {include}\n")
    try:
        assert any(problem in found for found in violations(copy)), violations(copy)
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert violations(copy) == []


def test_an_exception_that_is_not_used_is_found(copy: Path) -> None:
    path = copy / "cuda/ptx/ptx.cuh"
    before = path.read_text()
    path.write_text(before.replace('#include "emu/ptx.h"', ""))
    try:
        assert violations(copy) == ["cuda/ptx/ptx.cuh no longer includes cpp/emu/ptx.h: an exception too many"]
    finally:
        path.write_text(before)
