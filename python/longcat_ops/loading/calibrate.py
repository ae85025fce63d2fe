"""Which projections should stay bf16: those that two detectors flag, on a text (LongCat-Flash technical report, 6.2.3).

Scheme A flags a projection by the largest magnitude of its inputs, scheme B by the error of its blocks in FP8. Only
what both flag stays bf16. The report names no thresholds; `Thresholds` says where the defaults come from.

The network runs layer by layer, the experts of a layer one by one, so a model larger than memory can be calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.config import LongcatFlashConfig
from ..model.layers import Linear, dense_of
from ..model.rows import AnyRows
from ..model.scmoe import ScMoELayer
from ..model.source import fp8_problem, released
from ..model.stages import Stage, run
from ..types import BLOCK, Fp8Pair, Routing
from .block_errors import block_errors
from .calibration import MTP, Calibration, Thresholds, Unit
from .checkpoint import CheckpointSource
from .layerwise import Layerwise, check_windows


@torch.inference_mode()
def calibrate(path: str | Path, windows: Sequence[Tensor], thresholds: Thresholds | None = None, *,
              progress: Callable[[int, int], None] | None = None) -> Calibration:  # fmt: skip
    """Measures every projection of a checkpoint folder that can be FP8, on texts that begin anew: windows, i64[n] each.

    The network runs in the stored dtype. progress: called with the bytes of weights that were read, and all of them.

    Raises: LongcatShapeError for windows or thresholds that are not legal. LongcatCheckpointError as `from_pretrained`.
    """
    config, _ = LongcatFlashConfig.read_files(path)
    thresholds = (thresholds or Thresholds()).filled(config)
    check_windows("calibrate", config, windows)
    with released(_Source(path, config, progress)) as source:
        meter = _Meter(thresholds, source.dtype)
        text = Layerwise(source, config, windows)
        for index in range(config.num_layers):
            layer = text.layer(index)
            meter.watch(layer)
            experts = _run(text, layer, f"model.layers.{index}.mlp.experts", meter)
            meter.weights(layer)
            meter.units += experts
            del layer  # ahead of the next one
        if source.mtp:
            head = text.mtp()
            meter.watch(head)
            text.draft(head, text.norm())
            meter.weights(head)
    return Calibration(thresholds, sum(map(len, windows)), meter.units)


class _Source(CheckpointSource):
    """Every projection dense. Experts are not stacked: whoever needs one reads it by itself."""

    def __init__(self, path: str | Path, config: LongcatFlashConfig,
                 progress: Callable[[int, int], None] | None) -> None:  # fmt: skip
        super().__init__(path, config, precision="bf16", progress=False)
        self._done, self._total = 0, sum(self._bytes(name) for name in self.header.shape)
        self._progress = progress or (lambda *_: None)

    def experts(self, name: str, count: int, width: int, hidden: int) -> tuple[Tensor | Fp8Pair, Tensor | Fp8Pair]:
        empty = torch.empty((0, hidden, width), dtype=self.dtype)
        return empty.transpose(1, 2), empty

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        self._done = min(self._total, self._done + tensor.nbytes)
        self._progress(self._done, self._total)
        return tensor


class _Meter:
    """Collects the measures of units."""

    def __init__(self, thresholds: Thresholds, dtype: torch.dtype) -> None:
        self.thresholds, self.dtype, self.units = thresholds, dtype, []
        self.largest: dict[str, float] = {}  # input of a module

    def watch(self, block: nn.Module) -> None:
        """Every projection of a block tells of its inputs."""
        for module in block.modules():
            if isinstance(module, Linear):
                module.register_forward_pre_hook(lambda m, args: self.saw(m.name, dense_of(args[0])))

    def saw(self, name: str, x: Tensor) -> None:
        largest = float(x.abs().max()) if x.numel() else 0.0
        largest = float("inf") if largest != largest else largest
        self.largest[name] = max(self.largest.get(name, 0.0), largest)

    def weights(self, block: nn.Module) -> None:
        """The units of a block's own projections, whose inputs have been seen."""
        for module in block.modules():
            if isinstance(module, Linear):
                name = module.name
                layer, kind = (MTP, name.split(".", 4)[4]) if ".mtp." in name else name.split(".", 3)[2:]
                unit = Unit(layer, kind, (name,))
                self.add(unit, {name: module.weight}, self.largest.pop(name))
                self.units.append(unit)

    def add(self, unit: Unit, weights: dict[str, Tensor], largest: float, expert: int | None = None) -> None:
        """A projection of a unit, or the parts of one of its experts with the largest of their inputs."""
        limits = self.thresholds
        by_input, by_error = largest > limits.max_input, False
        for name, weight in weights.items():
            problem = fp8_problem(*weight.shape, self.dtype)
            if problem:
                unit.impossible = problem
                continue
            relative, absolute = block_errors(weight)
            over = absolute > limits.absolute
            by_error |= bool((over & ~(relative <= limits.relative)).any())  # NaN is flagged
            # The worst block is the one that the scheme flags first.
            score = torch.where(over, relative + 4, relative).nan_to_num(nan=8.0)
            row, column = divmod(int(score.argmax()), score.shape[1])
            if float(score.max()) > unit.score:
                unit.score, unit.worst = float(score.max()), name
                unit.relative, unit.absolute = float(relative[row, column]), float(absolute[row, column])
                unit.block = (row * BLOCK, column * BLOCK)
        unit.max_input = max(unit.max_input, largest)
        unit.by_input |= by_input
        unit.by_error |= by_error
        unit.both |= by_input and by_error
        if expert is not None and by_input and by_error:
            unit.experts.append(expert)


def _run(text: Layerwise, layer: ScMoELayer, experts: str, meter: _Meter) -> list[Unit]:
    """All rows of a text through a layer, its experts one by one, each over all of its rows. The units of these."""
    pieces = [(part, rows, layer(text.hidden[part], rows, _without_experts)) for part, rows in text.pieces()]
    p = torch.cat([dense_of(values["p"]) for *_, values in pieces])
    routing = [values["routing"] for *_, values in pieces]
    shortcut, units = _experts(text, p, routing, experts, meter)
    for part, rows, values in pieces:
        text.hidden[part] = layer.add(rows, values["h_second"], values["dense"], shortcut[part])
    return units


def _without_experts(layer: Any, stages: Sequence[Stage], rows: AnyRows, values: dict[str, Any],
                     wanted: str) -> dict[str, Any]:  # fmt: skip
    """An executor that leaves out the experts and the sum that needs them."""
    for one in stages:
        if one.name not in ("run_experts", "add"):
            values |= run(layer, one, rows, values)
    return {name: values[name] for name in ("p", "routing", "h_second", "dense")}


def _experts(text: Layerwise, p: Tensor, routings: Sequence[Routing], name: str,
             meter: _Meter) -> tuple[Tensor, list[Unit]]:  # fmt: skip
    """What the experts of a layer add to p [T,H], zero experts included, in p's dtype; their units."""
    c, source = text.config, text.source
    ids, weights, zero = (torch.cat([getattr(r, key) for r in routings]) for key in ("ids", "weights", "zero_weight"))
    layer, wide = name.split(".")[2], weights.dtype
    gate_up = Unit(layer, "experts.gate_up", (f"{name}.*.gate_proj", f"{name}.*.up_proj"))
    down = Unit(layer, "experts.down", (f"{name}.*.down_proj",))
    out = p.to(wide) * zero[:, None]
    for e in range(c.n_routed_experts):
        token, choice = ((ids == e) & (weights != 0)).nonzero(as_tuple=True)
        parts = {}
        for part, shape in (("gate", (c.expert_ffn_hidden_size, c.hidden_size)),
                            ("up", (c.expert_ffn_hidden_size, c.hidden_size)),
                            ("down", (c.hidden_size, c.expert_ffn_hidden_size))):  # fmt: skip
            parts[f"{name}.{e}.{part}_proj"] = source.linear(f"{name}.{e}.{part}_proj.weight", *shape)
        w_gate, w_up, w_down = parts.values()
        x = p[token]
        h = F.silu(F.linear(x, w_gate)) * F.linear(x, w_up)
        out.index_add_(0, token, weights[token, choice][:, None] * F.linear(h, w_down).to(wide))
        names = list(parts)
        for unit, part_names, seen in ((gate_up, names[:2], x), (down, names[2:], h)):
            meter.saw(unit.kind, seen)
            meter.add(unit, {n: parts[n] for n in part_names}, meter.largest.pop(unit.kind), e)
            unit.unused += not len(token)
    return out.to(p.dtype), [gate_up, down]
