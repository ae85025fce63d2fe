"""interleave_gate_up against its definition, row by row."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import dequant_fp8, interleave_gate_up
from longcat_ops.testing.op_cases import gate_up
from support.grouped import wide

SHAPES = [(g, width, k) for g in (1, 3) for width in (8, 136, 256) for k in (8, 160)]


def source_of(row: int, width: int) -> tuple[int, int]:
    """The (row, scale row) of the input from which row `row` of the result comes."""
    inner = row // 16 * 8 + row % 8
    up = row % 16 >= 8
    blocks = -(-width // 128)
    return inner + up * width, inner // 128 + up * blocks


@pytest.mark.parametrize(("groups", "width", "k"), SHAPES)
def test_every_row_and_scale_is_where_it_belongs(groups: int, width: int, k: int) -> None:
    """Rows and scales move to their places, for all codes including NaN and for scales that all differ."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(256, (groups, 2 * width, k), generator=generator, dtype=torch.uint8)
    blocks = -(-width // 128)
    s = torch.arange(groups * 2 * blocks * -(-k // 128), dtype=torch.float32).view(groups, 2 * blocks, -1)
    before = codes.clone(), s.clone()
    w_out, s_out = interleave_gate_up(codes.view(torch.float8_e4m3fn), s)
    assert torch.equal(codes, before[0]) and torch.equal(s, before[1])
    assert w_out.shape == codes.shape and w_out.dtype == torch.float8_e4m3fn and w_out.is_contiguous()
    assert s_out.shape == s.shape and s_out.dtype == torch.float32 and s_out.is_contiguous()
    for row in range(2 * width):
        assert torch.equal(w_out.view(torch.uint8)[:, row], codes[:, source_of(row, width)[0]])
    for b in range(blocks):
        assert torch.equal(s_out[:, 2 * b], s[:, b])
        assert torch.equal(s_out[:, 2 * b + 1], s[:, blocks + b])


@pytest.mark.parametrize(("groups", "width", "k"), SHAPES)
def test_values_and_scales_stay_paired(groups: int, width: int, k: int) -> None:
    """A row of the result, dequantised by the new scale row of its block of 128, equals the original row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        w, s = gate_up(groups, width, k)
    blocks = -(-width // 128)
    w_out, s_out = interleave_gate_up(w, s)
    for g in range(groups):
        halves = (w[g, :width], s[g, :blocks]), (w[g, width:], s[g, blocks:])
        original = torch.cat([dequant_fp8(*half, torch.float32) for half in halves])
        for row in range(2 * width):
            block, up = (row // 16 * 8 + row % 8) // 128, row % 16 >= 8
            scale = s_out[g, 2 * block + up]
            found = wide(w_out[g, row : row + 1], scale[None], block_rows=1)[0]
            assert torch.equal(found.float(), original[source_of(row, width)[0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("groups", "width", "k"), SHAPES)
def test_weights_without_scales(groups: int, width: int, k: int, dtype: torch.dtype) -> None:
    """Every row is where it belongs, with its bits: NaN with a payload, negative zero and subnormals among them."""
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    ends, draw = torch.iinfo(bits), torch.Generator().manual_seed(0)
    codes = torch.randint(ends.min, ends.max, (groups, 2 * width, k), dtype=bits, generator=draw)
    before = codes.clone()
    w_out = interleave_gate_up(codes.view(dtype))
    assert torch.equal(codes, before)
    assert w_out.shape == codes.shape and w_out.dtype == dtype and w_out.is_contiguous()
    for row in range(2 * width):
        assert torch.equal(w_out.view(bits)[:, row], codes[:, source_of(row, width)[0]])


def test_scales_in_and_out_go_together() -> None:
    op, (w, s) = torch.ops.longcat_ops.interleave_gate_up, gate_up(1, 8, 8)
    plain = torch.zeros(1, 16, 8)
    with pytest.raises(RuntimeError, match="`s_out` is None, expected a tensor, as there is s"):
        op(w, s, torch.empty_like(w), None)
    with pytest.raises(RuntimeError, match="`s_out` is a tensor, expected None, as there is no s"):
        op(plain, None, torch.empty_like(plain), torch.empty_like(s))
