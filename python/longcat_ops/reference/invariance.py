"""Products of a decode pass, in which the bits of a row do not depend on its place among the rows.

No CPU library promises that. Some kernels sum the last rows of a product in another order than the first: MKL does at 8
rows on Intel CPUs with AVX2 and no AVX-512, at 2 rows on those with SSE4.2 only, and what it does changes with the
number of threads. So nothing is taken for granted: before a product of a new form runs, a trial of that form computes
the same row in every place. Where the bits differ, the product runs on smaller groups of rows, down to one by one: a
row alone always has the same place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .rows import SMALL_T, acc_dtype

PASS_ROWS = (2, SMALL_T)  # of a decode pass: with one sequence, with more
_ALIGNMENT = 64  # bytes; torch's CPU allocator gives it to every new tensor, a row in the middle of one may lack it
_PATTERN = 61  # different rows of the trial's weight, repeated
_LARGE = 1 << 22  # elements of a weight
_DRAWS = 8  # rows that a large weight is tried with


class Form(NamedTuple):
    """All that may decide how a library sums: rows x inner times inner x outer, for each of `heads`."""

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
    """x [h,m,K] @ weight [h,K,N], with the same promise as `linear`."""
    return _by_groups(torch.bmm, x, weight, weight.shape[2])


def small_groups() -> dict[Form, int]:
    """The forms met so far in this process that run on fewer rows at once than their pass has, and on how many."""
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
        group = _groups[form] = _largest_group(run, form, weight)
    if group == rows:
        return run(_aligned(x), weight)
    return torch.cat([run(_aligned(part), weight) for part in x.split(group, -2)], -2)


def _aligned(x: Tensor) -> Tensor:
    """x contiguous and aligned like a new tensor, since some kernels sum other layouts in another order."""
    return x if x.is_contiguous() and x.data_ptr() % _ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)


def _largest_group(run: Callable[[Tensor, Tensor], Tensor], form: Form, weight: Tensor) -> int:
    if 0 in form[:4]:
        return form.rows
    if _small(form) or _mostly_zero(weight):
        row, trial = _trial(form)
        rows = [row]
        trial = _at_offset(trial if run is F.linear else trial.t().expand(form.heads, -1, -1), form.offset)
    else:
        rows, trial = [_wide_row(form.inner, form.dtype, seed) for seed in range(_DRAWS)], weight
    heads = () if run is F.linear else (form.heads,)
    group = form.rows
    while group > 1:
        results = (run(row.expand(*heads, group, -1).contiguous(), trial) for row in rows)
        if all(torch.equal(y, y[..., :1, :].expand_as(y)) for y in results):
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


def _small(form: Form) -> bool:
    """Whether a weight of this form costs little to make. A large one of float32 or float64 is its own trial, with
    several rows: a library may sum a single column in another order, and that shows in some of its sums only.
    """
    return form.heads * form.inner * form.outer < _LARGE or form.dtype not in (torch.float32, torch.float64)


def _mostly_zero(weight: Tensor) -> bool:
    """Whether most elements are 0: sums of few terms round alike in any order, so such a weight shows nothing."""
    flat = weight.flatten()[:: max(1, weight.numel() >> 12)]
    return 2 * int(flat.count_nonzero()) < len(flat)


def _wide_row(width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[1,width], the same in every process; magnitudes over 6 binades, or sums of bfloat16 products would be exact."""
    like = dict(dtype=acc_dtype(dtype), device="cpu", generator=torch.Generator().manual_seed(seed))
    return (torch.randn(1, width, **like) * torch.rand(1, width, **like).mul(6).exp2()).to(dtype)


def _trial(form: Form) -> tuple[Tensor, Tensor]:
    """A row [1,K] and a weight [N,K] whose exact products are 0. All of a result is then rounding, so another order of
    the sum shows in nearly every element, in narrow dtypes too.

    The second half of K repeats the first with the sign turned, and rolled: without that, halves that a library sums
    apart would cancel exactly.
    """
    half, kinds = form.inner // 2, min(form.outer, _PATTERN)
    draw = torch.Generator().manual_seed(1)
    u = _wide_row(half, form.dtype)
    w = torch.randn(kinds, half, dtype=acc_dtype(form.dtype), device="cpu", generator=draw).to(form.dtype)
    shift, rest = half // 3 + 1, form.inner - 2 * half
    row = F.pad(torch.cat([u, -u.roll(shift, 1)], 1), (0, rest))
    pattern = F.pad(torch.cat([w, w.roll(shift, 1)], 1), (0, rest))
    return row, pattern.repeat(-(-form.outer // kinds), 1)[: form.outer]


def _at_offset(weight: Tensor, offset: int) -> Tensor:
    """A contiguous copy of `weight` that begins `offset` bytes behind a multiple of 64; `weight` itself if it does."""
    if weight.is_contiguous() and weight.data_ptr() % _ALIGNMENT == offset:
        return weight
    skip = offset // weight.element_size()
    flat = torch.empty(skip + weight.numel(), dtype=weight.dtype, device="cpu")
    return flat[skip:].view(weight.shape).copy_(weight)
