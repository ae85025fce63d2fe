"""`explain` for every op: bytes and flops equal counts made here, floors follow the data sheets; nothing is run."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from longcat_ops.perf import DEVICES
from longcat_ops.testing.op_cases import CASES, EVERY, is_output, schema_call

# Outputs whose old values are read.
READ_FIRST = {("advance_lengths", "lengths"), ("advance_lengths", "num_drafts"), ("filter_drafts", "num_drafts")}
PEAKS = {name: (DEVICES[name].memory.value, DEVICES[name].fp8.value) for name in ("H100", "H800", "H200")}


def touched(op, name, value, arguments):
    """Elements of an argument that the op reads or writes: all, except of a table or a cache."""
    width = value.shape[-1] if value.dim() else 1
    if (op, name) == ("embed_rows", "table"):
        return len(arguments[1]) * width
    if (op, name) == ("mla_write", "rows"):
        return len(arguments[0]) * width
    if (op, name) == ("mla_decode", "rows"):
        return len(arguments[0]) * 64 * arguments[2].shape[1] * width
    return value.numel()


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_bytes_are_those_of_the_arguments(op, name):
    overload, arguments, made = schema_call(op, name)
    found = longcat_ops.explain(op, *made.args, **made.kwargs)
    read = written = 0
    for spec, value in zip(overload._schema.arguments, arguments, strict=True):
        replaced = (op, spec.name) == ("router_gemm", "w") and made.kwargs["split"] is not None  # the terms are read
        if isinstance(value, torch.Tensor) and not replaced:
            size = touched(op, spec.name, value, arguments) * value.element_size()
            written += size * is_output(spec)
            read += size * (not is_output(spec) or (op, spec.name) in READ_FIRST)
    assert (found.bytes_read, found.bytes_written) == (read, written)
    assert [argument for argument, _ in found.arguments] == [spec.name for spec in overload._schema.arguments]
    for floor in found.floors:
        bandwidth, rate = PEAKS[floor.device]
        memory, products = (read + written) / bandwidth, found.flops / rate
        assert floor.microseconds == pytest.approx(1e6 * max(memory, products))
        assert floor.bound == ("tensor cores" if products > memory else "memory")
    assert {floor.device for floor in found.floors} == PEAKS.keys()
    for floor, prediction in zip(found.floors, found.predictions, strict=True):
        assert prediction.device == floor.device and floor.microseconds < prediction.low < prediction.high
        assert prediction.low < prediction.middle < prediction.high
    report = str(found)
    assert f"predicted, not measured: {found.predictions[0]}" in report and " .. " in report
    assert report.startswith(op) and "floor on H200" in report and f"reads {read:,} bytes" in report


def fp8(*shape):
    scales = (
        (*shape[:-1], -(-shape[-1] // 128)) if len(shape) == 2 else (shape[0], -(-shape[1] // 128), shape[2] // 128)
    )
    return torch.empty(shape, dtype=torch.float8_e4m3fn, device="meta"), torch.empty(scales, device="meta")


def test_flops_and_the_binding_limit_at_model_size():
    """For the down projection of 512 experts, memory is the bound at few tokens each, tensor cores at many."""
    weights = fp8(512, 6144, 2048)
    offsets = torch.empty(513, dtype=torch.int32, device="meta")
    for rows, bound in ((512 * 8, "memory"), (512 * 1024, "tensor cores")):
        out = torch.empty(rows, 6144, dtype=torch.bfloat16, device="meta")
        found = longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", fp8(rows, 2048), weights, out, offsets)
        assert found.flops == 2 * rows * 6144 * 2048
        assert found.floors[0].bound == bound
        assert "every expert has one" in found.assumes


def meta(*shape, dtype=torch.int32):
    return torch.empty(shape, dtype=dtype, device="meta")


def route_launches(tokens, experts):
    logits, bias = meta(tokens, experts, dtype=torch.float32), meta(experts, dtype=torch.float32)
    found = longcat_ops.explain("moe_route", logits, bias, top_k=4, num_experts=experts, num_zero_experts=1, scale=1.0)
    return [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found.launches], str(found)


def test_launches_of_moe_route():
    """Up to 1056 tokens one launch zeroes counts itself, above that a launch before it does; every token has a warp."""
    for tokens, blocks, warps in (
        (0, 1, 1),
        (1, 1, 1),
        (8, 1, 8),
        (9, 9, 1),
        (96, 96, 1),
        (192, 96, 2),
        (1056, 132, 8),
        (1057, 133, 8),
        (8192, 1024, 8),
    ):
        launches, report = route_launches(tokens, 768)
        clear = [("moe_route_clear", 1, 256, 0)] * (tokens > 1056)
        assert launches == [*clear, ("moe_route", blocks, 32 * warps, 0)]
        assert f"on a GPU: moe_route, {blocks} x {32 * warps} threads\n" in report
        assert blocks * warps >= tokens


def test_launches_of_moe_place():
    """A thread a choice; without a choice nothing is launched. The bytes are those of ids, tables and slots, once."""
    placement = longcat_ops.Placement(meta(512, 3), meta(512), meta(640))
    for tokens, top_k, blocks in (
        (0, 12, 0),
        (1, 1, 1),
        (10, 12, 1),
        (11, 12, 2),
        (192, 12, 18),
        (2**26, 31, 16252928),
    ):
        found = longcat_ops.explain("moe_place", meta(tokens, top_k), placement, 27)
        launches = [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found.launches]
        assert launches == [("moe_place", blocks, 128, 0)] * (blocks > 0)
        assert found.bytes_read + found.bytes_written == 8 * tokens * top_k + 4 * 512 * 4


def test_launches_of_moe_plan():
    """One block up to 8192 choices, a cluster up to 65536, else three launches whose blocks' counts fit into src_of."""
    for tokens in (0, 1, 8, 96, 192, 257, 682, 683, 1000, 1025, 2048, 2049, 8192, 8193, 65536, 2**26):
        for top_k in (1, 2, 12, 32):
            for groups in (1, 5, 6, 32, 512, 1023, 1024):
                if tokens * top_k >= 2**31:
                    continue
                found = longcat_ops.explain("moe_plan", meta(tokens, top_k), groups).launches
                count = found[0]
                assert groups <= count.threads <= 1024 and count.threads % 32 == 0
                assert count.smem_bytes <= 227 * 1024
                if tokens * top_k <= 65536:
                    blocks = next(b for b in (1, 2, 4, 8) if tokens * top_k <= 8192 * b)
                    assert [k.kernel for k in found] == ["moe_plan_count"] and count.blocks == blocks
                else:
                    assert [k.kernel for k in found] == ["moe_plan_count", "moe_plan_rows", "moe_plan_sources"]
                    assert {k.blocks for k in found} == {count.blocks} and count.blocks > 1
                    assert count.blocks * groups <= tokens * min(top_k, groups)
                assert count.blocks * count.threads * 8 >= tokens * top_k


def test_launches_of_permute_and_combine():
    """A block has four warps, one per 256 columns of a token; without tokens nothing is launched."""
    for tokens, width, blocks in (
        (0, 6144, 0),
        (1, 8, 1),
        (5, 256, 2),
        (5, 264, 3),
        (8, 6144, 48),
        (8192, 6144, 49152),
    ):
        x = meta(tokens, width, dtype=torch.bfloat16)
        plan = longcat_ops.Plan(meta(7), meta(tokens, 12), meta(tokens * 6))
        weights, zero_weight = meta(tokens, 12, dtype=torch.float32), meta(tokens, dtype=torch.float32)
        routing = longcat_ops.Routing(*[meta(1)] * 6)._replace(weights=weights, zero_weight=zero_weight)
        y = meta(tokens * 6, width, dtype=torch.bfloat16)
        calls = [("moe_permute", (x, plan)), ("moe_permute_quant", (x, plan)), ("moe_combine", (y, plan, routing, x))]
        for op, arguments in calls:
            found = longcat_ops.explain(op, *arguments).launches
            # The kernels use 512 and 1024 bytes; they request a multiple of 1024.
            assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == [(op, blocks, 128, 1024)] * (
                blocks > 0
            )
        wide = meta(tokens, 2 * width, dtype=torch.bfloat16)  # moe_permute moves bytes: f32 as bf16 of twice the width
        of_wide, of_f32 = (longcat_ops.explain("moe_permute", t, plan).launches for t in (wide, x.float()))
        assert of_f32 == of_wide


def test_launches_of_mla_query():
    """A block has 4 warpgroups of 64 rows each, fewer where that puts more SMs to work; one launch."""
    for tokens, heads, latent, nope, width, blocks, threads, smem in (
        (0, 64, 512, 128, 64, 0, 0, 0),
        (1, 64, 512, 128, 64, 128, 544, 71),
        (192, 64, 512, 128, 64, 128, 544, 149),
        (384, 64, 512, 128, 64, 128, 544, 165),
        (9, 32, 512, 128, 64, 128, 288, 41),
        (9, 8, 512, 128, 64, 64, 160, 23),
        (9, 64, 72, 512, 64, 128, 160, 43),
        (9, 64, 512, 128, 6, 128, 640, 91),  # off 16 bytes: warps copy
    ):
        q, w_k = (meta(*s, dtype=torch.bfloat16) for s in ((tokens, heads, nope + width), (heads, latent, nope)))
        found = longcat_ops.explain("mla_query", q, w_k, meta(9, width, dtype=torch.float32), meta(tokens)).launches
        expected = [("mla_query", blocks, threads, 1024 * smem)] * (tokens > 0)
        assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == expected


def test_launches_of_rows():
    """A block has 128 threads of a chunk each, of one row or of several; a norm has a block for each row."""
    for rows, width, blocks, threads in (
        (0, 8, 0, 0),
        (3, 1, 1, 32),
        (5, 97, 1, 32),
        (10, 97, 2, 32),
        (3, 576, 3, 96),
        (8, 1024, 8, 128),
        (8, 1032, 16, 160),
        (192, 6144, 1152, 256),
    ):
        x, table = meta(rows, width, dtype=torch.bfloat16), meta(50, width, dtype=torch.bfloat16)
        gate_up, ids = meta(rows, 2 * width, dtype=torch.float32), meta(rows, dtype=torch.int64)
        calls = [("embed_rows", (table, ids)), ("add_rows", (x, x)), ("silu_and_mul", (gate_up,))]
        for op, arguments in calls:
            found = longcat_ops.explain(op, *arguments).launches
            assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == [(op, blocks, 128, 0)] * (rows > 0)
        found = longcat_ops.explain("rms_norm", x, meta(width, dtype=torch.float32), 1e-5).launches
        assert [(k.blocks, k.threads, k.smem_bytes) for k in found] == [(rows, threads, 1024)] * (rows > 0)
        twice = meta(50, 2 * width, dtype=torch.bfloat16)  # embed_rows moves bytes: f32 as bf16 of twice the width
        of_wide, of_f32 = (longcat_ops.explain("embed_rows", t, ids).launches for t in (twice, table.float()))
        assert of_f32 == of_wide
    assert (
        longcat_ops.explain("add_rows", meta(3, 0, dtype=torch.float32), meta(3, 0, dtype=torch.float32)).launches == ()
    )


def test_launches_of_a_decode_step():
    """pack_rows: a block for 256 sequences, one even for none. advance_lengths: a warp for each."""
    for sequences, packs, advances in ((0, 1, 0), (1, 1, 1), (4, 1, 1), (5, 1, 2), (256, 1, 64), (257, 2, 65)):
        tokens, each = meta(sequences, 2, dtype=torch.int64), meta(sequences)
        found = longcat_ops.explain("pack_rows", tokens, each, each).launches
        assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == [("pack_rows", packs, 256, 2048)]
        newest, stop_ids = meta(sequences, dtype=torch.int64), meta(3, dtype=torch.int64)
        state = (each, each, each, stop_ids, each.clone(), each.clone(), newest)
        found = longcat_ops.explain("advance_lengths", tokens, *state).launches
        wanted = [("advance_lengths", advances, 128, 0)] * (advances > 0)
        assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == wanted


def test_launches_of_verify_greedy():
    """A cluster for each sequence: of 8 blocks for few, of one for many or for short rows."""
    for sequences, width, blocks, threads in (
        (0, 131072, 0, 0),
        (1, 131072, 8, 512),
        (33, 131072, 264, 512),
        (34, 131072, 136, 512),
        (66, 131072, 264, 512),
        (132, 131072, 264, 512),
        (133, 131072, 133, 512),
        (1, 16383, 1, 512),
        (1, 16384, 2, 512),
        (5, 100, 5, 32),
        (5, 1, 5, 32),
    ):
        logits, drafts = meta(sequences, 2, width, dtype=torch.float32), meta(sequences, 1, dtype=torch.int64)
        found = longcat_ops.explain("verify_greedy", logits, drafts, meta(sequences)).launches
        wanted = [("verify_greedy", blocks, threads, 1024)] * (blocks > 0)
        assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == wanted


def test_launches_of_draws():
    """A cluster for each sequence, whose size follows from V alone: a row's sums have one order in every batch."""
    for sequences, width, cluster, threads in (
        (0, 131072, 0, 0),
        (1, 131072, 8, 512),
        (192, 131072, 8, 512),
        (3, 16384, 2, 512),
        (3, 16383, 1, 512),
        (3, 33, 1, 64),
        (3, 1, 1, 32),
    ):
        draws = meta(sequences, dtype=torch.int64), meta(sequences), meta(sequences, dtype=torch.float32)
        draws += meta(sequences), meta(sequences, dtype=torch.float32)
        logits, drafts = meta(sequences, 2, width, dtype=torch.float32), meta(sequences, 1, dtype=torch.int64)
        network = meta(48, 4, dtype=torch.float32), meta(49, dtype=torch.float32)
        calls = [
            ("verify_sampled", (logits, drafts, meta(sequences), *draws), {}),
            ("sample_tokens", (logits[:, 0], *draws), {}),
            ("filter_drafts", (logits[:, 0], meta(sequences), *network), {"beta": 0.5}),
        ]
        for op, arguments, keywords in calls:
            found = longcat_ops.explain(op, *arguments, **keywords).launches
            wanted = [(op, cluster * sequences, threads, 12288)] * (sequences > 0)
            assert [(k.kernel, k.blocks, k.threads, k.smem_bytes) for k in found] == wanted


def test_a_product_is_predicted_as_its_chosen_tile():
    made = next(iter(CASES["fp8_gemm_nt"].values()))()
    found = longcat_ops.explain("fp8_gemm_nt", *made.args, **made.kwargs)
    assert [tile.predictions for tile in found.candidates if tile.chosen] == [found.predictions]


def test_what_cannot_run_is_not_explained():
    with pytest.raises(LongcatShapeError, match="`ids` is 1-D"):
        longcat_ops.explain("moe_plan", torch.zeros(4, dtype=torch.int32), 2)
    with pytest.raises(LongcatUnsupportedError, match="op 'no_such' does not exist; these do: add_rows, "):
        longcat_ops.explain("no_such")


def test_nothing_is_written():
    made = CASES["m_grouped_fp8_gemm_nt_offset"]["ragged"]()
    made.args[2].fill_(7)
    longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", *made.args)
    assert (made.args[2] == 7).all()


def test_a_chain_says_what_it_is_made_of():
    made = CASES["fused_moe"]["fp8"]()
    found = longcat_ops.explain("fused_moe", *made.args, **made.kwargs).backends
    assert found["CPU"] == "a chain of C++ kernels"
