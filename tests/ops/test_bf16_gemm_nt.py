"""bf16_gemm_nt against fp64, and what a row's bits must not depend on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import bf16_gemm_nt
from longcat_ops.ops import checking
from longcat_ops.ops.described import Described
from longcat_ops.testing.op_results import bits
from support.bf16_grouped import BACKEND, DTYPES, apart, operands, product
from support.grouped import OUT_DTYPES, assert_close

BF16, F32 = torch.bfloat16, torch.float32
on_cpu = pytest.mark.skipif(BACKEND != "cpu", reason="a promise of the CPU kernel")


def pair(m: int, n: int, k: int, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor]:
    (a,), b = operands((m,), n, k, dtype)
    return a, b[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [8, 24, 136, 6144])
@pytest.mark.parametrize("n", [8, 24, 136])
@pytest.mark.parametrize("m", [0, 1, 7, 8, 9, 33])
def test_against_fp64(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    a, b = pair(m, n, k, dtype)
    default = bf16_gemm_nt(a, b)
    assert default.dtype == dtype and default.is_contiguous()
    exact = bf16_gemm_nt(a, b, torch.full((m, n), torch.nan))
    assert_close(exact, *product(a, b))
    for out_dtype in OUT_DTYPES:  # one rounding of the same sum
        out = torch.full((m, n), torch.nan, dtype=out_dtype)
        assert bf16_gemm_nt(a, b, out) is out
        assert bits(out) == bits(exact.to(out_dtype))
    assert bits(default) == bits(exact.to(dtype))


@pytest.mark.parametrize("split_k", [2, 4])
def test_split_k(split_k: int) -> None:
    a, b = pair(9, 72, 640)
    out = bf16_gemm_nt(a, b, torch.empty(9, 72), split_k=split_k)
    assert_close(out, *product(a, b))
    if BACKEND in ("cpu", "reference"):
        assert bits(out) == bits(bf16_gemm_nt(a, b, torch.empty(9, 72)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 5, 70])
def test_integers_are_exact(m: int, dtype: torch.dtype) -> None:
    """Sums of integers below 2^24 have no rounding: a wrong, missing or doubled term shows, however small."""
    draw = torch.Generator().manual_seed(m)
    a, b = (torch.randint(-16, 17, (rows, 6136), generator=draw).to(dtype) for rows in (m, 24))
    assert torch.equal(bf16_gemm_nt(a, b, torch.empty(m, 24)).double(), a.double() @ b.double().T)


@on_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [24, 1000, 6144])
def test_a_row_depends_on_no_other(k: int, dtype: torch.dtype) -> None:
    """Any number of rows, from any row on, beside any rows of the weight."""
    a, b = pair(70, 40, k, dtype)
    whole = bf16_gemm_nt(a, b, torch.empty(70, 40))
    assert len({tuple(row) for row in bits(list(whole))}) == 70
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 33, 64, 65):
        for start in {0, 1, 70 - rows}:
            span = slice(start, start + rows)
            assert bits(bf16_gemm_nt(a[span], b, torch.empty(len(a[span]), 40))) == bits(whole[span]), (rows, start)
    assert bits(bf16_gemm_nt(a[:3], b[8:24], torch.empty(3, 16))) == bits(whole[:3, 8:24].contiguous())
    a[:60] = torch.nan
    assert bits(bf16_gemm_nt(a, b, torch.empty(70, 40))[60:]) == bits(whole[60:])


@on_cpu
@pytest.mark.parametrize(("m", "n", "k"), [(1, 2048, 768), (5, 520, 1032), (66, 136, 512)])
def test_threads_do_not_change_a_bit(m: int, n: int, k: int) -> None:
    a, b = pair(m, n, k)
    threads, found = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add(str(bits(bf16_gemm_nt(a, b, torch.empty(m, n)))))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@on_cpu
def test_instruction_sets_agree_bit_for_bit() -> None:
    code = (
        "import torch, longcat_ops, hashlib\n"
        "torch.manual_seed(0)\n"
        "for t in (torch.bfloat16, torch.float32):\n"
        "    for m, n, k in ((1, 24, 6144), (2, 40, 1032), (3, 8, 8), (4, 16, 136), (70, 72, 1000)):\n"
        "        a, b = torch.randn(m, k).to(t), torch.randn(n, k).to(t)\n"
        "        y = longcat_ops.bf16_gemm_nt(a, b, torch.empty(m, n))\n"
        "        print(hashlib.sha256(y.numpy().tobytes()).hexdigest())\n"
        "    x, offsets = torch.randn(9, 136).to(t), torch.tensor([0, 2, 9], dtype=torch.int32)\n"
        "    w = longcat_ops.interleave_gate_up((torch.randn(2, 272, 136) / 12).to(t))\n"
        "    for quantise in (False, True):\n"
        "        h = longcat_ops.m_grouped_bf16_swiglu_gemm_nt_offset(x, w, offsets, quantise=quantise)\n"
        "        parts = [part.view(torch.uint8).numpy().tobytes() for part in (h if quantise else [h])]\n"
        "        print(hashlib.sha256(b''.join(parts)).hexdigest())\n"
    )
    outputs = set()
    for isa in longcat_ops._library.load().build_info()["cpu_isas"]:
        environment = os.environ | {"LONGCAT_OPS_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1 and len(set(outputs.pop().split())) == 14


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 9])
def test_rows_may_lie_apart(m: int, dtype: torch.dtype) -> None:
    """Row strides of every operand, rows of one address, and a weight that is one head of a larger one."""
    a, b = pair(m, 24, 136, dtype)
    expected = bits(bf16_gemm_nt(a, b, torch.empty(m, 24)))
    out = apart(torch.full((m, 24), 7.0), 7.0)
    assert bits(bf16_gemm_nt(apart(a), apart(b), out).contiguous()) == expected
    assert out.as_strided((m, 8), (out.stride(0), 1), 24).eq(7.0).all()
    heads = torch.stack([b + 1, b, b - 1], 1)  # [N, heads, K]
    assert bits(bf16_gemm_nt(a, heads[:, 1], torch.empty(m, 24))) == expected
    same = bf16_gemm_nt(a[:1].expand(3, -1), b, torch.empty(3, 24))
    assert bits(list(same)) == bits([same[0]] * 3)


def test_nan_and_inf_are_those_of_float32_sums() -> None:
    a, b = pair(6, 24, 136)
    a, b = a.clone(), b.clone()
    a[0, 135], a[1, 7], a[2, 0], a[3, 100] = torch.nan, torch.inf, -torch.inf, torch.inf
    b[5, 1], b[:, 100], b[7, 7] = torch.nan, 0.0, torch.inf
    wide = a.double() @ b.double().T
    out = bf16_gemm_nt(a, b, torch.empty(6, 24))
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(out), kind(wide)) and bool(kind(wide).any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_finite_below_the_promised_bound(dtype: torch.dtype) -> None:
    """Products of both signs whose magnitudes add up to just below 2^127."""
    k = 1024
    a, b = torch.full((3, k), 2.0**60), torch.full((8, k), 2.0**56)
    a[:, ::2] *= -1
    out = bf16_gemm_nt(a.to(dtype), b.to(dtype), torch.empty(3, 8))
    assert torch.equal(out, torch.zeros(3, 8))
    b[:, 1] *= 1.5
    out = bf16_gemm_nt(a.to(dtype), b.to(dtype), torch.empty(3, 8))
    assert torch.equal(out, torch.full((3, 8), 2.0**115))


def described(dtype: str, sizes: tuple[int, ...], device: str = "cpu") -> Described:
    return Described(dtype, sizes, (sizes[1], 1), device, 0, 0)


def reason_of(a: Described, b: Described, out: Described) -> str:
    code, reason, fix = checking.find_problem("bf16_gemm_nt", a, b, 1, out)
    assert bool(code) == bool(reason)
    return f"{reason} fix: {fix}"


def test_dtypes_and_devices() -> None:
    out, bf16, f32, f16 = (16, 24), "torch.bfloat16", "torch.float32", "torch.float16"
    for device, dtype, legal in (
        ("cpu", bf16, True), ("cpu", f32, True), ("cuda", bf16, True),
        ("cuda", f32, False), ("cpu", f16, False), ("cuda", f16, False),
    ):  # fmt: skip
        found = reason_of(*(described(dtype, sizes, device) for sizes in ((16, 8), (24, 8), out)))
        assert (found == " fix: ") == legal, found
        if dtype == f16:
            assert "`a` is torch.float16, expected torch.bfloat16 or torch.float32: no LongCat model holds" in found
        elif not legal:
            assert "`a` is torch.float32, expected torch.bfloat16: on CUDA the tensor cores take bf16" in found
        if not legal:
            assert found.endswith("fix: a.bfloat16()")
    for other in (bf16, f32, f16):  # any floating out, on every device
        operands = described(bf16, (16, 8), "cuda"), described(bf16, (24, 8), "cuda")
        assert reason_of(*operands, described(other, out, "cuda")) == " fix: "
    mixed = reason_of(described(bf16, (16, 8)), described(f32, (24, 8)), described(bf16, out))
    assert "`b` is torch.float32, expected torch.bfloat16, the dtype of `a`" in mixed
