"""The steps of a check in which several ranks share one GPU."""

from __future__ import annotations

from .plan_attention import TINY
from .steps import Step


def collectives() -> list[Step]:
    """N ranks on one GPU."""
    sizes = {"sizes_of": [4 << 10, 16 << 10, 64 << 10, 1 << 20], "norms": [[1, 6144], [7, 6144], [85, 6144]]}
    small = {"sizes_of": [256, 1024, 4096], "norms": [[1, 64], [5, 136]]}
    eight = {"ranks": 8}
    return [
        *(Step(f"collectives/values-N{ranks}", 1.5, 30, "collectives.values", sizes | {"ranks": ranks}, small)
          for ranks in (8, 4, 2)),
        Step("collectives/rows-N8", 1.5, 30, "collectives.rows", eight | {"widths": [6144, 130]}, {"widths": [24, 65]}),
        Step("collectives/in_a_row-N8", 3, 30, "collectives.in_a_row", eight | {"count": 1000, "width": 1024},
             {"count": 24, "width": 40}),
        Step("collectives/graphs-N8", 2, 30, "collectives.graphs", eight | {"replays": 20, "width": 1024},
             {"replays": 2, "width": 24}),
        Step("collectives/failures-N8", 3, 30, "collectives.failures", eight | {"timeout_s": 0.2}),
        Step("collectives/times-N8", 2, 30, "collectives.times", eight | {"count": 100}, {"count": 1}),
        Step("collectives/multicast", 1, 30, "collectives.multicast"),
    ]  # fmt: skip


def experts() -> list[Step]:
    """Expert parallelism of N ranks on one GPU."""
    model = {"experts": 512, "zero": 256, "top_k": 12, "hidden": 6144}
    small_model = {"experts": 16, "zero": 8, "top_k": 4, "hidden": 144}
    few = {"n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 6}
    layers = {"layers": 2, "rows": 2, "context": 500, "sizes": few | {"vocab_size": 1024}}
    small_layers = {"context": 70, "sizes": TINY | few}
    tokens, small = {"tokens": [96, 0, 33, 192, 1, 7, 64, 8]}, {"tokens": [4, 0, 3], "model": small_model}
    return [
        *(Step(f"experts/values-N{ranks}-{payload}", 2, 30, "experts.values",
               {"ranks": ranks, "payload": payload, "model": model} | tokens, small)
          for ranks, payload in ((8, "fp8"), (8, "bf16"), (4, "fp8"), (2, "fp8"))),
        Step("experts/graphs-N8", 2, 30, "experts.graphs", {"ranks": 8, "tokens": 96, "model": model, "replays": 12},
             {"tokens": 3, "model": small_model, "replays": 3}),
        Step("experts/failures-N8", 2, 30, "experts.failures", {"ranks": 8, "model": model, "timeout_s": 0.2},
             {"model": small_model}),
        Step("experts/layers-N2", 3, 60, "layers.values", layers | {"sequences": [[48, 17], [0, 33]]},
             small_layers | {"sequences": [[2, 1], [0, 2]]}),
        Step("experts/layers-N4", 3, 60, "layers.values", layers | {"sequences": [[24, 0, 40, 1]]},
             small_layers | {"layers": 1, "sequences": [[2, 0, 1, 1]]}),
        Step("experts/layers-graphs-N2", 3, 60, "layers.graphs", layers | {"sequences": [33, 20], "replays": 6},
             small_layers | {"layers": 1, "replays": 2, "sequences": [2, 1]}),
        Step("experts/two-streams", 3, 40, "overlap.layers",
             {"sequences": 96, "rows": 2, "context": 1000, "sizes": {}},
             {"sequences": 2, "context": 70, "sizes": TINY}),
        Step("experts/stage-times", 5, 40, "overlap.stage_times",
             {"layers": 4, "sequences": 96, "rows": 2, "context": 5000, "rounds": 20, "sizes": {}},
             {"layers": 1, "sequences": 2, "context": 70, "rounds": 1, "sizes": TINY}),
        Step("experts/times-N8", 2, 30, "experts.times",
             {"ranks": 8, "tokens": [1, 8, 96, 192], "model": model, "count": 50},
             {"tokens": [1, 3], "model": small_model, "count": 1}),
    ]  # fmt: skip
