// Several devices, and multicast addresses over them.
#pragma once

#include <cstring>

#include "check.h"

namespace test {

constexpr int kDevices = 3;

// One array per device, and the multicast address over all of them.
template <class T>
struct Shared {
  Shared(emu::World& world, size_t count, bool initialised = true) {
    std::vector<void*> members;
    for (int device = 0; device < kDevices; ++device) {
      members.push_back(of[device] = world.alloc_array<T>(count, device, "array", initialised));
      if (initialised) std::memset(static_cast<void*>(of[device]), 0, count * sizeof(T));
    }
    mc = static_cast<T*>(world.bind_multicast(members, "mc array"));
  }
  T* of[kDevices];
  T* mc;
};

template <class Body>
void run_on(emu::World& world, int device, Body body, uint32_t block = 1) {
  world.launch({.device = device, .block = block, .body = body});
}

}  // namespace test
