"""Products of a decode pass, in which the bits of a row do not depend on its place among the rows.

No CPU library promises that. Some kernels sum the last rows of a product in another order than the first: MKL does at 8
rows on Intel CPUs with AVX2 and no AVX-512, at 2 rows on those with SSE4.2 only, and what it does changes with the
number of threads. So nothing is taken for granted: before a product of a new form runs, the same row stands in every
place of a trial of that form. Where the bits differ, the rows are taken in smaller groups, down to one by one: a row
alone always has the same place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PASS_ROWS = (2, 8)  # of a decode pass: with one sequence, with more
_ALIGNMENT = 64  # bytes; torch's CPU allocator gives it to every new tensor, a row in the middle of one may lack it
_PATTERN = 61  # different rows of the trial's weight, repeated


class Form(NamedTuple):
    """What may decide how a library sums: rows x inner times inner x outer, `heads` times over."""

    rows: int
    inner: int
    outer: int
    heads: int
    dtype: torch.dtype
    threads: int
    mkldnn: bool
    offset: int  # bytes from a multiple of 64 at which the weight lies


_groups: dict[Form, int] = {}  # per process: rows that a product of this form may have at once


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear of x [m,K] and weight [N,K]; with m in PASS_ROWS on a CPU, each row has the same bits in each place."""
    return _by_groups(F.linear, x, weight, weight.shape[0])


def heads_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [h,m,K] @ weight [h,K,N], promising the same as `linear`."""
    return _by_groups(torch.bmm, x, weight, weight.shape[2])


def small_groups() -> dict[Form, int]:
    """The forms met so far in this process that run on fewer rows at once than their pass has, with how many."""
    return {form: group for form, group in _groups.items() if group < form.rows}


def _by_groups(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, outer: int) -> Tensor:
    rows, inner = x.shape[-2:]
    if rows not in PASS_ROWS or x.device.type != "cpu" or type(x) is not Tensor:
        return run(x, weight)
    heads = x.shape[0] if x.dim() == 3 else 1
    machine = torch.get_num_threads(), torch.backends.mkldnn.enabled
    form = Form(rows, inner, outer, heads, x.dtype, *machine, weight.data_ptr() % _ALIGNMENT)
    group = _groups.get(form)
    if group is None:
        group = _groups[form] = _largest_group(run, form)
    if group == rows:
        return run(_aligned(x), weight)
    return torch.cat([run(_aligned(part), weight) for part in x.split(group, -2)], -2)


def _aligned(x: Tensor) -> Tensor:
    """x as a new tensor would lie, since some kernels treat what lies otherwise in another order."""
    return x if x.is_contiguous() and x.data_ptr() % _ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)


def _largest_group(run: Callable[[Tensor, Tensor], Tensor], form: Form) -> int:
    if 0 in form[:4]:
        return form.rows
    row, weight = _trial(form)
    if run is torch.bmm:
        row, weight = row.expand(form.heads, -1, -1), weight.t().expand(form.heads, -1, -1)
    weight = _at_offset(weight, form.offset)
    group = form.rows
    while group > 1:
        result = run(row.expand(*row.shape[:-2], group, -1).contiguous(), weight)
        if torch.equal(result, result[..., :1, :].expand_as(result)):
            break
        group //= 2
    if group < form.rows and not small_groups():
        warnings.warn(
            f"on this CPU, with {form.threads} threads, a product of {form.rows} rows x {form.inner} and "
            f"{form.outer} x {form.inner} weights in {form.dtype} gives a row other bits at another place. It and "
            f"others like it run on fewer rows at once, so that speculative decoding agrees with plain: "
            f"{form.rows // group} products in place of one, each reading the weights.",
            stacklevel=2,
        )
    return group


def _trial(form: Form) -> tuple[Tensor, Tensor]:
    """A row [1,K] and a weight [N,K] whose products cancel: exactly 0, so that all of a result is rounding, and another
    order of the sum shows in nearly every element, in narrow dtypes too.

    The second half of K repeats the first with the sign turned, and rolled: without that, halves that a library sums
    apart would cancel exactly. Magnitudes are spread, or sums of bfloat16 products would be exact in float32.
    """
    draw = torch.Generator().manual_seed(0)
    half = form.inner // 2
    like = dict(dtype=torch.promote_types(form.dtype, torch.float32), device="cpu", generator=draw)
    u = (torch.randn(1, half, **like) * torch.rand(1, half, **like).mul(6).exp2()).to(form.dtype)
    w = torch.randn(min(form.outer, _PATTERN), half, **like).to(form.dtype)
    shift, rest = half // 3 + 1, form.inner - 2 * half
    row = F.pad(torch.cat([u, -u.roll(shift, 1)], 1), (0, rest))
    pattern = F.pad(torch.cat([w, w.roll(shift, 1)], 1), (0, rest))
    return row, pattern.repeat(-(-form.outer // len(pattern)), 1)[: form.outer]


def _at_offset(weight: Tensor, offset: int) -> Tensor:
    """A contiguous copy of `weight` that begins `offset` bytes behind a multiple of 64."""
    skip = offset // weight.element_size()
    flat = torch.empty(skip + weight.numel(), dtype=weight.dtype, device="cpu")
    return flat[skip:].view(weight.shape).copy_(weight)
