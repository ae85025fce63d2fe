"""DeepGEMM's helpers: casts to FP8, sizes, layouts of scales, the alignment of groups."""

from __future__ import annotations

from . import dist, layout, math

# As in DeepGEMM, `dist_print` stays in utils.dist.
__all__ = [*layout.__all__, *math.__all__, "init_dist", "uneven_all_gather"]

globals().update(
    {name: getattr(part, name) for part in (layout, math, dist) for name in part.__all__ if name in __all__}
)
