"""What Python knows of cuda/include/longcat_ops.h is what stands there."""

from __future__ import annotations

import re
from pathlib import Path

from longcat_ops.comm import expert_kernels, kernels
from longcat_ops.comm.providers.base import CONTROL_BYTES
from longcat_ops.comm.sizes import LINE_BYTES

ROOT = Path(__file__).resolve().parents[2]


def test_constants_are_those_of_the_header() -> None:
    """Sizes of the structs are compared at every call; these are not."""
    header = (ROOT / "cuda" / "include" / "longcat_ops.h").read_text()
    found = dict(re.findall(r"LC_COMM_(\w+) =? ?(\d+)", header))
    for name in ("MAX_RANKS", "MAX_CHANNELS", "MAX_BLOCKS"):
        assert int(found[name]) == getattr(kernels, name)
    assert int(found["CONTROL_BYTES"]) == CONTROL_BYTES
    for name, number in (("TIMEOUT", 1), ("PEER_ABORTED", 2), ("HOST_ABORTED", 3), ("BAD_ROWS", 4)):
        assert int(found[name]) == number and number in kernels.STATUS
    for number, name in kernels.STAGES.items():
        assert int(found[name.upper()]) == number
    assert len(kernels.STAGES) == len(re.search(r"lc_comm_stage \{(.*?)\}", header, re.DOTALL)[1].split("LC_COMM_")) - 1
    experts = dict(re.findall(r"LC_EP_(\w+) =? ?(\d+)", header))
    assert int(experts["MAX_BUFFERS"]) == expert_kernels.MAX_BUFFERS
    assert (int(experts["DISPATCH"]), int(experts["COMBINE"])) == (expert_kernels.DISPATCH, expert_kernels.COMBINE)
    record = re.search(r"typedef struct lc_comm_record \{(.*?)\} lc_comm_record", header, re.DOTALL)[1]
    fields = re.findall(r"\w+(?=[,;])", re.sub(r"/\*.*?\*/", "", record, flags=re.DOTALL))
    assert fields == [name for name, _ in kernels.Record._fields_]
    limit = re.search(r"kLlBytes = (\d+) \* 1024", (ROOT / "cuda" / "comm" / "config.h").read_text())
    assert int(limit[1]) * 1024 == LINE_BYTES
