"""Importing is silent, quick and never fails; every partial installation gets one message on first use."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "longcat_ops"
USE = "import longcat_ops\nlongcat_ops._library.load()\n"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LONGCAT_OPS_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, cwd="/", capture_output=True, text=True, timeout=120
    )


def fails_with(code: str, *texts: str, **environment: str) -> str:
    result = run_python(code, **environment)
    assert result.returncode == 1, result.stdout + result.stderr
    for text in texts:
        assert text in result.stderr
    return result.stderr


@pytest.fixture
def source_copy(tmp_path: Path) -> Path:
    """The package's own Python files, as a source tree that was never built."""
    root = tmp_path / "tree"
    shutil.copytree(PACKAGE, root / "python" / "longcat_ops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (root / "CMakeLists.txt").touch()
    return root


def test_import_is_silent_and_leaves_torch_alone() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import longcat_ops; spent = time.perf_counter() - start\n"
        "assert 'torch' not in sys.modules; assert spent < 1.0, spent; assert dir(longcat_ops)"
    )
    result = run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_ops_are_registered_when_torch_came_first() -> None:
    result = run_python("import torch, longcat_ops; torch.ops.longcat_ops.dequant_fp8.default")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_unknown_name() -> None:
    import longcat_ops

    with pytest.raises(AttributeError, match="has no attribute 'no_such_op'"):
        _ = longcat_ops.no_such_op


def test_every_public_name_is_listed_once() -> None:
    import longcat_ops

    assert len(longcat_ops.__all__) == len(set(longcat_ops.__all__))
    assert set(longcat_ops.__all__) <= set(dir(longcat_ops))


@pytest.mark.parametrize(
    ("name", "nearest"), [("LONGCAT_OPS_BACKENDS", "LONGCAT_OPS_BACKEND"), ("LONGCAT_OPS_LOG", "LONGCAT_OPS_COMM")]
)
def test_unknown_variable_names_the_nearest(name: str, nearest: str) -> None:
    result = run_python("import longcat_ops", **{name: "cpu"})
    assert result.returncode == 0
    assert f"{name} is not known to longcat_ops; did you mean {nearest}?" in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LONGCAT_OPS_BACKEND", "gpu", "expected one of reference, cpu, emu, cuda"),
        ("LONGCAT_OPS_TIMEOUT_S", "-3", "expected a number of seconds, 0 for no limit"),
        ("LONGCAT_OPS_TIMEOUT_S", "1e300", "expected a number of seconds, 0 for no limit, at most 1e+09"),
        ("LONGCAT_OPS_COMM", "nvls", "expected one of auto, multimem, p2p, nccl, gloo"),
        ("LONGCAT_OPS_CPU_ISA", "avx1024", "expected one of baseline, avx2, avx512"),
    ],
)
def test_bad_value_waits_for_first_use(name: str, value: str, expected: str) -> None:
    assert run_python("import longcat_ops", **{name: value}).stderr == ""
    fails_with(USE, f"environment variable {name} is '{value}', {expected}", **{name: value})


def test_cuda_backend_refuses_cpu_tensors() -> None:
    call = "import torch, longcat_ops\nlongcat_ops.per_block_quant_fp8(torch.zeros(1, 8))\n"
    fails_with(call, "LONGCAT_OPS_BACKEND=cuda takes no CPU tensors", LONGCAT_OPS_BACKEND="cuda")


COMPARE = """
import hashlib, torch, longcat_ops
x = torch.randn(140, 576, generator=torch.Generator().manual_seed(0)); x[3, 3] = float("nan"); x[5, 5] = float("inf")
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for op in (longcat_ops.per_token_group_quant_fp8, longcat_ops.per_block_quant_fp8):
        q, s = op(x.to(dtype))
        for part in (q, s.nan_to_num(7), longcat_ops.dequant_fp8(q, s, dtype).nan_to_num(7)):
            digest.update(part.view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


def test_backends_and_instruction_sets_agree_bit_for_bit() -> None:
    from longcat_ops import _library

    settings = [{"LONGCAT_OPS_CPU_ISA": isa} for isa in _library.load().build_info()["cpu_isas"]]
    settings.append({"LONGCAT_OPS_BACKEND": "reference"})
    digests = set()
    for setting in settings:
        result = run_python(COMPARE, **setting)
        assert result.returncode == 0, result.stderr
        digests.add(result.stdout)
    assert len(digests) == 1


ROUNDED = """
import hashlib, torch, longcat_ops as lc
torch.manual_seed(0)
digest = hashlib.sha256()
def add(*tensors):
    for t in tensors:
        digest.update(t.contiguous().view(torch.uint8).numpy().tobytes())
a, b = lc.per_token_group_quant_fp8(torch.randn(9, 200)), lc.per_block_quant_fp8(torch.randn(72, 200))
add(lc.fp8_gemm_nt(a, b), lc.fp8_gemm_nt(a, b, torch.empty(9, 72)), *lc.silu_and_mul_quant_fp8(torch.randn(5, 320)))
x, y = torch.randn(9, 200), torch.randn(72, 200)
add(lc.bf16_gemm_nt(x, y), lc.bf16_gemm_nt(x.bfloat16(), y.bfloat16(), torch.empty(9, 72)))
halves = torch.randn(2, 2 * 136, 200)
q, s = zip(*(lc.per_block_quant_fp8(half) for expert in halves for half in expert.split(136)))
w = lc.interleave_gate_up(torch.cat(q).view(2, 272, 200), torch.cat(s).view(2, 4, 2))
offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
add(*lc.m_grouped_fp8_swiglu_gemm_nt_offset(a, w, offsets))
add(lc.m_grouped_fp8_swiglu_gemm_nt_offset(a, w, offsets, quantise=False))
sizes = dict(top_k=12, num_experts=768, num_zero_experts=256, scale=6.0)
add(*lc.moe_route(torch.randn(17, 768), torch.randn(768), **sizes))
print(digest.hexdigest())
"""


def test_sums_do_not_depend_on_the_instruction_set() -> None:
    from longcat_ops import _library

    results = [run_python(ROUNDED, LONGCAT_OPS_CPU_ISA=isa) for isa in _library.load().build_info()["cpu_isas"]]
    assert all(result.returncode == 0 for result in results), results
    assert len({result.stdout for result in results}) == 1


def test_reference_backend_checks_and_maps_errors() -> None:
    code = "import torch, longcat_ops\nlongcat_ops.per_block_quant_fp8(torch.zeros(1, 9))"
    text = fails_with(code, "LongcatShapeError: per_block_quant_fp8: argument `w` is", LONGCAT_OPS_BACKEND="reference")
    assert "[LC-" not in text.splitlines()[-3]


def test_torch_missing() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nimport longcat_ops\n"
        "try: longcat_ops._library.load()\nexcept ImportError as error: print(error)"
    )
    result = run_python(code)
    assert result.stderr == ""
    assert "pip install" in result.stdout


WITHOUT_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise {error}
sys.meta_path.insert(0, Blocker())
import longcat_ops
"""
NOT_INSTALLED = "ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
BROKEN = "OSError('libtorch_cpu.so: cannot open shared object file')"
EVERY_NAME = """
import importlib
texts, silent = set(), set()
def note(what, use):
    try: use()
    except longcat_ops.LongcatLibraryError as error: texts.add(str(error))
    else: silent.add(what)
for name in longcat_ops.__all__:
    note(name, lambda: getattr(longcat_ops, name))
for name in longcat_ops.ops.__all__:
    note("ops." + name, lambda: getattr(longcat_ops.ops, name))
for name in longcat_ops._SUBMODULES:
    note("import " + name, lambda: importlib.import_module("longcat_ops." + name))
def statement(text): note(text, lambda: exec(text))
statement("from longcat_ops import LongcatFlashConfig")
statement("from longcat_ops import generate")
statement("longcat_ops.rms_norm(None, None, 1e-5)")
statement("longcat_ops.supports('rms_norm', None, None, 1e-5)")
statement("longcat_ops.ops.supports('rms_norm', None, None, 1e-5)")
statement("longcat_ops.LongcatFlashForCausalLM.from_pretrained('.')")
statement("from longcat_ops.reference import rms_norm")
statement("import longcat_ops.loading.checkpoint")
statement("longcat_ops.integrations.transformers.enable()")
assert len(texts) == 1, texts
print(*texts, sep="")
print(sorted(silent))
"""
NEED_NO_TORCH = {
    "LongcatCheckpointError", "LongcatCommError", "LongcatCorruptionError", "LongcatError", "LongcatLibraryError",
    "LongcatShapeError", "LongcatTimeoutError", "LongcatUnsupportedError", "__version__", "errors", "integrations",
    "ops", "ops.supports", "import errors", "import integrations", "import ops", "import perf", "perf",
}  # fmt: skip


@pytest.mark.parametrize(
    ("error", "found"),
    [(NOT_INSTALLED, "torch is not installed"), (BROKEN, "torch cannot load: libtorch_cpu.so: cannot open")],
)
def test_every_public_name_says_that_torch_is_missing(error: str, found: str) -> None:
    result = run_python(WITHOUT_TORCH.format(error=error) + EVERY_NAME)
    assert (result.returncode, result.stderr) == (0, "")
    text, fix, silent = result.stdout.splitlines()
    assert text.startswith("longcat_ops needs torch >= 2.11, and in ") and found in text
    assert fix == f'  fix: {sys.executable} -m pip install "torch>=2.11"'
    assert set(ast.literal_eval(silent)) == NEED_NO_TORCH


@pytest.mark.parametrize("error", [NOT_INSTALLED, BROKEN])
@pytest.mark.parametrize("command", ["'generate', '.'", "'generate', '--prompt', 'x'", "'plan', '.', '--json'"])
def test_commands_say_that_torch_is_missing(error: str, command: str) -> None:
    code = WITHOUT_TORCH.format(error=error) + f"from longcat_ops.cli import main\nsys.exit(main([{command}]))"
    result = run_python(code)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("longcat_ops: longcat_ops needs torch >= 2.11, and in ")
    assert result.stderr.endswith('pip install "torch>=2.11"\n') and len(result.stderr.splitlines()) == 2


def test_torch_not_installed_and_torch_too_old(tmp_path: Path, source_copy: Path) -> None:
    python = str(source_copy / "python")
    for library in PACKAGE.glob("*.so"):
        shutil.copy(library, source_copy / "python" / "longcat_ops")
    code = f"import sys; sys.path[:] = [{python!r}, *[p for p in sys.path if 'site-packages' not in p]]\n"
    use = "import longcat_ops; assert longcat_ops.__version__\nlongcat_ops._library.load()"
    fails_with(code + use, "LongcatLibraryError: longcat_ops needs torch >= 2.11, and in", "torch is not installed")

    (tmp_path / "old" / "torch").mkdir(parents=True)
    (tmp_path / "old" / "torch" / "__init__.py").write_text("__version__ = '2.10.1+cu126'\n")
    code += f"sys.path.insert(0, {str(tmp_path / 'old')!r})\n"
    fails_with(
        code + use,
        "longcat_ops needs torch >= 2.11, found torch 2.10.1+cu126 in",
        'pip install "torch>=2.11"',
    )


def test_half_built_trees(source_copy: Path) -> None:
    package = source_copy / "python" / "longcat_ops"
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r})\nimport longcat_ops; longcat_ops._library.load()"
    fails_with(code, f"longcat_ops in {package} is not built: _C and liblongcat_torch missing", "./run build")

    for library in PACKAGE.glob("*.so"):
        shutil.copy(library, package)
    (package / "liblongcat_torch.so").unlink()
    fails_with(code, "is not built: liblongcat_torch missing", "./run build")

    whole = (PACKAGE / "liblongcat_torch.so").read_bytes()
    (package / "liblongcat_torch.so").write_bytes(whole[: len(whole) // 2])
    fails_with(code, "liblongcat_torch.so is cut short, as by an interrupted build or copy", "./run build")
    (package / "liblongcat_torch.so").write_bytes(bytes(len(whole)))
    fails_with(code, f"the native libraries of longcat_ops in {package} cannot be loaded", "./run build")

    (package / "liblongcat_torch.so").write_bytes(whole)
    init = package / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "9'))
    fails_with(code, "found native libraries of version", "./run build")


def test_source_tree_before_an_installed_copy(source_copy: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site" / "longcat_ops"
    shutil.copytree(PACKAGE, installed, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        f"import sys; sys.path[:0] = [{str(source_copy / 'python')!r}, {str(installed.parent)!r}]\n"
        "import longcat_ops; longcat_ops._library.load()"
    )
    fails_with(code, f"An installed copy is in {installed}, but the source tree comes first on sys.path")


def test_the_kept_error_is_the_same_on_each_use(source_copy: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(source_copy / 'python')!r})\nimport longcat_ops\ntexts = set()\n"
        "for _ in range(3):\n"
        "    try: longcat_ops._library.load()\n"
        "    except longcat_ops.LongcatUnsupportedError as error: texts.add(str(error))\n"
        "assert len(texts) == 1, texts"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
