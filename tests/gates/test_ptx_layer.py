"""cuda/ptx: every wrapper compiles for sm_90a to the instruction it is named after, and no other code holds asm.

Nothing here runs on a GPU. Tests that compile need nvcc; those that read machine code also need nvdisasm.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.primitives import FUNCTION, wrapped
from kernel_gates.ptx_lint import lint
from support.kernel_compiler import GENERATOR, ROOT, SOURCES, Compiler, needs_nvcc, needs_nvdisasm

PTX = ROOT / "cuda" / "ptx"
LINK = re.compile(r"// https://docs\.nvidia\.com/cuda/parallel-thread-execution/#[a-z0-9-]+\n")
CXX = shutil.which(os.environ.get("CXX", "g++"))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("compiled"))


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "standard"),
    [("ptx_layer", 17), ("ptx_layer", 20), ("ptx_cluster", 20), ("ptx_multimem", 20), ("ptx_wgmma", 20)],
)
def test_compiles_without_a_word(compiler: Compiler, name: str, standard: int) -> None:
    """nvcc prints nothing: no warning, no spill, no ptxas note such as C7510 (wgmma serialised).

    tests/gates/test_kernel_gates.py shows that each of these would be printed.
    """
    cubin = compiler.compile(SOURCES / f"{name}.cu", standard=standard)
    assert Path(f"{cubin}.notes").read_text() == ""


def test_every_wrapper_is_called() -> None:
    text = "".join(path.read_text() for path in SOURCES.glob("*.cu"))
    names = wrapped()
    assert len(names) > 80
    assert [name for name in names if not re.search(rf"\bptx::{name}\b", text)] == []


# The machine code that nvcc 13.0 generates for each wrapper: opcode and, where it matters, operands.
LAYER = {
    # thread.cuh
    r"S2U?R \w+, SR_VIRTUALSMID": 1,  # smid
    r"ACQBULK": 1,  # griddepcontrol.wait
    r"PREEXIT": 1,  # griddepcontrol.launch_dependents
    r"USETMAXREG\.TRY_ALLOC\.CTAPOOL .*0xe8": 1,
    r"USETMAXREG\.DEALLOC\.CTAPOOL 0x28": 1,
    r"ELECT ": 2,
    r"SHFL\.(IDX|BFLY|UP) ": 4,
    r"VOTEU?\.(ANY|ALL) ": 3,
    r"REDUX\.(MAX|MIN) ": 2,
    r"MATCH\.ANY ": 1,
    r"POPC ": 1,
    r"BAR\.ARV 0x1, 0x80": 1,
    r"BAR\.SYNC\.DEFER_BLOCKING 0x1, 0x80": 1,
    r"BAR\.SYNC\.DEFER_BLOCKING 0x0": 1,
    # memory.cuh
    r"LDS(\.U8|\.U16|\.64|\.128)? ": 5,
    r"STS(\.U8|\.U16|\.64|\.128)? ": 5,
    r"LDG\.E\.NA\.(U8\.|U16\.|64\.|128\.)?CONSTANT ": 5,  # ld.global.nc.L1::no_allocate
    r"LDG\.E\.(64\.)?STRONG\.(GPU|SYS) ": 12,
    r"STG\.E\.(64\.|128\.)?STRONG\.(GPU|SYS) ": 8,  # ptxas may merge neighbours
    r"REDG\.E\.ADD\.STRONG\.GPU ": 2,
    r"REDG\.E\.ADD\.STRONG\.SYS ": 2,
    r"ATOMG\.E\.ADD\.STRONG\.GPU ": 1,
    r"MEMBAR\.ALL\.CTA": 1,
    r"MEMBAR\.ALL\.GPU": 2,  # gpu and cluster
    r"MEMBAR\.ALL\.SYS": 1,
    r"FENCE\.VIEW\.ASYNC\.S": 2,  # shared, and both
    r"FENCE\.VIEW\.ASYNC\.G": 1,
    r"CCTL\.E\.PF2 ": 1,
    r"NANOSLEEP 0x20": 1,
    # mbarrier.cuh
    r"SYNCS\.EXCH\.64 ": 1,  # init
    r"SYNCS\.ARRIVE\.TRANS64\.A1T0 ": 1,  # arrive
    r"SYNCS\.ARRIVE\.TRANS64 ": 1,  # expect_tx and arrive_n, or both in one
    r"SYNCS\.ARRIVE\.TRANS64\.ART0 ": 1,
    r"SYNCS\.PHASECHK\.TRANS64\.TRYWAIT ": 2,
    r"SYNCS\.PHASECHK\.TRANS64 ": 1,
    # tma.cuh
    r"UTMACCTL\.PF ": 1,
    **{rf"{opcode}\.{rank}D ": 1 for rank in range(1, 6) for opcode in ("UTMALDG", "UTMASTG")},
    **{rf"UTMALDG\.{rank}D .*, desc\[": 2 for rank in range(1, 6)},  # with a policy
    r"UBLKCP\.S\.G ": 1,
    r"UBLKCP\.G\.S ": 1,
    r"UTMACMDFLUSH": 1,  # commit
    r"DEPBAR\.LE SB0, 0x1": 1,  # bulk_wait_read<1>
    r"DEPBAR\.LE SB0, 0x0": 1,
    # matrix.cuh
    **{rf"{opcode}\.16\.{layout}{size} ": 1 for opcode in ("LDSM", "STSM") for layout in ("M88", "MT88")
       for size in ("", r"\.2", r"\.4")},
    # convert.cuh
    r"F2FP\.SATFINITE\.E4M3\.F32\.PACK_AB_MERGE_C ": 2,
    r"F2FP\.F16\.E4M3\.UNPACK_B ": 1,
    r"F2FP\.BF16\.F32\.PACK_AB ": 1,
    r"F2FP\.F16\.F32\.PACK_AB ": 1,
    r"HADD2\.F32 ": 6,  # f16 to f32
}  # fmt: skip

# Shared memory of other blocks is accessed by generic addresses: LD, ST, ATOM instead of LDS, STS, ATOMS.
CLUSTER = {
    r"S2U?R \w+, SR_CgaCtaId": 1,
    r"PRMT R\d+, R\d+, 0x654, ": 1,  # mapa: the rank into the topmost byte
    r"UCGABAR_ARV": 3,
    r"UCGABAR_WAIT": 3,
    r"LD\.E(\.U8|\.U16|\.64|\.128)? ": 5,
    r"ST\.E(\.U8|\.U16|\.64|\.128)? ": 5,
    r"LD\.E\.(64\.)?STRONG\.GPU ": 4,
    r"ST\.E\.(64\.)?STRONG\.GPU ": 4,
    r"ATOM\.E\.ADD\.STRONG\.GPU PT, RZ, ": 2,
    r"ATOM\.E\.ADD\.STRONG\.GPU PT, R\d+, ": 1,
    r"STAS(\.64|\.128)? ": 3,
    r"SYNCS\.ARRIVE\.TRANS64\.RED\.A1T0 ": 2,  # arrive, released and relaxed
    r"SYNCS\.ARRIVE\.TRANS64\.RED ": 1,  # arrive.expect_tx
    r"SYNCS\.ARRIVE\.TRANS64\.RED\.A0TR ": 1,  # expect_tx
    r"SYNCS\.PHASECHK\.TRANS64\.TRYWAIT ": 2,
    r"SYNCS\.PHASECHK\.TRANS64 ": 1,
    r"CCTL\.IVALL": 4,  # acquire at cluster scope
    r"FENCE\.VIEW\.ASYNC\.S": 2,
    **{rf"UTMALDG\.{rank}D\.MULTICAST ": 2 for rank in range(1, 6)},
    **{rf"UTMALDG\.{rank}D\.MULTICAST .*, desc\[": 1 for rank in range(1, 6)},  # with a policy
}  # fmt: skip

# Weak loads become strong ones in machine code. Stores and reductions are the same opcodes as for ordinary addresses.
MULTIMEM = {
    **{rf"LDGMC\.E\.ADD\.F32{size}\.RN\.STRONG\.SYS ": 3 for size in ("", "x2", "x4")},
    **{rf"LDGMC\.E\.{op}\.{kind}{size}\.RN\.STRONG\.SYS ": count for kind in ("BF16", "F16")
       for size in ("x2", "x4", "x8") for op, count in (("F32ADD", 3), ("MIN", 1), ("MAX", 1))},
    r"CCTL\.IVALL": 12,  # acquire
    **{rf"STG\.E\.{size}STRONG\.SYS ": 2 for size in ("", r"64\.", r"128\.")},
    r"REDG\.E\.ADD\.(64\.)?STRONG\.GPU ": 4,
    r"REDG\.E\.ADD\.(64\.)?STRONG\.SYS ": 4,
    r"REDG\.E\.ADD\.F32x4\.FTZ\.RN\.STRONG\.SYS ": 1,
    r"REDG\.E\.ADD\.BF16x8\.RN\.STRONG\.SYS ": 1,
    r"REDG\.E\.ADD\.F16x8\.RN\.STRONG\.SYS ": 1,
    r"MEMBAR\.ALL\.GPU": 2,  # release
    r"MEMBAR\.ALL\.SYS": 5,  # release of three stores and two signals
    r"LDG\.E\.64\.STRONG\.SYS ": 1,
    r"LDG\.E\.64\.STRONG\.GPU ": 1,
    r"LDG\.E\.128\.STRONG\.SYS ": 1,
    r"STG\.E\.64\.STRONG\.GPU ": 1,
    r"MEMBAR\.SC\.SYS": 1,  # fence.proxy.alias
}  # fmt: skip


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize(
    ("name", "expected"), [("ptx_layer", LAYER), ("ptx_cluster", CLUSTER), ("ptx_multimem", MULTIMEM)]
)
def test_instructions_of_the_layer(compiler: Compiler, name: str, expected: dict[str, int]) -> None:
    lines = compiler.instructions(name)
    found = {pattern: sum(re.match(pattern, line) is not None for line in lines) for pattern in expected}
    assert {p: (found[p], least) for p, least in expected.items() if found[p] < least} == {}


@needs_nvcc
@needs_nvdisasm
def test_release_of_shared_memory_does_not_wait_for_global_memory(compiler: Compiler) -> None:
    """fence_release_shared_cluster and fence_acquire_shared_cluster avoid what a remote arrival's release and a wait's
    acquire at cluster scope cost: a fence of the whole GPU, and an invalidation of the L1."""
    every = compiler.instructions("ptx_cluster")
    lines = [line for line in every if re.match(r"MEMBAR|SYNCS\.ARRIVE", line)]
    arrivals = [i for i, line in enumerate(lines) if ".RED.A1T0" in line]
    assert [lines[i - 1] for i in arrivals] == ["MEMBAR.ALL.GPU", "MEMBAR.ALL.CTA"]
    waits = [line for line in every if re.match(r"(@P\d )?(SYNCS\.PHASECHK|CCTL\.IVALL)", line)]
    assert sum(a.startswith("SYNCS") and b.startswith("SYNCS") for a, b in itertools.pairwise(waits)) == 2


@needs_nvcc
@needs_nvdisasm
def test_instructions_of_wgmma(compiler: Compiler) -> None:
    lines = compiler.instructions("ptx_wgmma")
    for n in range(8, 257, 8):
        e4m3 = [line for line in lines if line.startswith(f"QGMMA.64x{n}x32.F32.E4M3.E4M3 ")]
        bf16 = [line for line in lines if line.startswith(f"HGMMA.64x{n}x16.F32.BF16 ")]
        # Two products of every kind. The first of each has accumulate false, so RZ is its accumulator input.
        assert (len(e4m3), len(bf16)) == (4 + 2 * (n == 8), 8)
        assert sum(", RZ, !UPT" in line for line in e4m3 + bf16) == 6 + 2 * (n == 8)
        assert sum(".tnspA.tnspB" in line for line in bf16) == 2
        assert sum(".tnspB" in line and ".tnspA" not in line for line in bf16) == 2
        assert sum(re.search(r" R\d+, R\d+, gdesc", line) is not None for line in e4m3) == 2
        assert sum(re.search(r" R\d+, R\d+, gdesc", line) is not None for line in bf16) == 4
    assert any(line.startswith("WARPGROUP.DEPBAR.LE gsb0, 0x1") for line in lines)


@needs_nvcc
def test_accumulators_are_tied_to_the_wait(compiler: Compiler) -> None:
    """In nvcc's PTX no arithmetic on accumulators lies between a product and the wait."""
    text = Path(f"{compiler.compile(SOURCES / 'ptx_wgmma.cu')}.ptx").read_text()
    assert text.count("wgmma.mma_async") == 6 * 32 * 2 + 2
    assert lint(text) == []


def test_generated_shapes(compiler: Compiler) -> None:
    """In every shape %0.. are the accumulators; the other operands follow in order, and each is used."""
    text = compiler.shapes.read_text()
    shapes = re.split(r"(?=#define LC_PTX_ACC )", text)[1:]
    assert len(shapes) == 32
    for n, shape in zip(range(8, 257, 8), shapes, strict=True):
        accumulators = re.search(r'LC_PTX_ACC "\{(.*)\}"', shape)
        assert accumulators and accumulators[1] == ", ".join(f"%{i}" for i in range(n // 2))
        assert re.findall(r'"\+f"\(d\[(\d+)\]\)', shape) == [str(i) for i in range(n // 2)]
        assert f"struct Wgmma<{n}> {{" in shape
        statements = re.findall(r"asm volatile\((.*?)\);\n", shape, re.DOTALL)
        assert len(statements) == 5
        for statement in statements:
            inputs = re.findall(r'"[lrn]"\(', statement.split("LC_PTX_OPERANDS")[1])
            used = {int(i) for i in re.findall(r"%(\d+)", statement)}
            assert used == set(range(n // 2, n // 2 + len(inputs)))
        mma = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+) ", shape)
        assert mma == [(str(n), "32", "e4m3", "e4m3")] * 2 + [(str(n), "16", "bf16", "bf16")] * 2


def test_generator_leaves_an_unchanged_file_alone(compiler: Compiler) -> None:
    path = compiler.shapes
    before = path.stat().st_mtime_ns
    subprocess.run([sys.executable, GENERATOR, path], check=True)
    assert path.stat().st_mtime_ns == before


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def test_asm_only_in_the_ptx_layer() -> None:
    files = [
        p for folder in ("cuda", "cpp") for p in (ROOT / folder).rglob("*") if p.suffix in {".cu", ".cuh", ".cpp", ".h"}
    ]
    # The emulator's fibers switch stacks, which C++ cannot express.
    fiber = [p for p in files if p.parent == ROOT / "cpp" / "emu" and p.name.startswith("fiber")]
    others = [p for p in files if PTX not in p.parents and p not in fiber]
    assert len(others) > 20
    keyword = re.compile(r"\b(asm|__asm|__asm__)\b")
    assert [str(p.relative_to(ROOT)) for p in others if keyword.search(without_comments(p.read_text()))] == []
    assert any(keyword.search(p.read_text()) for p in PTX.glob("*.cuh"))


@pytest.mark.parametrize("path", sorted(PTX.glob("*.cuh")), ids=lambda p: p.name)
def test_every_wrapper_says_where_the_isa_describes_it(path: Path) -> None:
    """Every wrapper follows a comment that links to the ISA: its own, or that of the wrappers directly before it."""
    text = path.read_text()
    for paragraph in re.split(
        r"\n{2,}", re.sub(r"namespace detail \{.*?\}  // namespace detail\n", "", text, flags=re.DOTALL)
    ):
        for match in FUNCTION.finditer(paragraph):
            assert LINK.search(paragraph[: match.start()]), f"{path.name}: {match[1]} has no link to the ISA"
    for line in text.splitlines():
        assert len(line) <= 120 or LINK.fullmatch(line + "\n"), line
    if "asm" in without_comments(text):
        assert '"memory" clobber' in "\n".join(text.splitlines()[:8]), f"{path.name} does not state its clobber policy"


@pytest.mark.skipif(CXX is None, reason="no C++ compiler: g++ was not found")
def test_exp(tmp_path: Path) -> None:
    """On the host exp of device/math.cuh is within 1 ulp of double at every 101st float, subnormal results included."""
    program = tmp_path / "exp_sweep"
    command = [CXX, "-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DLC_EMULATE"]
    command += [f"-I{SOURCES / 'shim'}", f"-I{ROOT / 'cuda'}", SOURCES / "exp_sweep.cpp", "-o", program]
    subprocess.run(command, check=True)
    lines = subprocess.run([program, "101"], capture_output=True, text=True, check=True).stdout.split("\n")
    for line in lines[:2]:
        where, error = map(float, line.split())
        assert error <= 1, f"exp({where}) is {error} ulp off; exact: {math.exp(where)}"
    zeros, infinities, nans, ones = lines[2:6], lines[6:10], lines[10:12], lines[12:14]
    assert zeros == ["00000000"] * 4
    assert infinities == ["7f800000"] * 4
    assert all(int(nan, 16) & 0x7FFFFFFF > 0x7F800000 for nan in nans)
    assert ones == ["3f800000"] * 2
