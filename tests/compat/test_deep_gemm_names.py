"""Every DeepGEMM name exists with DeepGEMM's parameters; each computes, keeps a value or is refused by name."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import longcat_ops.compat.deep_gemm as deep_gemm
from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from support.deep_gemm_names import BY_MODULE, MODULES, SIGNATURES, TESTING_SIGNATURES, WITHOUT_NAMES

WORKS = {*SIGNATURES, *WITHOUT_NAMES, *TESTING_SIGNATURES}
FOLDER = Path(deep_gemm.__file__).parent
SETTERS = {
    "set_num_sms": ("get_num_sms", [1, 64, 132], 132),
    "set_tc_util": ("get_tc_util", [1, 100], 100),
}


def module(name: str) -> Any:
    return importlib.import_module(f"longcat_ops.compat.deep_gemm.{name}".rstrip("."))


def parameters(function: Any) -> str:
    found = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()]
    return ", ".join(str(p) for p in found)


@pytest.mark.parametrize("name", BY_MODULE)
def test_a_module_has_its_names_and_no_others(name: str) -> None:
    assert len(set(BY_MODULE[name])) == len(BY_MODULE[name])
    assert set(module(name).__all__) == set(BY_MODULE[name])
    assert set(BY_MODULE[name]) <= set(dir(module(name)))
    assert all(getattr(module(name), other).__doc__ for other in BY_MODULE[name])


def test_a_name_is_one_object_wherever_it_stands() -> None:
    seen: dict[str, Any] = {}
    for name, names in BY_MODULE.items():
        for each in names:
            assert seen.setdefault(each, getattr(module(name), each)) is getattr(module(name), each)
    assert deep_gemm.fp8_fp4_gemm_nt is deep_gemm.fp8_gemm_nt
    masked = deep_gemm.m_grouped_fp8_gemm_nt_masked
    assert deep_gemm.fp8_m_grouped_gemm_nt_masked is masked is deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked
    assert deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous is deep_gemm.m_grouped_fp8_gemm_nt_contiguous


@pytest.mark.parametrize("name", [*SIGNATURES, *TESTING_SIGNATURES])
def test_parameters_are_those_of_deepgemm(name: str) -> None:
    place = deep_gemm if name in SIGNATURES else deep_gemm.testing
    assert parameters(getattr(place, name)) == (SIGNATURES | TESTING_SIGNATURES)[name]


REFUSED = [(where, name) for where, names in BY_MODULE.items() for name in names if name not in {*WORKS, *MODULES}]


@pytest.mark.parametrize(("where", "name"), REFUSED)
def test_what_has_no_op_is_refused_by_name(where: str, name: str) -> None:
    for args, keywords in (((), {}), ((torch.ones(1), 2), {"d": None, "recipe": (1, 1, 128)})):
        with pytest.raises(LongcatUnsupportedError) as caught:
            getattr(module(where), name)(*args, **keywords)
        reason, fix = str(caught.value).split("\n")
        assert reason.startswith(f"{name}: ") and reason.endswith(".") and len(reason) > len(name) + 20
        assert fix.startswith("  fix: ") and len(fix) > 15
    assert getattr(module(where), name).__name__ == name


def test_what_is_named_instead_exists() -> None:
    """Every dotted name of torch or longcat_ops in a refusal resolves."""
    texts = {getattr(module(where), name).__doc__ for where, name in REFUSED}
    names = {name for text in texts for name in re.findall(r"(?:torch|longcat_ops)(?:\.\w+)+", text)}
    assert len(names) >= 10
    for name in names:
        value = importlib.import_module(name.split(".")[0])
        for part in name.split(".")[1:]:
            with contextlib.suppress(ImportError, AttributeError):
                importlib.import_module(f"{value.__name__}.{part}")
            value = getattr(value, part)


def test_a_refused_class_is_a_class() -> None:
    assert not isinstance(3, deep_gemm.SymmBuffer)


def test_unknown_names() -> None:
    for place in (deep_gemm, deep_gemm.utils, deep_gemm.testing, deep_gemm.mega, deep_gemm.legacy):
        assert not hasattr(place, "gemm_fp8_fp8_bf16_nt")
        with pytest.raises(AttributeError, match="has no attribute 'no_such_product'"):
            _ = place.no_such_product
    with pytest.raises(ImportError):
        exec("from longcat_ops.compat.deep_gemm import no_such_product")


def test_it_imports_no_deep_gemm() -> None:
    for file in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "deep_gemm" for name in names), file


@pytest.mark.long
def test_importing_is_silent_and_touches_no_gpu() -> None:
    code = (
        "import sys, longcat_ops.compat.deep_gemm as deep_gemm, torch\n"
        "from longcat_ops.compat.deep_gemm.utils import per_token_cast_to_fp8\n"
        "assert not torch.cuda.is_initialized() and 'deep_gemm' not in sys.modules\n"
        "assert deep_gemm.__version__ == '2.6.1'\n"
        "sys.modules['torch'] = None\n"
        "for name in [n for n in sys.modules if n.startswith('longcat_ops')]: del sys.modules[name]\n"
        "try: import longcat_ops.compat.deep_gemm\n"
        "except ImportError as error: assert 'longcat_ops needs torch >= ' in str(error), error\n"
        "else: raise AssertionError"
    )
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from longcat_ops.compat.deep_gemm import _settings

    monkeypatch.setattr(_settings, "_settings", dict(_settings._settings))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("settings")
def test_settings_are_kept() -> None:
    for setter, (getter, values, default) in SETTERS.items():
        assert getattr(deep_gemm, getter)() == default
        for value in values:
            assert getattr(deep_gemm, setter)(value) is None
            assert getattr(deep_gemm, getter)() == value
        getattr(deep_gemm, setter)(0)
        assert getattr(deep_gemm, getter)() == default
    assert deep_gemm.get_pdl() is False
    deep_gemm.set_pdl(True)
    assert deep_gemm.get_pdl() is True
    assert deep_gemm.get_mk_alignment_for_contiguous_layout() == 128
    assert deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout() == 128
    assert deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout(expected_m=24) == 128
    deep_gemm.set_mk_alignment_for_contiguous_layout(1)
    for getter in ("get_mk", "get_m", "get_k"):
        assert getattr(deep_gemm.utils, f"{getter}_alignment_for_contiguous_layout")() == 1
    for value in (1, 16, (16, 32), [8, 8]):
        assert deep_gemm.set_block_size_multiple_of(value) is None
    assert deep_gemm.set_ignore_compile_dims(True) is None


def test_sms_are_those_of_the_device(settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        multi_processor_count = 78

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert deep_gemm.get_num_sms() == 78
    with pytest.raises(LongcatShapeError, match=r"`new_num_sms` is 79, expected an int of 0 \.\. 78\."):
        deep_gemm.set_num_sms(79)


BAD_SETTINGS = [
    ("set_num_sms", 133, "`new_num_sms` is 133, expected an int of 0 .. 132."),
    ("set_num_sms", -1, "`new_num_sms` is -1, expected an int of 0 .. 132."),
    ("set_num_sms", True, "`new_num_sms` is True, expected an int of 0 .. 132."),
    ("set_tc_util", 101, "`new_tc_util` is 101, expected an int of 0 .. 100."),
    ("set_tc_util", 50.0, "`new_tc_util` is 50.0, expected an int of 0 .. 100."),
    ("set_pdl", 1, "`new_enable_pdl` is 1, expected True or False."),
    ("set_ignore_compile_dims", None, "`new_value` is None, expected True or False."),
    ("set_block_size_multiple_of", 0, "`new_value` is 0, expected an int of 1 or more."),
    ("set_block_size_multiple_of", (1, 2, 3), "`new_value` is (1, 2, 3), expected a positive int, or two of them."),
    ("set_mk_alignment_for_contiguous_layout", 0, "`new_value` is 0, expected an int of 1 or more."),
    ("set_mk_alignment_for_contiguous_layout", "128", "`new_value` is '128', expected an int of 1 or more."),
    (
        "get_theoretical_mk_alignment_for_contiguous_layout",
        -1,
        "`expected_m` is -1, expected an int of 0 or more.",
    ),
]


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(("name", "value", "text"), BAD_SETTINGS)
def test_bad_settings_are_refused_and_change_nothing(name: str, value: object, text: str) -> None:
    from longcat_ops.compat.deep_gemm import _settings

    before = dict(_settings._settings)
    with pytest.raises(LongcatShapeError) as caught:
        getattr(deep_gemm, name)(value)
    assert str(caught.value) == f"{name}: argument {text}"
    assert _settings._settings == before
