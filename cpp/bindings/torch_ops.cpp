// Registers every schema of torch.ops.longcat_ops, through LibTorch's stable ABI: one binary for every torch >= 2.11.
// Each family registers its own kernels.
#include <torch/csrc/stable/library.h>

#include "ops/table.h"

STABLE_TORCH_LIBRARY(longcat_ops, m) {
  for (const longcat_ops::OpRow& op : longcat_ops::all_ops()) m.def(op.schema.text);
}

// The kernels themselves, on a GPU and in the emulator.
STABLE_TORCH_LIBRARY(longcat_kernels, m) {
  for (const longcat_ops::OpRow& op : longcat_ops::all_ops()) m.def(op.schema.text);
}
