"""The sources of the grouped FP8 GEMM that planted bugs replace."""

from __future__ import annotations

from support.kernel_mutations import Mutation


def gemm(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, "moe_gemm/moe_gemm.cu", file, old, new)


PIPELINE = "device/pipeline.cuh"


SCHEDULER = "moe_gemm/scheduler.cuh"


PRODUCER = "moe_gemm/producer.cuh"


ROLES = "moe_gemm/roles.cuh"


CONSUMER = "moe_gemm/consumer.cuh"
