"""docs/training.md: its code runs, and its tables name everything that longcat_ops.training has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from longcat_ops import training

PAGE = (Path(__file__).resolve().parents[2] / "docs/training.md").read_text(encoding="utf-8")


def test_its_code_runs(capsys: pytest.CaptureFixture) -> None:
    names: dict[str, object] = {}
    torch.manual_seed(0)
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(code, names)
    assert names["router"].grad.abs().max() > 0 and names["controller"].step == 1
    assert names["balance"].weight <= 1e-2
    assert capsys.readouterr().out.startswith("tensor(")


def test_it_names_every_function() -> None:
    named = set(re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE))
    results = {"ActivationMonitor", "Activations", "EpsilonCheck", "VarianceAlignment"}  # what some of them give back
    assert named == set(training.__all__) - results
    for name in named:
        made = getattr(training, name)
        assert "report" in f"{made.__doc__} {sys.modules[made.__module__].__doc__}", f"{name} states no source"
