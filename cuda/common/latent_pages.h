// The pages of the latent cache.
#pragma once

#include <cstdint>

namespace longcat_ops {

constexpr int64_t kPageRows = 64;  // rows of a page: that of the public decode kernels of Hopper

}  // namespace longcat_ops
