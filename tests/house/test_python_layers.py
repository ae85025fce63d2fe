"""Imports inside the package go one way without cycles, and no module names a folder outside the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "longcat_ops"

# From the lowest up: a module may import modules of its own row and of earlier rows. A name is a module or a folder of
# the package; "" is the package's own __init__.py.
LAYERS = (
    ("errors", "types", "_environment"),
    ("_library",),
    ("_torch",),
    ("perf",),
    ("reference",),
    ("ops",),
    ("comm",),
    ("", "training"),
    ("model",),
    ("loading",),
    ("engine",),
    ("integrations",),
    ("doctor",),
    ("cli", "__main__", "testing"),
    ("compat",),  # other libraries' interfaces: nothing imports them
)
# Folders that may import less than their row allows: (modules of the package, modules from outside).
ONLY = {
    "reference": ({"reference", "errors", "types", "_torch"}, {"torch"}),
    "perf": ({"perf", "errors", "_library"}, set()),  # `explain` of ops calls it
    "types": (set(), {"torch"}),
    "errors": (set(), set()),
}
STANDARD = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "types", "typing", "warnings"}
# Folders that only their own files and these may import: doctor checks whether an adapter fits the installed package.
ASKED_BY = {"integrations": {"doctor"}}
# Imports that point to a higher row, with the reason.
ALLOWED = {
    # `from_pretrained` is a method of the model, and loading a checkpoint builds the model over a Recorder to learn its
    # tensors. So the model imports the loader only inside that call.
    ("model.model", "loading.load"),
}
# Frameworks: the adapters of `integrations` import them only when called.
FRAMEWORKS = {"transformers", "deep_gemm", "vllm", "sglang"}
OUTSIDE = ("tests/", "bench/", "tools/")
# Texts that name a file of the repository on purpose: remedies for users who work in a clone.
NAMED = {
    ("_library", "python tools/build_emulator.py"),
}


@dataclass
class Module:
    name: str  # "ops.gemm"; of a folder's __init__.py the folder's, of the package's ""
    inside: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)
    calls_ops: bool = False  # names torch.ops

    @property
    def part(self) -> str:
        return self.name.split(".")[0]


def find_problems(package: Path) -> list[str]:
    """What the modules of the folder `package` do against the tables above."""
    modules = read_modules(package)
    found = [problem for module in modules.values() for problem in wrong_imports(module)]
    arrows = {m.name: {to for to in m.inside if (m.name, to) not in ALLOWED} for m in modules.values()}
    found += [f"circle: {' -> '.join(name or package.name for name in circle)}" for circle in circles(arrows)]
    for file in sorted(package.rglob("*.py")):
        name = module_name(package, file)
        text = file.read_text(encoding="utf-8")
        for module, allowed in NAMED:
            text = text.replace(allowed, "") if module == name else text
        found += [f"{name}: names {folder}" for folder in OUTSIDE if folder in text]
    return found


def read_modules(package: Path) -> dict[str, Module]:
    names = {module_name(package, file): file for file in sorted(package.rglob("*.py"))}
    return {name: read_module(package, file, name, names.keys()) for name, file in names.items()}


def module_name(package: Path, file: Path) -> str:
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_module(package: Path, file: Path, name: str, names: set[str]) -> Module:
    """The imports of a file, including those inside functions and under TYPE_CHECKING."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module = Module(
        name, calls_ops=any(ast.unparse(n) == "torch.ops" for n in ast.walk(tree) if isinstance(n, ast.Attribute))
    )
    folder = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for target in imported(tree, folder, package.name):
        root, _, rest = target.partition(".")
        if root != package.name:
            module.outside.add(root)
        else:
            # `from . import gemm` gives "ops.gemm", `from .gemm import f` "ops.gemm.f": take the longest known module.
            while rest and rest not in names:
                rest = rest.rpartition(".")[0]
            module.inside.add(rest)
    module.inside.discard(name)
    return module


def imported(tree: ast.AST, folder: str, package: str) -> Iterator[str]:
    """The full dotted name of every import; x.y for `from x import y`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                above = [package, *folder.split(".")] if folder else [package]
                base = [*above[: len(above) - node.level + 1], *base]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def wrong_imports(module: Module) -> Iterator[str]:
    rank = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    if module.part not in rank:
        yield f"{module.name}: has no row in LAYERS"
        return
    inside, outside = ONLY.get(module.part, (None, None))
    for to in sorted(module.inside):
        part = to.split(".")[0]
        forbidden = rank.get(part, len(LAYERS)) > rank[module.part] or (inside is not None and part not in inside)
        forbidden = forbidden or module.part not in ASKED_BY.get(part, {module.part}) | {part}
        if forbidden and (module.name, to) not in ALLOWED:
            yield f"{module.name}: imports {to or 'the package'}"
    if outside is not None:
        yield from (f"{module.name}: imports {to}" for to in sorted(module.outside - outside - STANDARD))
    if inside is not None and module.calls_ops:
        yield f"{module.name}: calls torch.ops"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """One cycle for each group of modules that import each other."""
    found, done = [], set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
            return
        if name not in done:
            for to in sorted(arrows.get(name, ())):
                visit(to, [*way, name])
            done.add(name)

    for name in sorted(arrows):
        visit(name, [])
    return found


def test_the_package_keeps_its_layers() -> None:
    assert find_problems(PACKAGE) == []


def test_every_exception_is_still_needed() -> None:
    modules = read_modules(PACKAGE)
    assert all(to in modules[name].inside for name, to in ALLOWED)
    texts = {name: (PACKAGE / f"{name}.py").read_text(encoding="utf-8") for name, _ in NAMED}
    assert all(text in texts[name] for name, text in NAMED)


def test_adapters_import_their_framework_when_they_are_called() -> None:
    found = 0
    for file in PACKAGE.rglob("*.py"):
        whole = ast.parse(file.read_text(encoding="utf-8"))
        top = ast.Module([node for node in whole.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        folder = module_name(PACKAGE, file.with_name("__init__.py"))
        now, ever = ({name.split(".")[0] for name in imported(tree, folder, PACKAGE.name)} for tree in (top, whole))
        assert not now & FRAMEWORKS, file
        assert not ever & FRAMEWORKS or "integrations" in file.parts, file
        found += bool(ever & FRAMEWORKS)
    assert found >= 4


CLEAN = {
    "__init__.py": "from . import _library\nfrom .ops.registry import OPS\n",
    "errors.py": "",
    "types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n",
    "_library.py": "from .errors import E\n",
    "reference/__init__.py": "from .gemm import f\n",
    "reference/gemm.py": "import torch\nfrom ..types import T\n",
    "ops/__init__.py": "def late():\n    from . import moe\n",
    "ops/registry.py": "from ..types import T\n",
    "ops/moe.py": "import numpy\nfrom .. import _library\nfrom ..reference.gemm import f\nfrom .registry import OPS\n",
    "model/__init__.py": "",
    "model/model.py": "from .. import ops\ndef late():\n    from ..loading.load import load\n",
    "loading/__init__.py": "",
    "loading/load.py": "from ..model.model import M\n",
    "compat/__init__.py": "from ..ops.moe import f\n",
    "integrations/__init__.py": "",
    "integrations/hf/__init__.py": "def late():\n    import torch\n    from . import patches\n",
    "integrations/hf/patches.py": "from ...model.model import M\n",
    "doctor.py": "def late():\n    from .integrations.hf import fit\n",
    "cli/__init__.py": "from .main import main\n",
    "cli/main.py": "from .. import doctor\n",
}


PLANTED = {
    "nothing": ("ops/moe.py", "", []),
    "itself": ("ops/moe.py", "from . import moe", []),
    "down to the package": ("loading/load.py", "from .. import __version__", []),
    "up": ("ops/moe.py", "from ..model.model import M", ["ops.moe: imports model.model"]),
    "up, absolute": ("ops/moe.py", "import longcat_ops.model", ["ops.moe: imports model"]),
    "up, a module": ("ops/moe.py", "from longcat_ops.model import model", ["ops.moe: imports model.model"]),
    "up, late": ("_library.py", "def f():\n    from .ops import moe", ["_library: imports ops.moe"]),
    "up, for types": ("model/model.py", "if T:\n    from ..loading import x", ["model.model: imports loading"]),
    "oracle on ops": ("reference/gemm.py", "from .. import ops", ["reference.gemm: imports ops"]),
    "oracle on the loader": ("reference/gemm.py", "from .. import _library", ["reference.gemm: imports _library"]),
    "oracle on others": ("reference/gemm.py", "import numpy as np", ["reference.gemm: imports numpy"]),
    "oracle calls an op": ("reference/gemm.py", "f = torch.ops.longcat_ops.g", ["reference.gemm: calls torch.ops"]),
    "tests": ("model/model.py", 'TEXT = "tests/data/text"', ["model.model: names tests/"]),
    "bench and tools": ("errors.py", "# bench/x.py, tools/y.py", ["errors: names bench/", "errors: names tools/"]),
    "an interface of another library": ("cli/main.py", "from ..compat import x", ["cli.main: imports compat"]),
    "an adapter, by the command": (
        "cli/main.py",
        "from ..integrations import hf",
        ["cli.main: imports integrations.hf"],
    ),
    "an adapter, by the model": (
        "model/model.py",
        "def f():\n    from ..integrations import hf",
        ["model.model: imports integrations.hf"],
    ),
    "a new folder": ("serving/engine.py", "", ["serving.engine: has no row in LAYERS"]),
}


def planted(folder: Path, file: str, line: str) -> Path:
    package = folder / "longcat_ops"
    for name, text in (CLEAN | {file: CLEAN.get(file, "") + line + "\n"}).items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize(("file", "line", "expected"), PLANTED.values(), ids=PLANTED)
def test_planted_violations_are_found(tmp_path: Path, file: str, line: str, expected: list[str]) -> None:
    found = find_problems(planted(tmp_path, file, line))
    assert sorted(problem for problem in found if not problem.startswith("circle")) == expected


@pytest.mark.parametrize("line", ["from .moe import x", "def f():\n    from . import moe"])
def test_a_circle_is_found(tmp_path: Path, line: str) -> None:
    assert find_problems(planted(tmp_path, "ops/moe.py", "")) == []
    package = planted(tmp_path, "ops/registry.py", line)
    assert find_problems(package) == ["circle: ops.registry -> ops.moe -> ops.registry"]
