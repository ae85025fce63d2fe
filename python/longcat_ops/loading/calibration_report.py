"""A calibration as files: the policy, all measures as JSON, a table, and a heat map of layers and modules."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .calibration import MTP, Calibration, Unit
from .durable import write_file

POLICY, MEASURES, TABLE, PICTURE = (
    "precision_policy.json",
    "calibration.json",
    "calibration.md",
    "calibration.svg",
)
FILES = {POLICY, MEASURES, TABLE, PICTURE}
_CELL, _LEFT, _TOP = 18, 44, 150  # pixels
_DARK, _LIGHT = (179, 21, 41), (247, 247, 240)


def write(found: Calibration, folder: Path, asked: Mapping[str, Any]) -> None:
    """All four files, the measures last. asked: what was calibrated, which stands in them."""
    write_file(folder, POLICY, _json(found.policy))
    write_file(folder, TABLE, table(found).encode())
    write_file(folder, PICTURE, picture(found).encode())
    write_file(folder, MEASURES, _json({"asked": asked, **to_dict(found)}))


def to_dict(found: Calibration) -> dict[str, Any]:
    """Plain numbers and strings, ready for JSON; inf and NaN are strings."""
    units = [{"reason": unit.reason, **asdict(unit)} for unit in found.units]
    for unit in units:
        del unit["score"]
        for name in ("max_input", "relative", "absolute"):
            unit[name] = unit[name] if math.isfinite(unit[name]) else str(unit[name])
    return {"tokens": found.tokens, "thresholds": asdict(found.thresholds), "policy": found.policy, "units": units}


def table(found: Calibration) -> str:
    """Markdown: a row for each unit, with both measures and the reason for what becomes of it."""
    limits, dense = found.thresholds, sum(unit.stays_dense for unit in found.units)
    lines = [
        f"{dense} of {len(found.units)} units stay bf16, by {found.tokens} tokens. A: the largest input is above "
        f"{limits.max_input:g}. B: a block has a relative error above {limits.relative:g} and an absolute one above "
        f"{limits.absolute:g}.",
        "",
        "| layer | unit | largest input | A | relative error | absolute error | of the block at | B | becomes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for unit in found.units:
        where = f"{unit.block[0]}, {unit.block[1]}" + _expert(unit)
        lines.append(
            f"| {unit.layer} | {unit.kind} | {unit.max_input:.4g} | {_mark(unit.by_input)} | {unit.relative:.4f} "
            f"| {unit.absolute:.2e} | {where} | {_mark(unit.by_error)} | {unit.reason} |"
        )
    return "\n".join(lines) + "\n"


def picture(found: Calibration) -> str:
    """SVG: two maps, rows are layers and columns modules; the darker, the nearer to the threshold of its scheme, on a
    logarithmic scale of eight halvings. A frame marks what stays bf16.
    """
    limits = found.thresholds
    columns = list(dict.fromkeys(_column(unit) for unit in found.units))
    rows = list(dict.fromkeys(unit.layer for unit in found.units))
    width, height = _LEFT + len(columns) * _CELL, _TOP + len(rows) * _CELL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 60}" height="{height + 40}" '
        'font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, (title, limit) in enumerate(
        ((f"A: largest input / {limits.max_input:g}", limits.max_input),
         (f"B: relative error of the worst block / {limits.relative:g}", limits.relative))
    ):  # fmt: skip
        parts.append(f'<g transform="translate({20 + i * (width + 20)}, 20)"><text font-size="12">{title}</text>')
        for c, name in enumerate(columns):
            x = _LEFT + c * _CELL + _CELL / 2
            parts.append(f'<text transform="translate({x + 3}, {_TOP - 6}) rotate(-90)">{name}</text>')
        for r, name in enumerate(rows):
            parts.append(f'<text x="{_LEFT - 6}" y="{_TOP + r * _CELL + 13}" text-anchor="end">{name}</text>')
        for unit in found.units:
            value = unit.relative if i else unit.max_input
            place = columns.index(_column(unit)), rows.index(unit.layer)
            parts += _cell(unit, value, limit, *place)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cell(unit: Unit, value: float, limit: float, column: int, row: int) -> Iterator[str]:
    x, y, side = _LEFT + column * _CELL, _TOP + row * _CELL, _CELL - 1
    frame = ' stroke="black" stroke-width="2"' if unit.stays_dense else ""
    yield f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{_colour(value, limit)}"{frame}>'
    yield f"<title>{unit.layer} {unit.kind}: {value:.4g}; {unit.reason}</title></rect>"


def _colour(value: float, limit: float) -> str:
    ratio = value / limit if limit else math.inf
    near = 1.0 if not ratio < 1 else max(0.0, 1 + math.log2(ratio) / 8) if ratio > 0 else 0.0
    return "#" + "".join(
        f"{round(light + near * (dark - light)):02x}" for dark, light in zip(_DARK, _LIGHT, strict=True)
    )


def _column(unit: Unit) -> str:
    """The MTP head has one attention and one FFN, under the columns of a layer's first."""
    if unit.layer != MTP:
        return unit.kind
    return unit.kind.replace("self_attn.", "self_attn.0.").replace("transformer_layer.mlp.", "mlps.0.")


def _expert(unit: Unit) -> str:
    parts = unit.worst.split(".")
    return f" of expert {parts[-2]}, {parts[-1]}" if ".experts." in unit.worst else ""


def _mark(flagged: bool) -> str:
    return "yes" if flagged else ""


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
