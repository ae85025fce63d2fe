"""Renews every prediction of the documents, by longcat_ops.perf: tables of docs/moe_gemm.md with its plots, of
docs/expert_parallel.md, docs/fused_moe.md, docs/kernels.md, docs/mla_decode.md, docs/nvls.md, docs/performance_model.md
and docs/perf_model.md with its plots, and docs/results/h200-predictions.json.

python tools/pages/predictions_page.py            # write them
python tools/pages/predictions_page.py --check    # exit 1 if a file is not what this would write

A page has each section between two marks that name it: `predictions: NAME` and `end of NAME`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("bench", "tools", "python") if str(ROOT / name) not in sys.path]

from device_check import predictions  # noqa: E402
from prediction_tables import (  # noqa: E402
    attention,
    chains,
    collectives,
    deployments,
    experts,
    model,
    products,
    timelines,
)
from sections import renew, renewed  # noqa: E402
from tables import cells_of, devices  # noqa: E402

SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/moe_gemm.md": {
        "pairs": products.pairs,
        "few experts": products.few_experts,
        "SwiGLU": products.swiglu,
        "SwiGLU forms": products.swiglu_forms,
        "products": products.all_products,
    },
    "docs/performance_model.md": {
        "devices": model.devices,
        "sources": model.sources,
        "constants": model.constants,
        "published": model.published_times,
        "step": attention.whole_step,
        "stages": timelines.stages,
        "overlap": timelines.overlap,
        "stages of the report": timelines.report,
    },
    "docs/perf_model.md": deployments.SECTIONS,
    "docs/expert_parallel.md": {
        "bytes": experts.sent,
        "saved": experts.saved,
        "switch": experts.times,
        "fixed costs": experts.constants,
        "nodes": experts.nodes,
    },
    "docs/fused_moe.md": {"chain": chains.chain, "layer": chains.layer},
    "docs/kernels.md": {"route and plan": chains.dispatch_ops},
    "docs/mla_decode.md": {"splits": attention.splits, "parts": attention.parts},
    "docs/nvls.md": {
        "bytes": collectives.bytes_each_way,
        "fixed costs": collectives.constants,
        "all-reduce": collectives.all_reduce,
        "one phase": collectives.one_phase,
        "published collectives": collectives.published_times,
        "blocks": collectives.blocks,
        "limits": collectives.limits,
        "uneven rows": collectives.uneven,
    },
}
RESULTS = "docs/results/h200-predictions.json"
PLOTS = ("docs/moe_gemm_roofline.svg", "docs/moe_gemm_crossover.svg")


def texts() -> dict[str, str]:
    """Each file with its new content, but for the plots."""
    found = {file: renewed((ROOT / file).read_text(encoding="utf-8"), made) for file, made in SECTIONS.items()}
    return found | {RESULTS: json.dumps(predictions.content(), indent=1) + "\n"}


def plots() -> dict[str, str]:
    """Needs matplotlib. The plots depend on its version, which a file names."""
    import plots as drawn

    cells = cells_of(products.results())
    with tempfile.TemporaryDirectory() as folder:
        figures = drawn.written(cells, devices(cells)[0], Path(folder))
        found = dict(zip(PLOTS, (path.read_text(encoding="utf-8") for path in figures), strict=True))
        return found | deployments.plots(Path(folder))


def main(arguments: list[str] | None = None) -> int:
    return renew(__doc__, ROOT, lambda: texts() | plots(), arguments)


if __name__ == "__main__":
    sys.exit(main())
