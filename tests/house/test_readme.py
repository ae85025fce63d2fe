"""The README's commands and snippets run, and its paths exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.strip()]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]


def run(command: list[str]) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_it_has_what_is_tested() -> None:
    assert len(SNIPPETS) == 3
    assert "./run demo" in COMMANDS
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    done = run(["bash", "-c", command])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() + done.stderr.strip()  # each prints what it did


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(snippet: str) -> None:
    done = run([sys.executable, "-W", "error", "-c", snippet])
    assert done.returncode == 0, done.stderr


def test_paths_exist() -> None:
    pages = {"README.md": README}
    pages |= {
        str(p.relative_to(ROOT)): p.read_text(encoding="utf-8")
        for p in [*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]
    }
    found = 0
    for page, text in pages.items():
        linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        quoted = re.findall(
            r"`((?:bench|checkpoints|cmake|cpp|cuda|docs|python|requirements|tests|tools)/[\w./-]*)`", text
        )
        for name in [*linked, *quoted]:
            beside, top = (ROOT / page).parent / name, ROOT / name
            planned = name.startswith("cuda/ptx")  # a rule for code to come
            assert beside.exists() or top.exists() or planned, f"{page} names {name}, which does not exist"
            found += 1
    assert found > 20
