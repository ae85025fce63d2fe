#include "emu/world.h"
#include "common/constants.h"

#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

void check_launch(const Launch& launch) {
  auto require = [&](bool condition, const std::string& text) {
    if (!condition) throw Error("launch", std::string(launch.name) + ": " + text);
  };
  require(launch.body != nullptr, "no body");
  require(launch.grid >= 1, "the grid is empty");
  require(launch.block >= 1 && launch.block <= 1024, std::to_string(launch.block) + " threads in a block");
  require(launch.cluster >= 1 && launch.cluster <= 16 && (launch.cluster & (launch.cluster - 1)) == 0,
          "a cluster of " + std::to_string(launch.cluster) + " CTAs, expected 1, 2, 4, 8 or 16");
  require(launch.grid % launch.cluster == 0, "a grid of " + std::to_string(launch.grid) +
                                                 " CTAs is not a multiple of its cluster of " +
                                                 std::to_string(launch.cluster));
  require(launch.smem_bytes <= static_cast<uint32_t>(kMaxBlockSmem),
          std::to_string(launch.smem_bytes) + " B of shared memory, of " + std::to_string(kMaxBlockSmem));
  const uint32_t warps = (launch.block + 31) / 32;
  require(launch.registers_per_thread * warps * 32 <= 65536,
          std::to_string(launch.registers_per_thread) + " registers for each of " + std::to_string(launch.block) +
              " threads are more than 65536");
}

}  // namespace

World::World(uint64_t seed, Policy policy, Settings settings)
    : engine_(std::make_unique<Engine>(seed, policy, settings)) {}
World::~World() = default;

void* World::alloc(size_t bytes, int device, const char* name, bool initialised) {
  return engine_->memory.allocate(bytes, device, name, initialised);
}

void World::register_memory(void* memory, size_t bytes, int device, const char* name, bool initialised,
                            uint8_t filler) {
  engine_->memory.add(memory, bytes, device, name, initialised, filler);
}

void World::unregister_memory(void* memory) { engine_->memory.remove(memory); }

void World::mark_initialised(const void* memory, size_t bytes) {
  Allocation& allocation = engine_->memory.find(memory, bytes, "mark_initialised", Location::current());
  allocation.shadow.set_initialised(static_cast<const uint8_t*>(memory) - allocation.begin, bytes);
}

void World::make_peer_accessible(void* memory) {
  engine_->memory.find(memory, 1, "make_peer_accessible", Location::current()).peer_accessible = true;
}

void* World::bind_multicast(const std::vector<void*>& members, const char* name) {
  return engine_->memory.add_multicast(members, name);
}

void World::launch(Launch launch) {
  check_launch(launch);
  auto& stream = engine_->streams[launch.device];
  auto grid = std::make_shared<Grid>();
  grid->not_triggered = launch.grid;
  grid->number = ++engine_->launches;
  if (launch.dependent_launch && !stream.empty()) grid->predecessor = stream.back();
  grid->launch = std::move(launch);
  stream.push_back(std::move(grid));
}

void World::synchronize() {
  const Current outer = current;
  current = {engine_.get(), nullptr};
  try {
    engine_->run();
  } catch (...) {
    current = outer;
    throw;
  }
  current = outer;
}

Settings& World::settings() { return engine_->settings; }
const Stats& World::stats() const { return engine_->stats; }

}  // namespace longcat_ops::emu
