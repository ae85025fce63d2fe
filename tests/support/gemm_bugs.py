"""The sources of the grouped FP8 GEMM in which bugs are planted."""

from __future__ import annotations

from support.kernel_mutations import Mutation

PIPELINE = "device/pipeline.cuh"
SCHEDULER = "gemm/scheduler.cuh"
PRODUCER = "gemm/producer.cuh"
ROLES = "gemm/roles.cuh"
CONSUMER = "gemm/consumer.cuh"


def gemm(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, "gemm/moe_gemm.cu", file, old, new)
