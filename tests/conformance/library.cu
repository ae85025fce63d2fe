// The conformance cases for a GPU, and its probes.
#include "library.h"
#include "probe.cuh"

// "device", "multicast" or "rates": a JSON object, or null with conformance_error set.
LC_EXPORT const char* conformance_probe(const char* what) {
  using namespace longcat_ops::conformance;
  static std::string text;
  try {
    text = probe(what);
    return text.c_str();
  } catch (const std::exception& error) {
    last_error = error.what();
    return nullptr;
  }
}
