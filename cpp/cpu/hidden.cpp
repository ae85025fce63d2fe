#include "cpu/hidden.h"

#include "common/constants.h"
#include "cpu/dispatch.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {

int64_t Hidden::channels(int64_t block) const { return smaller(kQuantBlock, width - block * kQuantBlock); }

void Hidden::store(const float* values, int64_t row, int64_t rows, int64_t block) const {
  const int64_t first = block * kQuantBlock, count = channels(block);
  if (dtype != DType::kFloat8E4M3) {
    return visit_format(dtype, [&](auto format) {
      using Format = decltype(format);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < count; ++j)
          row_of<typename Format::Storage>(h, row + i)[first + j] = Format::store(values[i * kQuantBlock + j]);
    });
  }
  const QuantParams quant{
      .x_dtype = DType::kFloat32,
      .x = {const_cast<float*>(values), kQuantBlock, 1},
      .q = {row_of<uint8_t>(h, row) + first, h.row_stride, 1},
      .s = {row_of<float>(sh, row) + block * sh.column_stride, sh.row_stride, sh.column_stride},
      .rows = rows,
      .columns = count,
      .block_rows = 1,
      .block_columns = kQuantBlock,
  };
  quant_fp8(quant, 0, rows);
}

}  // namespace longcat_ops::cpu
