// Spreads work over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/numeric.h"

namespace longcat_ops::bindings {

constexpr int64_t kElementsPerThread = 32768;

// Runs `function` over [0, items), on several threads once the work is worth waking them.
template <class Function>
void parallel_over(int64_t items, int64_t elements_per_item, const Function& function) {
  if (items * elements_per_item <= kElementsPerThread) return function(0, items);
  const int64_t grain = ceil_div(kElementsPerThread, std::max<int64_t>(elements_per_item, 1));
  torch::stable::parallel_for(0, items, grain, function);
}

}  // namespace longcat_ops::bindings
