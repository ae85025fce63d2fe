"""The ops page is generated from docstrings, register counts in docs are on record, every error class is described."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from longcat_ops import _library, errors
from longcat_ops.model import MTP, LongcatFlashForCausalLM, layers
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.ops import emulated
from longcat_ops.ops.registry import OPS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_ops_is_what_the_docstrings_make() -> None:
    done = subprocess.run(
        [sys.executable, "tools/pages/ops_page.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/ops.md").read_text(encoding="utf-8"), flags=re.M)
    assert headings == list(OPS)


def test_the_two_dots_of_a_range_do_not_end_a_summary() -> None:
    page = (ROOT / "docs/ops.md").read_text(encoding="utf-8")
    assert "for the rows i in offsets[g] .. offsets[g+1]-1 of each group g | C++" in page


def test_every_block_states_the_shapes_of_its_forward() -> None:
    blocks = [v for v in vars(layers).values() if inspect.isclass(v) and "forward" in vars(v)]
    assert len(blocks) >= 4
    for block in [*blocks, ScMoELayer, MTP, LongcatFlashForCausalLM]:
        assert re.search(r"\[[TB],\w", block.forward.__doc__ or ""), block


def test_a_stale_page_is_noticed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; sys.path.insert(0, 'tools/pages'); import ops_page;"
        f"ops_page.PAGE = pathlib.Path({str(tmp_path / 'ops.md')!r});"
        "assert ops_page.main(['--check']) == 1; assert ops_page.main([]) == 0; assert ops_page.main(['--check']) == 0;"
        "ops_page.PAGE.write_text(ops_page.PAGE.read_text().replace('top_k', 'topk', 1));"
        "assert ops_page.main(['--check']) == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_error_class_has_a_paragraph() -> None:
    classes = {name for name, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)}
    classes |= {
        name
        for module in (_library, emulated)
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, errors.LongcatError)
    }
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (\w+)\n", text, flags=re.M)[1:])] * 2, strict=True))
    assert sections.keys() == classes
    assert all(len(body.split()) > 30 for body in sections.values())


def test_the_table_of_registers_is_the_one_on_record() -> None:
    page = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    record = (ROOT / "tests/data/kernel_registers.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+-\d+) \|.* (\d+-\d+) \|.* (\d+-\d+) \|$", page, flags=re.M)
    assert len(rows) == 5
    for name, instances, *ranges in rows:
        section = re.search(rf"^{name}_kernel\n((?: +\d+  .*\n)+)", record, flags=re.M)
        listed = re.findall(r"(\d+)  (\w+)", section[1])
        assert len(listed) == int(instances)
        for dtype, stated in zip(("BFloat16", "Float16", "Float32"), ranges, strict=True):
            registers = [int(number) for number, of in listed if of == dtype]
            assert f"{min(registers)}-{max(registers)}" == stated, f"{name}, {dtype}"
