"""The ops in plain torch, under the same names: the oracle of the tests, the path of ops without a kernel, and the ops
of an fp64 model. Sums run in float32, or in float64 where the input is float64.
"""

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from ..types import DraftScores, PackedRows, Placement, Plan, Routing
from . import bf16_gemm, experts, gemm, mla, moe, norm, quant, router, rows, sampling, step
from .bf16_gemm import *
from .experts import *
from .gemm import *
from .mla import *
from .moe import *
from .norm import *
from .quant import *
from .router import *
from .rows import *
from .sampling import *
from .step import *

__all__ = [
    "DraftScores",
    "PackedRows",
    "Placement",
    "Plan",
    "Routing",
    *bf16_gemm.__all__,
    *experts.__all__,
    *gemm.__all__,
    *mla.__all__,
    *moe.__all__,
    *norm.__all__,
    *quant.__all__,
    *router.__all__,
    *rows.__all__,
    *sampling.__all__,
    *step.__all__,
]
