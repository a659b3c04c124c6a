// hrm::magic_norm(x, skip, eps) -> (rms_norm(x + skip), x + skip) over the last axis, in float32.
//
// MagicNorm (arXiv 2605.20613, section 3.2) as one op: a kernel for any ExecuTorch runtime that this
// file is compiled into and, with HRM_EDGE_TORCH, an op of torch with a meta kernel, so that it can
// be traced. x has skip's shape, or is one row that is added to every row of skip.
// magic_norm_op.py builds both for ExecuTorch's Python runtime.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace {

constexpr int64_t kLanes = 16; // sums kept apart, so that the loop becomes vector instructions
constexpr int64_t kGrain = 1 << 15; // values a thread is worth waking for

struct Rows {
  const float* x;
  int64_t x_stride; // 0 where x is one row
  const float* skip;
  float* normed;
  float* residual;
  int64_t width;
  float eps;

  void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const float* a = x + row * x_stride;
      const float* b = skip + row * width;
      float* sum = residual + row * width;
      float* out = normed + row * width;
      float squares[kLanes] = {};
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const float value = a[i + lane] + b[i + lane];
          sum[i + lane] = value;
          squares[lane] += value * value;
        }
      }
      for (; i < width; ++i) {
        sum[i] = a[i] + b[i];
        squares[0] += sum[i] * sum[i];
      }
      float total = 0;
      for (float square : squares) {
        total += square;
      }
      const float scale = 1 / std::sqrt(total / static_cast<float>(width) + eps);
      for (i = 0; i < width; ++i) {
        out[i] = sum[i] * scale;
      }
    }
  }
};

namespace et = ::executorch::runtime;
using EtTensor = ::executorch::aten::Tensor;

bool is_float(const EtTensor& tensor) {
  return tensor.scalar_type() == ::executorch::aten::ScalarType::Float && tensor.dim() > 0;
}

// Arguments: x, skip, eps, and the two results.
void magic_norm(et::KernelRuntimeContext& context, et::Span<et::EValue*> stack) {
  const EtTensor& x = stack[0]->toTensor();
  const EtTensor& skip = stack[1]->toTensor();
  EtTensor& normed = stack[3]->toTensor();
  EtTensor& residual = stack[4]->toTensor();
  ET_KERNEL_CHECK(
      context,
      is_float(x) && is_float(skip) && is_float(normed) && is_float(residual),
      InvalidArgument, );
  const int64_t width = skip.size(skip.dim() - 1);
  ET_KERNEL_CHECK(
      context,
      x.size(x.dim() - 1) == width && (x.numel() == width || x.numel() == skip.numel()),
      InvalidArgument, );
  ET_KERNEL_CHECK(
      context,
      et::resize_tensor(normed, skip.sizes()) == et::Error::Ok &&
          et::resize_tensor(residual, skip.sizes()) == et::Error::Ok,
      InvalidArgument, );
  if (skip.numel() == 0) {
    return;
  }
  const Rows rows{
      x.const_data_ptr<float>(),
      x.numel() == skip.numel() ? width : 0,
      skip.const_data_ptr<float>(),
      normed.mutable_data_ptr<float>(),
      residual.mutable_data_ptr<float>(),
      width,
      static_cast<float>(stack[2]->toDouble())};
  ::executorch::extension::parallel_for(
      0,
      skip.numel() / width,
      std::max<int64_t>(1, kGrain / width),
      [&](int64_t begin, int64_t end) { rows.run(begin, end); });
}

const et::Kernel kernels[] = {et::Kernel("hrm::magic_norm.out", magic_norm)};
[[maybe_unused]] const et::Error registered = et::register_kernels({kernels, 1});

} // namespace

#ifdef HRM_EDGE_TORCH
#include <ATen/ATen.h>
#include <torch/library.h>

namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using PairOfOuts = std::tuple<at::Tensor&, at::Tensor&>;

void check(const at::Tensor& x, const at::Tensor& skip) {
  TORCH_CHECK(
      x.scalar_type() == at::kFloat && skip.scalar_type() == at::kFloat,
      "hrm::magic_norm takes float32, not ", x.scalar_type(), " and ", skip.scalar_type());
  TORCH_CHECK(
      x.dim() > 0 && skip.dim() > 0 && x.sym_size(-1) == skip.sym_size(-1),
      "hrm::magic_norm: x is ", x.sym_sizes(), ", skip ", skip.sym_sizes());
}

Pair magic_norm_meta(const at::Tensor& x, const at::Tensor& skip, double) {
  check(x, skip);
  const auto sizes = skip.sym_sizes();
  return {at::empty_symint(sizes, skip.options()), at::empty_symint(sizes, skip.options())};
}

Pair magic_norm_cpu(const at::Tensor& x, const at::Tensor& skip, double eps) {
  auto [normed, residual] = magic_norm_meta(x, skip, eps);
  const int64_t width = skip.size(-1), values = skip.numel();
  TORCH_CHECK(
      x.numel() == width || x.numel() == values,
      "hrm::magic_norm: x is ", x.sizes(), ", expected ", skip.sizes(), " or one row of it");
  const at::Tensor a = x.contiguous(), b = skip.contiguous();
  const Rows rows{
      a.const_data_ptr<float>(),
      x.numel() == values ? width : 0,
      b.const_data_ptr<float>(),
      normed.mutable_data_ptr<float>(),
      residual.mutable_data_ptr<float>(),
      width,
      static_cast<float>(eps)};
  rows.run(0, values ? values / width : 0);
  return {normed, residual};
}

PairOfOuts magic_norm_out(
    const at::Tensor& x, const at::Tensor& skip, double eps, at::Tensor& normed, at::Tensor& residual) {
  static const auto functional = c10::Dispatcher::singleton()
                                     .findSchemaOrThrow("hrm::magic_norm", "")
                                     .typed<decltype(magic_norm_cpu)>();
  const auto [out, sum] = functional.call(x, skip, eps);
  normed.resize__symint(out.sym_sizes()).copy_(out);
  residual.resize__symint(sum.sym_sizes()).copy_(sum);
  return {normed, residual};
}

TORCH_LIBRARY(hrm, library) {
  library.def("magic_norm(Tensor x, Tensor skip, float eps) -> (Tensor normed, Tensor residual)");
  library.def(
      "magic_norm.out(Tensor x, Tensor skip, float eps, *, Tensor(a!) normed, Tensor(b!) residual)"
      " -> (Tensor(a!), Tensor(b!))");
  library.impl("magic_norm", torch::dispatch(c10::DispatchKey::CPU, magic_norm_cpu));
  library.impl("magic_norm", torch::dispatch(c10::DispatchKey::Meta, magic_norm_meta));
  library.impl("magic_norm.out", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, magic_norm_out));
}

} // namespace
#endif
