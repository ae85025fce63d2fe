"""DeepGEMM's call forms and the table that `python -m longcat_ops.compat.deep_gemm` prints of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import longcat_ops.compat.deep_gemm as deep_gemm
from longcat_ops import LongcatUnsupportedError
from longcat_ops.compat.deep_gemm import __main__ as command
from longcat_ops.compat.deep_gemm import _runs
from longcat_ops.compat.deep_gemm._forms import Form, forms

FORMS = list(forms())


@pytest.fixture(autouse=True)
def alignment() -> Iterator[None]:
    yield
    deep_gemm.set_mk_alignment_for_contiguous_layout(128)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.file}-{form.call}-{form.theirs}")
def test_form(form: Form) -> None:
    result = command.run(form)
    assert result.verdict == ("refused" if form.refused else "passes"), result.why
    assert bool(result.why) == form.refused


def test_the_forms_cover_deepgemms_tests() -> None:
    assert {form.file for form in FORMS} == {
        "generators.py", "test_attention.py", "test_bf16.py", "test_einsum.py", "test_fp8_fp4.py",
        "test_hyperconnection.py", "test_layout.py", "test_mega_moe.py",
    }  # fmt: skip
    assert [sum(form.refused == refused for form in FORMS) for refused in (False, True)] == [29, 23]


def wrong_scale(product: Callable[..., None], a: tuple, b: tuple, d: Tensor, *rest: Any, **keywords: Any) -> None:
    scales = a[1].clone()
    scales[..., -1] *= 1 + 2.0**-5  # of the last block
    product((a[0], scales), b, d, *rest, **keywords)


def written_beyond(product: Callable[..., None], a: tuple, b: tuple, d: Tensor, *rest: Any, **keywords: Any) -> None:
    product(a, b, d, *rest, **keywords)
    d[..., -1:, :] = 3.0


def padding_left(product: Callable[..., None], a: tuple, b: tuple, d: Tensor, *rest: Any, **keywords: Any) -> None:
    before = d.clone()
    product(a, b, d, *rest, **keywords)
    d[rest[0] < 0] = before[rest[0] < 0]


def other_start(product: Callable[..., None], a: tuple, b: tuple, d: Tensor, *rest: Any, **keywords: Any) -> None:
    deep_gemm.set_mk_alignment_for_contiguous_layout(64)
    product(a, b, d, *rest, **keywords)


CONTIGUOUS, MASKED = "m_grouped_fp8_fp4_gemm_nt_contiguous", "m_grouped_fp8_fp4_gemm_nt_masked"
PLANTED = [
    ("fp8_fp4_gemm_nt", wrong_scale, lambda: _runs.dense((2,))),
    (CONTIGUOUS, wrong_scale, lambda: _runs.contiguous(3, 20)),
    (CONTIGUOUS, padding_left, lambda: _runs.contiguous(3, 20)),
    (CONTIGUOUS, other_start, lambda: _runs.psum(3, 20, zero_padding=True)),
    (CONTIGUOUS, written_beyond, lambda: _runs.masked_as_psum(3, 20)),
    (MASKED, wrong_scale, lambda: _runs.masked(3, 20)),
    (MASKED, written_beyond, lambda: _runs.masked(3, 20)),
]


@pytest.mark.parametrize(("name", "bug", "call"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_the_table_notices(name: str, bug: Callable[..., None], call: Callable[[], float],
                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    form = Form("file", "call", "", "", call)
    assert command.run(form).verdict == "passes"
    product = getattr(deep_gemm, name)
    monkeypatch.setattr(deep_gemm, name, lambda *args, **keywords: bug(product, *args, **keywords))
    assert command.run(form).verdict == "FAILS"


def unsupported() -> float:
    raise LongcatUnsupportedError("not here.\n  fix: elsewhere")


@pytest.mark.parametrize(
    ("run", "refused", "status", "row"),
    [
        (lambda: 0.5, False, 0, "  passes   0.50  call"),
        (lambda: 1.5, False, 1, "  FAILS    1.50  call"),
        (lambda: float("nan"), False, 1, "  FAILS     nan  call"),
        (lambda: 1 // 0, False, 1, "  FAILS          call"),
        (unsupported, False, 1, "  FAILS          call"),
        (unsupported, True, 0, "  refused        call"),
        (lambda: 0.0, True, 1, "  FAILS          call"),
    ],
)
def test_exit_status(run: Callable[[], float], refused: bool, status: int, row: str,
                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    monkeypatch.setattr(command, "forms", lambda: [Form("file.py", "call", "there", "here", run, refused)])
    assert command.main([]) == status
    assert row in capsys.readouterr().out


def test_the_lines_of_the_page_run() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
    section = page.read_text(encoding="utf-8").split("\n## DeepGEMM's names\n")[1].split("\n## ")[0]
    (lines,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S)
    assert len(lines.splitlines()) <= 10
    exec(compile(lines, str(page), "exec"), {})


@pytest.mark.long
def test_the_command() -> None:
    path = str(Path(deep_gemm.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-m", "longcat_ops.compat.deep_gemm"], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("52 forms: 29 pass, 23 refused, 0 fail\n")
    assert all(form.call in done.stdout and form.theirs in done.stdout for form in FORMS)
    assert max(map(len, done.stdout.splitlines())) <= 120
