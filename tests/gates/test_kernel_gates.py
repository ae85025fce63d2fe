"""The built library passes every gate of tools/check_kernels.py, and each gate finds the mistake planted for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import check_kernels
from check_kernels import LIBRARY, Library
from cuda_tools import NVCC
from kernel_gates import artefact, baseline
from kernel_gates.fences import Shape, check_fences
from kernel_gates.loops import Instruction, check_loops, stage_instructions
from kernel_gates.opcodes import Row, check_opcodes
from kernel_gates.ptx_lint import lint
from support.kernel_compiler import ROOT, SOURCES, Compiler, needs_cuobjdump, needs_nvcc

GEMM, NO_WAIT, NO_FENCE = (f"gemm_kernel<16, (Bug){bug}>" for bug in (0, 2, 4))
needs_kernels = pytest.mark.skipif(not LIBRARY.exists(), reason="CPU-only build: nvcc was not found")
pytestmark = needs_cuobjdump


@needs_kernels
def test_the_library_passes(capsys: pytest.CaptureFixture[str]) -> None:
    failed = check_kernels.main([])
    printed = capsys.readouterr().out
    assert not failed, f"python tools/check_kernels.py:\n{printed}"
    gates = [
        "stack and spills",
        "registers",
        "registers handed over",
        "inner loops",
        "collectives",
        "notes of ptxas",
        "wgmma in PTX",
        "only sm_90a",
        "opcodes",
    ]
    assert [line[6:].split(":")[0] for line in printed.splitlines() if line.startswith("ok ")] == gates


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Library:
    compiler = Compiler(tmp_path_factory.mktemp("compiled"))
    return Library(compiler.compile(SOURCES / "gates.cu", "o"), compiler.folder)


@needs_nvcc
def test_spills(planted: Library) -> None:
    (problem,) = planted.check_memory().problems
    assert problem.startswith("spilling_kernel: ") and problem.endswith(" bytes of stack, 0 of local memory")


@needs_nvcc
def test_notes(planted: Library) -> None:
    problems = planted.check_notes().problems
    symbols = {name: symbol for symbol, name in planted.names.items()}
    found = [(note, name) for name in symbols for note in ("C7517", "C7519") for problem in problems
             if f"({note})" in problem and symbols[name] in problem]  # fmt: skip
    assert sorted(found) == [("C7517", NO_WAIT), ("C7519", NO_FENCE)]
    assert sum("(C7508) Potential Performance Loss: 'setmaxnreg' ignored" in problem for problem in problems) == 1
    assert len(problems) == 3 and all(problem.startswith("tests/gates/cuda/gates.cu: ") for problem in problems)


@needs_nvcc
def test_wgmma_in_ptx(planted: Library) -> None:
    problems = planted.check_ptx().problems
    start = "tests/gates/cuda/gates.cu.o.ptx: "
    assert {problem.removeprefix(start).split(": line")[0] for problem in problems} == {NO_WAIT, NO_FENCE}
    assert [NO_FENCE in problem for problem in problems].count(True) == 1
    assert any(f"{NO_WAIT}: line " in problem and "touches %f" in problem for problem in problems)


@needs_nvcc
@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("wgmma.fence.sync.aligned;", "", "no wgmma.fence"),
        ("wgmma.wait_group.sync.aligned 0;", "", "touches"),
        ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;", "touches"),
        ("wgmma.commit_group.sync.aligned;", "", "touches"),
        ("wgmma.commit_group.sync.aligned;", "wgmma.commit_group.sync.aligned; neg.f32 %f1, {};", "touches"),
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned; mov.f32 {}, 0f3F800000;", "no wgmma.fence"),
    ],
)
def test_a_change_to_the_ptx_of_a_main_loop(planted: Library, old: str, new: str, finding: str) -> None:
    """The main loop of a GEMM kernel as nvcc compiles it passes; with one instruction removed or added it fails."""
    (compilation,) = planted.compilations
    symbol = next(symbol for symbol, name in planted.names.items() if name == GEMM)
    (text,) = (".entry " + part for part in compilation.ptx.split(".entry ") if part.startswith(f"{symbol}("))
    assert lint(text) == [] and text.count(old) == 1
    accumulator = text.split("wgmma.mma_async")[1].split("{")[1].split(",")[0]
    assert finding in lint(text.replace(old, new.format(accumulator)))[0].problem


@needs_nvcc
def test_opcodes(planted: Library) -> None:
    """The gate reports missing and unwanted opcodes, and a row that names no kernel."""
    names = ("QGMMA", "UTMALDG.2D", "UTMASTG.2D", "UBLKCP", "USETMAXREG", "STSM", "SYNCS", "WARPGROUP")
    assert planted.check_opcodes((Row(r"gemm_kernel<.*>", must=names, never=("LDL", "STL")),)).problems == []
    table = (Row(".*", never=("LDL",)), Row("(spilling|unbounded)_kernel", must=("STG", "QGMMA")), Row("no_kernel<.*>"))
    assert planted.check_opcodes(table).problems == [
        "spilling_kernel: has LDL",
        "spilling_kernel: no QGMMA",
        "unbounded_kernel: no QGMMA",
        "no kernel is called no_kernel<.*>: correct or remove that row",
    ]
    assert "no row of its own: gemm_kernel" in planted.check_opcodes(table).summary


def test_opcodes_are_compared_by_whole_modifiers() -> None:
    opcodes = {"a_kernel": ["LDG.E.128.CONSTANT", "STGX"]}
    assert check_opcodes(opcodes, (Row(".*", must=("LDG.E.128", "LDG"), never=("LDG.E.12", "STG", "E")),)) == []


@needs_nvcc
def test_foreign_code(tmp_path: Path) -> None:
    source, target = tmp_path / "foreign.cu", tmp_path / "foreign.o"
    source.write_text("__global__ void foreign_kernel(int* p) { *p = 1; }\n")
    code = ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]", "-gencode=arch=compute_80,code=sm_80"]
    subprocess.run([NVCC, *code, "-c", source, "-o", target], check=True, capture_output=True)
    machine, ptx = sorted(Library(target, tmp_path).check_code().problems)
    assert machine.startswith("PTX: ") and machine.endswith(".ptx")
    assert ptx.startswith("machine code for another architecture: ") and ptx.endswith(".sm_80.cubin")


@needs_nvcc
def test_registers(planted: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Changed, new and lost kernels are reported until the baseline is renewed; another nvcc may change counts."""
    path = tmp_path / "registers.txt"
    (problem,) = planted.check_registers(path).problems
    assert problem.endswith("make it: python tools/check_kernels.py --renew")

    old = dict(planted.registers)
    old[GEMM] += 8
    del old["spilling_kernel"]
    path.write_text(baseline.render(planted.nvcc, old | {"lost_kernel<1>": 40}))
    changes = [f"{GEMM}: 176 -> 168", "lost_kernel<1>: removed (had 40)", "spilling_kernel: added with 32"]
    *found, remedy = planted.check_registers(path).problems
    assert found == changes
    assert remedy == "if that is meant: python tools/check_kernels.py --renew and commit registers.txt"

    check_kernels.renew(planted, path)
    assert capsys.readouterr().out.splitlines() == [*changes, f"wrote registers.txt: {len(planted.registers)} kernels"]
    assert planted.check_registers(path).problems == []

    path.write_text(baseline.render("99.0.1", planted.registers | {GEMM: 100}))
    verdict = planted.check_registers(path)
    assert verdict.problems == [] and f"{GEMM}: 100 -> 168" in verdict.summary and "99.0.1" in verdict.summary
    path.write_text(baseline.render("99.0.1", old))
    assert "spilling_kernel: added with 32" in planted.check_registers(path).problems


@needs_nvcc
def test_registers_that_are_handed_over(planted: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """GEMM redistributes registers, so it must have at least kFewestRegisters (168) under any nvcc."""
    assert planted.check_handed_over().problems == []
    monkeypatch.setattr(check_kernels, "FEWEST_REGISTERS", 176)
    assert f"{GEMM}: 168 registers, expected at least 176 (kFewestRegisters)" in planted.check_handed_over().problems


def test_the_number_is_that_of_the_kernels() -> None:
    """At kFewestRegisters, and no fewer, the producers release enough registers for two consumer warpgroups."""
    text = (ROOT / "cuda/gemm/layout.h").read_text()
    consumers, producers = map(
        int, re.search(r"kConsumerRegisters = (\d+), kProducerRegisters = (\d+);", text).groups()
    )
    fewest = check_kernels.FEWEST_REGISTERS
    assert (fewest - producers) * 128 >= 2 * (consumers - fewest) * 128
    assert (fewest - 8 - producers) * 128 < 2 * (consumers - fewest + 8) * 128


def instructions(*opcodes: str | tuple[str, int]) -> list[Instruction]:
    """Instructions of 16 bytes each; a branch is given with the number of its target instruction."""
    parts = [(code, None) if isinstance(code, str) else (code[0], 16 * code[1]) for code in opcodes]
    return [Instruction(16 * i, opcode, target) for i, (opcode, target) in enumerate(parts)]


def test_inner_loops() -> None:
    """Stages are counted in a loop over tiles that holds a loop of two one-pass stages and one of a two-pass stage."""
    product, poll = "QGMMA.64x8x32.F32.E4M3.E4M3", "SYNCS.PHASECHK.TRANS64.TRYWAIT"
    stage = (poll, *[product] * 4)
    code = instructions(*[product] * 4, *stage, "FFMA", *stage, ("BRA", 4), "EXIT", poll, *[product] * 8, ("BRA", 17),
                        ("BRA", 0))  # fmt: skip
    found = stage_instructions(code)
    assert found == {"8": 6, "2 x 8": 10}
    assert check_loops({"a<1>": found}, [("a<.>", {"8": 6, "2 x 8": 10})]) == []
    assert check_loops({"a<1>": found}, [("a<.>", {"8": 5, "2 x 16": 10}), ("b", {})]) == [
        "a<1>: forms of the inner loop differ from those of the table: ['2 x 16', '2 x 8']",
        "a<1>: 6 instructions a stage at 8 tokens, expected at most 5",
        "no kernel is called b: correct or remove that row",
    ]


def test_fences() -> None:
    """Fences are counted and followed by what they release; a store ends a batch of loads."""
    fence, arrival, load = "MEMBAR.ALL.SYS", "REDG.E.ADD.STRONG.SYS", "LDGMC.E.F32ADD.BF16x8.RN.STRONG.SYS"
    code = {"a<1>": instructions(load, "IADD3", load, "STG.E.128.STRONG.SYS", load, fence, "ERRBAR", arrival, "EXIT")}
    assert check_fences(code, [Shape("a<1>", fences=1, batch=2)]) == []
    assert check_fences(code, [Shape("a<.>", fences=2, batch=3), Shape("b", 0)]) == [
        "a<1>: 1 fences of the whole system, expected 2",
        "a<1>: 2 loads through the switch in a row, expected 3",
        "no kernel is called b: correct or remove that row",
    ]
    late = {"a<1>": instructions(fence, *["IADD3"] * 8, arrival)}
    assert check_fences(late, [Shape("a<1>", fences=1)]) == [
        "a<1>: a fence of the whole system that no arrival and no record follows"
    ]


def test_the_baseline_is_sorted_and_read_as_written() -> None:
    registers = {"b_kernel<8, (Kind)0>": 64, "b_kernel<16, (Kind)0>": 7, "a_kernel": 168, "b_kernel<8, (Kind)1>": 9}
    text = baseline.render("13.0.88", registers)
    lines = ["a_kernel", "  168", "", "b_kernel", "   64  8, (Kind)0", "    9  8, (Kind)1", "    7  16, (Kind)0"]
    assert text.split("nvcc ")[1].splitlines() == ["13.0.88", "", *lines]
    assert baseline.parse(text) == ("13.0.88", registers)


def test_short_names() -> None:
    symbols = {
        "_ZN11longcat_ops5quant18dequant_fp8_kernelINS_6device8BFloat16ELi1ELb0EEEvNS0_16DequantFp8ParamsE":
            "dequant_fp8_kernel<BFloat16, 1, false>",
        "_ZN11longcat_ops12moe_dispatch18moe_combine_kernelINS0_8WideRowsINS_6device8BFloat16EEEEEvNS0_16MoeCombineParamsE":
            "moe_combine_kernel<WideRows<BFloat16>>",
        "_ZN12_GLOBAL__N_112plain_kernelEPFviE": "plain_kernel",  # a parameter with parentheses of its own
        "_Z14counted_kernelILj32ELm8ELi7EEvv": "counted_kernel<32, 8, 7>",
        "c_kernel": "c_kernel",
    }  # fmt: skip
    assert artefact.short_names(symbols) == symbols
    with pytest.raises(ValueError, match="different namespaces have the same name: f"):
        artefact.short_names(["_ZN1a1fEv", "_ZN1b1fEv"])


@needs_nvcc
def test_kernels_without_a_record(planted: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of another tree, or one built without the compiler launcher, is reported and gives no baseline."""
    (problem,) = Library(planted.path, tmp_path).check_notes().problems
    assert problem.startswith(f"{len(planted.resources)} kernels, ")
    assert "have no record of their compilation" in problem
    monkeypatch.setattr(check_kernels, "renew", lambda library: pytest.fail("a baseline of an unknown nvcc"))
    assert check_kernels.main([str(planted.path), "--renew"]) == 1


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "check_kernels.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_command(tmp_path: Path) -> None:
    done = run(tmp_path / "none.so")
    assert done.returncode == 1 and done.stdout == f"{tmp_path / 'none.so'} does not exist; build it: ./run build\n"
    done = run(shutil.which("c++filt"))
    assert done.returncode == 1 and "does not contain device code" in done.stdout and done.stderr == ""


def test_without_nvcc_the_gates_are_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(check_kernels, "LIBRARY", Path("nowhere/liblongcat_kernels.so"))
    monkeypatch.delenv("LONGCAT_CUDA", raising=False)
    monkeypatch.setattr(check_kernels, "NVCC", None)
    assert check_kernels.main([]) == 0
    assert capsys.readouterr().out.startswith("compiler gates left out: nvcc was not found")
    monkeypatch.setattr(check_kernels, "NVCC", "/some/nvcc")
    assert check_kernels.main([]) == 1
    monkeypatch.setenv("LONGCAT_CUDA", "off")
    assert check_kernels.main([]) == 0
    assert "left out: LONGCAT_CUDA=OFF" in capsys.readouterr().out
