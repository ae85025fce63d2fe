"""How many rows a decode pass may have on this machine for a row's bits not to depend on its place among them.

Matrix libraries cut the rows of a product into blocks, and on some processors a row of the last block is summed in
another order: MKL does so at 8 rows on Intel CPUs without AVX-512, and at 2 rows on those without AVX. So nothing is
taken for granted: a pass over equal rows is run once, and its rows are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def largest_group(run: Callable[[int], list[Tensor]], rows: int) -> int:
    """The largest of rows, rows / 2, ... 1 at which `run(rows)`, a pass over equal rows, yields equal rows.

    One row alone is always at the same place, so 1 needs no run.
    """
    group = rows
    while group > 1 and not all(_equal_rows(result) for result in run(group)):
        group //= 2
    if group < rows:
        warnings.warn(
            f"the matrix products of this machine ({torch.get_num_threads()} threads) give a row other bits at another "
            f"of {rows} places: decode passes run on groups of {group} instead, which read the weights "
            f"{rows // group} times as often",
            stacklevel=2,
        )
    return group


def _equal_rows(result: Tensor) -> bool:
    """Bit for bit, a NaN too."""
    codes = result.contiguous().view(torch.uint8)
    return bool((codes == codes[:1]).all())
