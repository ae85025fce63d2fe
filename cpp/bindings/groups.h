// Groups of rows in the three layouts of the grouped products, and the threads over them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "cpu/hidden.h"

namespace longcat_ops::bindings {

// Matrices [G, rows, columns].
class Stack {
 public:
  Stack(const Call& a, const char* name) : desc_(a.tensor(name)), start_(static_cast<char*>(a.address(name))) {}
  cpu::Matrix operator[](int64_t g) const {
    return {start_ + g * desc_.strides[0] * element_size(desc_.dtype), desc_.strides[1], desc_.strides[2]};
  }

 private:
  const TensorDesc& desc_;
  char* start_;
};

// Each group's rows of `a`, from offsets[G + 1], cut to the rows that exist.
struct Bounds {
  std::vector<int64_t> start, count;

  Bounds(const Call& a, const char* weight) : start(a.tensor(weight).sizes[0]), count(start.size()) {
    const auto* offsets = a.data<int32_t>("offsets");
    const auto cut = [rows = a.tensor("a").sizes[0]](int32_t value) { return std::clamp<int64_t>(value, 0, rows); };
    for (size_t g = 0; g < count.size(); ++g)
      start[g] = cut(offsets[g]), count[g] = std::max<int64_t>(cut(offsets[g + 1]) - start[g], 0);
  }
};

// Runs of adjacent rows of `a` of one group of `b`, from m_indices[M].
struct Runs {
  std::vector<int64_t> group, start, count;

  explicit Runs(const Call& a) {
    const auto* index = a.data<int32_t>("m_indices");
    const int64_t rows = a.tensor("a").sizes[0], groups = a.tensor("b").sizes[0];
    for (int64_t i = 0; i < rows; ++i) {
      if (index[i] < 0 || index[i] >= groups) continue;
      if (group.empty() || group.back() != index[i] || start.back() + count.back() != i)
        group.push_back(index[i]), start.push_back(i), count.push_back(0);
      ++count.back();
    }
  }
};

// Valid rows of each group of `a` [G, M, K], from masked_m[G].
inline std::vector<int64_t> masked_rows(const Call& a) {
  const TensorDesc& x = a.tensor("a");
  const auto* valid = a.data<int32_t>("masked_m");
  std::vector<int64_t> rows(x.sizes[0]);
  for (size_t g = 0; g < rows.size(); ++g) rows[g] = std::clamp<int64_t>(valid[g], 0, x.sizes[1]);
  return rows;
}

// Where the products with SwiGLU store.
inline cpu::Hidden hidden_of(const Call& a) {
  const TensorDesc& h = a.tensor("h");
  return {a.matrix("h"), h.dtype, a.matrix("sh"), h.sizes[1]};
}

// Runs function(g, begin, end) on tiles [begin, end) of each group g that has rows, spread over the threads.
template <class Function>
void over_group_tiles(const std::vector<int64_t>& rows, int64_t tiles, int64_t work_per_tile_row,
                      const Function& function) {
  std::vector<int64_t> active;
  int64_t most = 0;
  for (size_t g = 0; g < rows.size(); ++g)
    if (rows[g] > 0) active.push_back(static_cast<int64_t>(g)), most = std::max(most, rows[g]);
  parallel_over(static_cast<int64_t>(active.size()) * tiles, work_per_tile_row * std::max<int64_t>(most, 1),
                [&](int64_t begin, int64_t end) {
                  while (begin < end) {
                    const int64_t group = begin / tiles, stop = std::min(end, (group + 1) * tiles);
                    function(active[group], begin - group * tiles, stop - group * tiles);
                    begin = stop;
                  }
                });
}

}  // namespace longcat_ops::bindings
