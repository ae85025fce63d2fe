// The emulator's side of launch/tensor_map.h.
#include "launch/tensor_map.h"

#include "emu/ptx/types.h"
#include "longcat_ops.h"

namespace longcat_ops {

int encode_map(const ByteTensor& tensor, uint32_t box_rows, void* map, uint32_t box_groups) {
  const ByteTensor t = normalised(tensor);
  const auto u64 = [](int64_t value) { return static_cast<uint64_t>(value); };
  auto* base = static_cast<uint8_t*>(const_cast<void*>(t.data));
  *static_cast<ptx::TensorMap*>(map) = {.base = base,
                                        .rank = 3,
                                        .element_size = 1,
                                        .sizes = {u64(t.columns), u64(t.rows), u64(t.groups)},
                                        .strides = {1, u64(t.row_stride), u64(t.group_stride)},
                                        .box = {kBoxColumns, box_rows, box_groups},
                                        .swizzle = ptx::Swizzle::k128B};
  return LC_OK;
}

}  // namespace longcat_ops
