// The conformance cases for a GPU, and its probes.
#include <optional>

#include "library.h"
#include "neighbour.cuh"
#include "probe.cuh"

namespace longcat_ops::conformance {
namespace {

// The text of `function`, or null with conformance_error set.
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

// A JSON object. `number`: multiprocessors of "box_rate", rounds of "two_back"; the others have none.
LC_EXPORT const char* conformance_probe(const char* what, uint32_t number) {
  using namespace longcat_ops::conformance;
  return answer([&] { return probe(what, number); });
}

// Blocks that stay, on a stream of their own, until conformance_neighbour_stop or for limit_ms: see neighbour.cuh.
LC_EXPORT const char* conformance_neighbour_start(uint32_t blocks, uint32_t bytes, int carveout, uint32_t limit_ms) {
  using namespace longcat_ops::conformance;
  return answer([&] {
    neighbour.reset();
    neighbour.emplace(blocks, bytes, carveout, limit_ms);
    return std::string("{}");
  });
}

// Where they were.
LC_EXPORT const char* conformance_neighbour_stop() {
  using namespace longcat_ops::conformance;
  return answer([&] {
    const std::string text = neighbour.value().stop();
    neighbour.reset();
    return text;
  });
}
