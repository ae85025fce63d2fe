"""`explain`: bytes and flops against counts made here, floors against the data sheets, for every op; nothing is run."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from op_cases import CASES, EVERY, is_output, schema_call

PEAKS = {"H100": (3.35e12, 1.979e15), "H800": (3.35e12, 1.979e15), "H200": (4.8e12, 1.979e15)}


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_bytes_are_those_of_the_arguments(op, name):
    overload, arguments, made = schema_call(op, name)
    found = longcat_ops.explain(op, *made.args, **made.kwargs)
    read = written = 0
    for spec, value in zip(overload._schema.arguments, arguments, strict=True):
        if isinstance(value, torch.Tensor):
            size = value.numel() * value.element_size()
            read, written = (read, written + size) if is_output(spec) else (read + size, written)
    assert (found.bytes_read, found.bytes_written) == (read, written)
    assert [argument for argument, _ in found.arguments] == [spec.name for spec in overload._schema.arguments]
    for floor in found.floors:
        bandwidth, rate = PEAKS[floor.device]
        memory, products = (read + written) / bandwidth, found.flops / rate
        assert floor.microseconds == pytest.approx(1e6 * max(memory, products))
        assert floor.bound == ("tensor cores" if products > memory else "memory")
    assert {floor.device for floor in found.floors} == PEAKS.keys()
    report = str(found)
    assert report.startswith(op) and "floor on H200" in report and f"reads {read:,} bytes" in report


def fp8(*shape):
    scales = (
        (*shape[:-1], -(-shape[-1] // 128)) if len(shape) == 2 else (shape[0], -(-shape[1] // 128), shape[2] // 128)
    )
    return torch.empty(shape, dtype=torch.float8_e4m3fn, device="meta"), torch.empty(scales, device="meta")


def test_flops_and_the_binding_limit_at_model_size():
    """Down projection of 512 experts: weights bound it at a few tokens each, the tensor cores at many."""
    weights = fp8(512, 6144, 2048)
    offsets = torch.empty(513, dtype=torch.int32, device="meta")
    for rows, bound in ((512 * 8, "memory"), (512 * 1024, "tensor cores")):
        out = torch.empty(rows, 6144, dtype=torch.bfloat16, device="meta")
        found = longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", fp8(rows, 2048), weights, out, offsets)
        assert found.flops == 2 * rows * 6144 * 2048
        assert found.floors[0].bound == bound
        assert "every expert has one" in found.assumes


def test_what_cannot_run_is_not_explained():
    with pytest.raises(LongcatShapeError, match="`ids` is 1-D"):
        longcat_ops.explain("moe_plan", torch.zeros(4, dtype=torch.int32), 2)
    with pytest.raises(LongcatUnsupportedError, match="op 'no_such' does not exist; these do: dequant_fp8"):
        longcat_ops.explain("no_such")


def test_nothing_is_written():
    made = CASES["m_grouped_fp8_gemm_nt_offset"]["ragged"]()
    made.args[2].fill_(7)
    longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", *made.args)
    assert (made.args[2] == 7).all()
