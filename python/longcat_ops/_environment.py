"""The environment variables of the library, as they were when longcat_ops was imported. Imports no torch."""

from __future__ import annotations

import difflib
import os
import warnings

from .errors import LongcatShapeError

BACKENDS = ("reference", "cpu", "emu", "cuda")
RUNGS = ("auto", "multimem", "p2p", "nccl", "gloo")

# Every environment variable of the library, with its legal values or the kind of value.
VARIABLES: dict[str, tuple[str, ...] | str] = {
    "LONGCAT_OPS_BACKEND": BACKENDS,
    "LONGCAT_OPS_COMM": RUNGS,
    "LONGCAT_OPS_TIMEOUT_S": "seconds",
    "LONGCAT_OPS_CPU_ISA": ("baseline", "avx2", "avx512"),
}
PREFIX = "LONGCAT_OPS_"
LONGEST_S = 1e9  # of a wait that ends: longer ones overflow the clocks of torch and of the kernels
values = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


def warn_unknown() -> None:
    """Warns of a `LONGCAT_OPS_*` variable that nothing reads, naming the nearest that exists."""
    for name in sorted(values.keys() - VARIABLES.keys()):
        text = f"environment variable {name} is not known to longcat_ops; did you mean {nearest(name)}?"
        warnings.warn(text, stacklevel=3)


def nearest(name: str) -> str:
    """The variable that `name` resembles most; "" if `name` is one."""
    return "" if name in VARIABLES else difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.0)[0]


def backend() -> str:
    """Where CPU tensors go: LONGCAT_OPS_BACKEND."""
    return values.get("LONGCAT_OPS_BACKEND") or "cpu"


def comm_backend() -> str:
    """The rung that a Communicator takes unless its caller names one: LONGCAT_OPS_COMM."""
    return values.get("LONGCAT_OPS_COMM") or "auto"


def timeout_s() -> float:
    """Seconds that a rank waits for others: LONGCAT_OPS_TIMEOUT_S, 30 if unset; 0 waits for ever."""
    return float(values.get("LONGCAT_OPS_TIMEOUT_S") or 30)


def check() -> None:
    """Raises LongcatShapeError for a variable with a value that is not legal."""
    for name, legal in VARIABLES.items():
        value = values.get(name)
        if not value:
            continue
        if isinstance(legal, tuple) and value not in legal:
            raise LongcatShapeError(f"environment variable {name} is {value!r}, expected one of {', '.join(legal)}.")
        if legal == "seconds" and not _is_duration(value):
            text = f"expected a number of seconds, 0 for no limit, at most {LONGEST_S:.0e}"
            raise LongcatShapeError(f"environment variable {name} is {value!r}, {text}.")


def _is_duration(value: str) -> bool:
    try:
        return 0 <= float(value) <= LONGEST_S
    except ValueError:
        return False
