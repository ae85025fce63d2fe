"""Planted bugs in moe_place, both permutes and moe_combine: each is caught by a small part of their calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longcat_ops.ops import emulated
from support import dispatch_calls as calls
from support.kernel_mutations import Mutation, in_tiers, planted

PERMUTE = "moe_dispatch/moe_permute.cuh"
PERMUTE_QUANT, SPREAD = "moe_dispatch/moe_permute_quant.cuh", "moe_dispatch/spread_rows.cuh"
COMBINE = "moe_dispatch/moe_combine.cuh"
CHOICES = "moe_dispatch/choices.cuh"
WAIT = "  ptx::grid_dependency_wait();\n"


def place(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "moe_dispatch/moe_place.cu", "moe_dispatch/moe_place.cuh", old, new)


def permute(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "moe_dispatch/moe_permute.cu", PERMUTE, old, new)


def permute_quant(name: str, old: str, new: str, header: str = PERMUTE_QUANT) -> Mutation:
    return Mutation(name, "moe_dispatch/moe_permute_quant.cu", header, old, new)


def combine(name: str, old: str, new: str, header: str = COMBINE) -> Mutation:
    return Mutation(name, "moe_dispatch/moe_combine.cu", header, old, new)


LANES_ABOVE = "~((2u << ptx::lane_index()) - 1)"
FUSED = "ptx::fma_rn(values[i], weight, sum[i])"
MUTATIONS = [
    permute_quant("reads_before_the_kernel_ahead_has_written", WAIT, ""),
    permute("not_the_last_copy", "i < count; ++i", "i + 1 < count; ++i"),
    permute_quant("amax_of_two_groups", "reduce_lanes<kGroupLanes>", "reduce_lanes<32>", SPREAD),
    permute_quant("believes_row_of_alone", "== choice.source", "!= -2", CHOICES),
    combine("list_read_before_it_is_whole", "  ptx::warp_sync();\n", "", CHOICES),
    place("reads_before_the_kernel_ahead_has_written", WAIT, ""),
    combine("fused", "ptx::add_rn(sum[i], ptx::multiply_rn(values[i], weight))", FUSED),
    combine("starts_at_zero", "count < p.top_k ? 0.0f : -0.0f", "0.0f"),
    permute_quant("own_codes_twice", "low = odd ? other : codes", "low = codes", SPREAD),
    combine("list_backwards", "kept & ((1u << ptx::lane_index()) - 1)", f"kept & {LANES_ABOVE}", CHOICES),
    combine("rows_out_of_range", "own_row >= 0 && own_row < p.rows", "own_row != -1"),
    permute_quant("scales_of_even_groups_only", "ptx::lane_index() % kGroupLanes", "ptx::lane_index()", SPREAD),
    permute_quant("codes_of_a_chunk_further", "kChunk * (chunk - odd)", "kChunk * chunk", SPREAD),
    permute_quant("not_the_last_copy", "uint32_t i = odd; i < count", "uint32_t i = odd; i < count - 1", SPREAD),
    permute_quant("rows_beyond_the_last", "row < plan.rows ? row : -1", "row", CHOICES),
    combine("reads_before_the_kernel_ahead_has_written", WAIT, ""),
    combine("beyond_the_list", "first + j < count ? first + j : count - 1", "first + j"),
    combine("first_batch_only", "first < count; first += kInFlight", "first < kInFlight && first < count; first += 32"),
    combine("zero_experts_of_the_first_token", "p.zero_weight + place.token", "p.zero_weight"),
    permute("reads_before_the_kernel_ahead_has_written", WAIT, ""),
    permute("believes_row_of_alone", "is_agreed(p.plan, choice)", "choice.row >= 0"),
    permute("beyond_the_row", "const bool inside = chunk < p.warps.chunks", "const bool inside = true"),
    permute("first_chunks_only", "+ kChunk * chunk, held", "+ kChunk * ptx::lane_index(), held"),
    place("experts_that_do_not_exist", "id < 0 || id >= p.experts", "id < 0"),
    place("ids_that_are_none", "id < 0 || id >= p.experts", "id >= p.experts"),
    place("more_replicas_than_slots", "replicas < 1 || replicas > p.max_replicas", "replicas < 1"),
    place(
        "negative_replicas", "replicas < 1 || replicas > p.max_replicas", "replicas == 0 || replicas > p.max_replicas"
    ),
    place("no_replica_as_one", "if (replicas < 1 || ", "if (replicas < 1) return ptx::load_global(p.slots + id); if ("),
    place("choices_in_place_of_tokens", "choice / p.top_k, p.layer", "choice, p.layer"),
    place("every_layer_alike", "choice / p.top_k, p.layer", "choice / p.top_k, 0"),
    place("tokens_in_turn", "replica_hash(choice / p.top_k, p.layer)", "(choice / p.top_k + p.layer)"),
    place("first_replica_alone", " + chosen)", ")"),
    place("rows_of_as_many_slots_as_replicas", "int64_t{id} * p.max_replicas", "int64_t{id} * replicas"),
    place("beyond_the_last_choice", "  if (choice < p.choices) ptx::store", "  ptx::store"),
]


def check_place() -> None:
    calls.check_place(43, 12, 64, 3)


def check_permute() -> None:
    calls.check_permute(torch.randn(7, 576), calls.choices(7, 12))
    calls.check_a_plan_that_disagrees_with_itself_is_safe(calls.check_permute)


def check_permute_quant() -> None:
    calls.check_permute_quant(torch.randn(7, 576), calls.choices(7, 12))
    calls.check_a_plan_that_disagrees_with_itself_is_safe(calls.check_permute_quant)


def check_combine() -> None:
    calls.check_a_sum_of_negative_zeros()
    calls.check_combine(7, 12, 160, torch.float32)
    y, plan, routing, x, _ = calls.combine_case(7, 12, 160, torch.bfloat16, torch.bfloat16)
    plan.row_of[0, :2] = torch.tensor([len(y), -2])
    assert calls.combine(y, plan, routing, x).shape == x.shape


CHECKS = {
    "moe_place": check_place,
    "moe_permute": check_permute,
    "moe_permute_quant": check_permute_quant,
    "moe_combine": check_combine,
}


@pytest.mark.parametrize("op", CHECKS)
def test_nothing_planted_nothing_found(op: str) -> None:
    CHECKS[op]()


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS, 6), ids=lambda m: f"{Path(m.launcher).stem}-{m.name}")
def test_caught(mutation: Mutation, tmp_path: Path) -> None:
    with planted(mutation, tmp_path), pytest.raises((AssertionError, emulated.EmulatorError)):
        CHECKS[Path(mutation.launcher).stem]()
