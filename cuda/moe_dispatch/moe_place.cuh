// moe_place: the slot of each choice, one of its expert's replicas by the hash of token and layer.
//
// Floor per choice: 4 bytes read and 4 written; the tables, 4 N (M + 1) bytes, are shared. At 192 tokens of 12 choices
// these are 18 KB, and 8 KB of tables for 512 experts of up to 3 replicas: a launch is all that it costs.
//
// A thread takes a choice. Whatever the tables hold, no access lies outside them.
#pragma once

#include "common/replica_hash.h"
#include "moe_dispatch/config.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::moe_dispatch {

struct MoePlaceParams {
  const int32_t* ids;       // [T, top_k]
  const int32_t* slots;     // [experts, max_replicas]
  const int32_t* replicas;  // [experts]
  int32_t* out;             // [T, top_k]
  uint32_t choices, top_k;
  int32_t experts, max_replicas;
  uint32_t layer;
};

LC_DEVICE int32_t slot_of(const MoePlaceParams& p, uint32_t choice) {
  const int32_t id = ptx::load_global(p.ids + choice);
  if (id < 0 || id >= p.experts) return -1;
  const int32_t replicas = ptx::load_global(p.replicas + id);
  if (replicas < 1 || replicas > p.max_replicas) return -1;
  const uint32_t chosen = replica_hash(choice / p.top_k, p.layer) % static_cast<uint32_t>(replicas);
  return ptx::load_global(p.slots + int64_t{id} * p.max_replicas + chosen);
}

LC_KERNEL LC_LAUNCH_BOUNDS(kPlaceThreads, 16) moe_place_kernel(LC_GRID_CONSTANT MoePlaceParams p) {
  const uint32_t choice = ptx::block_index() * kPlaceThreads + ptx::thread_index();
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (choice < p.choices) ptx::store_global(p.out + choice, slot_of(p, choice));
}

}  // namespace longcat_ops::moe_dispatch
