// Writes that arrive after the thread has gone on: relaxed stores, and everything written to a multicast address.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "emu/engine.h"

namespace longcat_ops::emu {

enum class Combine : uint8_t { kStore, kAddU32, kAddU64, kAddF32, kAddBF16, kAddF16 };

// One write to one place in one device's memory. It arrives at any time and in any order with others, at the latest
// when something must see it. Its units (what the ISA makes atomic) may arrive one by one.
struct Delivery : AsyncOperation {
  uint8_t* target = nullptr;
  std::array<uint8_t, 16> data{};
  uint32_t bytes = 0;
  uint32_t unit = 0;
  Combine combine = Combine::kStore;
  bool multicast = false;  // written through a multicast address
  bool strong = false;
  bool torn = false;        // units come one by one
  uint32_t on_the_way = 0;  // units, one bit each
  uint32_t component = 0;   // who wrote, and when
  uint32_t time = 0;
  Grid* grid = nullptr;
  std::shared_ptr<const Release> release;
  std::multimap<const uint8_t*, Delivery*>::iterator place;  // in Engine::deliveries

  ~Delivery() override;
  bool step() override;
  void arrive(uint32_t unit_index);
  void arrive_whole();
};

struct DeliveryOptions {
  uint32_t time = 0;  // of the write: a release counts as later
  uint32_t unit = 0;
  Combine combine = Combine::kStore;
  bool multicast = false;
  bool strong = true;
};
void deliver(void* target, const void* data, uint32_t bytes, const DeliveryOptions& options,
             const std::shared_ptr<const Release>& release);

// For a release or a fence: all writes that happened before it arrive now.
void perform_writes(const Thread& self);
// Before an access: what was written before it through the same address, or made visible to it by a fence, arrives.
void arrive_before(const uint8_t* address, size_t bytes, const Access& access);

}  // namespace longcat_ops::emu
