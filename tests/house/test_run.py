"""./run decides what to install and build, tested in a copy of the tree with an interpreter that only records."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Answers ./run's queries to a Python from FAKE_* variables; pip and venv only leave a trace.
FAKE_PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  "-c ") true ;;
  "-c import sys; print("*)
    case "$0:${{FAKE_IN_VENV:-yes}}" in *.venv*|*:yes) echo "$0" ;; *) echo "${{3:-$0}}" ;; esac ;;
  *sys.version_info*) [ "${{FAKE_VERSION:-new}}" = new ] ;;
  "--version") echo Python 3.8.1 ;;
  *base_prefix*) case "$0" in *.venv*) true ;; *) [ "${{FAKE_IN_VENV:-yes}}" = yes ] ;; esac ;;
  "-") case "$0" in *.venv*) cat "$(dirname "$0")/torch" 2>/dev/null || echo none ;; *) echo "${{FAKE_TORCH:-ok}}" ;;
    esac ;;
  "-m venv"*)
    echo "venv $*" >>"$FAKE_TRACE"
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    case "$*" in *system-site*) echo ok >.venv/bin/torch ;; esac ;;
  "-m pip"*)
    echo "pip ${{*:3}}" >>"$FAKE_TRACE"
    case "$*" in *torch-cpu*) echo ok >"$(dirname "$0")/torch" ;; esac
    if [ "${{FAKE_PIP:-}}" = fails ]; then echo "no such package"; exit 1; fi ;;
  "-c import pip") [ -x "$0" ] ;;
  "- "*/python/) exec {sys.executable} "$@" ;;
  "-m "*) echo "RAN ${{*:2}}" ;;
  tools/build_emulator.py*) echo "EMULATOR $*" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""

STUB = '''"""Stands in for the package."""
class _library:
    @staticmethod
    def load():
        return _library
    @staticmethod
    def build_info():
        return {"compiler": "stub", "cuda": False}
__version__ = "0.1.0"
'''


class Tree:
    """A project folder with the real ./run and stubs around it."""

    def __init__(self, root: Path) -> None:
        self.root, self.trace = root, root / "trace"
        (root / "python" / "longcat_ops").mkdir(parents=True)
        (root / "python" / "longcat_ops" / "__init__.py").write_text(STUB)
        for name in ("cmake", "cpp", "cuda", "requirements"):
            (root / name).mkdir()
        for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "cpp/a.cpp"):
            (root / name).write_text(name)
        shutil.copy(ROOT / "requirements" / "torch-cpu.txt", root / "requirements")
        shutil.copy(ROOT / "run", root / "run")
        self.python = root / "fakepython"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
        variables = {
            **os.environ,
            "PYTHON": str(self.python),
            "PYTHONPATH": str(self.root / "python"),
            "FAKE_TRACE": str(self.trace),
            "LONGCAT_CUDA": "OFF",
            **environment,
        }
        return subprocess.run(
            [str(self.root / "run"), *arguments], cwd=cwd or self.root, env=variables, capture_output=True, text=True
        )

    def installs(self) -> list[str]:
        """What was installed or created since the last call."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        self.trace.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a project")


def test_usage(tree: Tree) -> None:
    for arguments in ((), ("serve",)):
        result = tree.run(*arguments)
        assert result.returncode == 2
        assert "./run demo" in result.stderr and "./run test" in result.stderr


def test_second_run_installs_nothing(tree: Tree) -> None:
    first = tree.run("test", "-k", "x")
    assert first.returncode == 0, first.stderr
    assert "RAN pytest -q -n 2 --dist loadscope --no-loadscope-reorder -k x" in first.stdout
    assert "building longcat_ops" in first.stderr and "CPU-only build" in first.stderr
    assert [line.split()[-1] for line in tree.installs()] == ["requirements/build.txt", ".[test]"]

    second = tree.run("test", cwd=Path("/"))
    assert (second.returncode, second.stderr) == (0, "")
    demo = tree.run("demo", "--seed", "1")
    assert "RAN longcat_ops generate checkpoints/longcat-tiny --seed 1" in demo.stdout
    assert tree.installs() == []


def test_what_the_tests_share_is_built_before_them(tree: Tree) -> None:
    log = tree.root / "build" / "run.log"
    assert tree.run("test", "--fast").returncode == 0
    assert "EMULATOR" not in log.read_text()  # no test of that tier needs the emulator
    assert tree.run("test").returncode == 0
    assert log.read_text() == "EMULATOR tools/build_emulator.py --tests\n"


def test_machines_are_a_tier_of_their_own(tree: Tree) -> None:
    done = tree.run("test", "--machines", "a laptop")
    assert (done.returncode, done.stdout) == (0, "RAN support.machine_settings a laptop\n")


def test_a_python_of_the_environment_means_the_same_build(tree: Tree) -> None:
    """./run creates .venv for python3; run with PYTHON=.venv/bin/python, it finds the same build."""
    assert tree.run("build", FAKE_IN_VENV="no").returncode == 0
    tree.installs()
    assert "building" not in tree.run("build", PYTHON=str(tree.root / ".venv" / "bin" / "python")).stderr
    assert tree.installs() == []


def test_a_changed_source_or_option_builds_again(tree: Tree) -> None:
    assert tree.run("build").returncode == 0
    tree.installs()
    (tree.root / "cpp" / "a.cpp").write_text("changed")
    assert "building longcat_ops" in tree.run("build").stderr
    assert len(tree.installs()) == 2
    assert tree.run("build").stderr.count("building") == 0
    assert "building longcat_ops" in tree.run("build", LONGCAT_CUDA="AUTO").stderr


def test_a_failed_build_shows_why_and_is_tried_again(tree: Tree) -> None:
    failed = tree.run("test", FAKE_PIP="fails")
    assert failed.returncode == 1
    assert "no such package" in failed.stderr
    assert "all of its output is in build/run.log" in failed.stderr
    assert not list((tree.root / "build").glob("stamp*"))
    tree.installs()
    assert tree.run("test").returncode == 0
    assert len(tree.installs()) == 2


def test_a_build_that_cannot_be_loaded_is_not_stamped(tree: Tree) -> None:
    init = tree.root / "python" / "longcat_ops" / "__init__.py"
    init.write_text(STUB.replace("return _library", "raise ImportError('half a library')", 1))
    result = tree.run("build")
    assert result.returncode == 1
    assert "half a library" in result.stderr and "the build finished and cannot be loaded" in result.stderr
    assert not list((tree.root / "build").glob("stamp*"))


def test_torch_of_a_system_python_is_borrowed(tree: Tree) -> None:
    result = tree.run("build", FAKE_IN_VENV="no")
    assert "making .venv on top of the torch of" in result.stderr
    trace = tree.installs()
    assert trace[0] == "venv -m venv --system-site-packages .venv"
    assert not [line for line in trace if "torch-cpu" in line]


@pytest.mark.parametrize("torch", ["none", "old 2.4.0"])
def test_no_fitting_torch_means_one_of_our_own(tree: Tree, torch: str) -> None:
    result = tree.run("build", FAKE_TORCH=torch)
    assert result.returncode == 0, result.stderr
    assert ("torch 2.4.0 of" in result.stderr and "stays as it is" in result.stderr) == torch.startswith("old")
    assert "installing torch (torch==2.13.0)" in result.stderr
    trace = tree.installs()
    assert trace[0] == "venv -m venv .venv"
    assert trace[1].endswith("-r requirements/torch-cpu.txt")
    assert tree.run("build", FAKE_TORCH=torch).returncode == 0
    assert tree.installs() == []


def test_an_unusable_venv_is_made_again(tree: Tree) -> None:
    (tree.root / ".venv" / "bin").mkdir(parents=True)
    (tree.root / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    result = tree.run("build", FAKE_TORCH="none")
    assert result.returncode == 0, result.stderr
    assert ".venv is unusable" in result.stderr


def test_missing_things_have_one_message_each(tree: Tree) -> None:
    result = tree.run("build", PYTHON="no-such-python")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "no-such-python was not found; install Python >= 3.10 or set PYTHON" in result.stderr

    result = tree.run("build", FAKE_VERSION="old")
    assert "Python 3.8.1 is too old" in result.stderr and "needs Python >= 3.10" in result.stderr

    tools = tree.root / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "sha256sum", "find", "sort", "xargs", "cut", "grep", "mkdir", "rm", "cat", "env"):
        (tools / name).symlink_to(shutil.which(name))
    result = tree.run("build", PATH=str(tools))
    assert result.returncode == 1
    assert "no C++ compiler (c++, g++, clang++) on PATH" in result.stderr
