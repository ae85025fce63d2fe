"""Tables of a layer's stages on two lanes, for docs/performance_model.md."""

from __future__ import annotations

from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.perf import DEVICES, Band
from longcat_ops.perf.model import digits
from longcat_ops.perf.step import Shape
from longcat_ops.perf.timeline import LANES, REPORTED_LAYER, Timeline, ms_a_token, predicted

from .markdown import table

DEPLOYMENTS = (("H800", 128), ("H800", 32), ("H800", 8), ("H100", 128), ("H100", 8), ("H200", 128), ("H200", 8))


def _made(device: str = "H800", ranks: int = 128) -> Timeline:
    return predicted(ScMoELayer.PARALLEL, DEVICES[device], Shape(ranks=ranks))


def stages() -> str:
    found, rows = _made(), []
    for one in found.stages:
        ends = found.kind.spans[one.name], found.unkind.spans[one.name]
        times = [Band(*(getattr(span, side) for span in ends)) for side in ("begin", "end")]
        rows.append((f"`{one.name}`", LANES[one.communicates], found.us[one.name], *times))
    return table(("stage", "lane", "us", "begin", "end"), rows)


def overlap() -> str:
    rows = []
    for device, ranks in DEPLOYMENTS:
        found = _made(device, ranks)
        cells = [" / ".join(digits(getattr(end, name)) for end in (found.kind, found.unkind))
                 for name in ("compute", "communication", "exposed", "layer", "serial")]  # fmt: skip
        rows.append((device, ranks, *cells, f"{found.kind.ratio:.2f} / {found.unkind.ratio:.2f}"))
    return table(("device", "EP", *LANES, "exposed", "layer", "serial", "serial / layer"), rows)


def report() -> str:
    found = _made()
    rows = [(f"{name}, us", us, ours) for name, (us, ours) in found.beside_report().items()]
    ends = found.kind.layer, found.unkind.layer
    rows.append(("the layer, us", REPORTED_LAYER, Band(*ends)))
    ours = " .. ".join(f"{ms_a_token(us):.2f}" for us in ends)
    rows.append(("28 layers / 1.8, ms a token", f"{ms_a_token(REPORTED_LAYER):.2f}", ours))
    return table(("part", "report", "here"), rows)
