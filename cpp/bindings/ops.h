// The torch-facing functions behind the schemas of torch_ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace longcat_ops::bindings {

using torch::stable::Tensor;

void per_token_group_quant_fp8_cpu(const Tensor& x, int64_t group_size, const Tensor& q, const Tensor& s);
void per_block_quant_fp8_cpu(const Tensor& w, const Tensor& q, const Tensor& s);
void dequant_fp8_cpu(const Tensor& q, const Tensor& s, int64_t group_size, const Tensor& out);
void rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, const Tensor& y);

}  // namespace longcat_ops::bindings
