// The conformance cases for a GPU, and its probes.
#include <optional>

#include "library.h"
#include "neighbour.cuh"
#include "probe.cuh"

namespace longcat_ops::conformance {
namespace {

// The text that `function` returns, or null with conformance_error set.
template <class Function>
const char* answer(const Function& function) {
  static std::string text;
  try {
    text = function();
    return text.c_str();
  } catch (const std::exception& error) {
    last_error = error.what();
    return nullptr;
  }
}

std::optional<Neighbour> neighbour;

}  // namespace
}  // namespace longcat_ops::conformance

// Returns a JSON object. `number`: multiprocessors for "box_rate", rounds for "two_back"; other probes ignore it.
LC_EXPORT const char* conformance_probe(const char* what, uint32_t number) {
  using namespace longcat_ops::conformance;
  return answer([&] { return probe(what, number); });
}

// Starts blocks that run on their own stream until conformance_neighbour_stop or for limit_ms: see neighbour.cuh.
LC_EXPORT const char* conformance_neighbour_start(uint32_t blocks, uint32_t bytes, int carveout, uint32_t limit_ms) {
  using namespace longcat_ops::conformance;
  return answer([&] {
    neighbour.reset();
    neighbour.emplace(blocks, bytes, carveout, limit_ms);
    return std::string("{}");
  });
}

// Stops them and returns on which multiprocessors they ran.
LC_EXPORT const char* conformance_neighbour_stop() {
  using namespace longcat_ops::conformance;
  return answer([&] {
    const std::string text = neighbour.value().stop();
    neighbour.reset();
    return text;
  });
}
