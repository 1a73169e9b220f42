// The large matrix products of a layer on the CPU, on tensors of any strides.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"

namespace seqkern::ops {

// A right factor, packed by the first product with it.
struct Factor {
  at::Tensor b;  // [K, N]
  at::Tensor packed;
};

template <typename T>
class Products {
 public:
  Products(const cpu::LayerKernels<T>& kernels, const at::TensorOptions& options)
      : kernels_(kernels), options_(options) {}

  // c [M, N] = a b or, with add, c += a b; c's rows are contiguous, a and b [.., ..] have rows or
  // columns that are. Sums have at most `terms` terms each before they are added to c (0: any).
  void operator()(const at::Tensor& c, const at::Tensor& a, Factor& factor, bool add = false) {
    multiply(c, a, factor.b, factor.packed, add, 0);
  }
  void operator()(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool add = false,
                  int64_t terms = 0) {
    at::Tensor packed;
    if (!add && b.size(1) > 1 && b.stride(0) == 1 && c.size(0) <= kFewRows &&
        c.size(0) < b.size(0)) {
      // To pack b would take longer than the product, so a^T is packed instead.
      const at::Tensor transposed = at::empty({c.size(1), c.size(0)}, options_);
      multiply(transposed, b.t(), a.t(), packed, false, terms);
      at::Tensor(c).copy_(transposed.t());
      return;
    }
    multiply(c, a, b, packed, add, terms);
  }

 private:
  static constexpr int64_t kFewRows = 64;

  void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, at::Tensor& packed,
                bool add, int64_t terms) {
    const int64_t M = c.size(0), N = c.size(1), K = a.size(1);
    if (M == 0 || N == 0) return;
    const int threads = cpu::product_threads(M, N, K, at::get_num_threads());
    const int64_t scratch_size = kernels_.gemm_scratch_size();
    if (!scratch_.defined() || scratch_.numel() < threads * scratch_size) {
      scratch_ = at::empty({threads * scratch_size}, options_);
    }
    const bool pack = !packed.defined();
    if (pack) packed = at::empty({kernels_.gemm_packed_size(K, N)}, options_);
    const cpu::GemmArgs<T> args{.M = M,
                                .N = N,
                                .K = K,
                                .a = a.const_data_ptr<T>(),
                                .a_row = a.stride(0),
                                .a_column = a.stride(1),
                                .b = packed.const_data_ptr<T>(),
                                .c = c.mutable_data_ptr<T>(),
                                .ldc = c.stride(0),
                                .add = add,
                                .k_block = terms};
    cpu::Barrier barrier;
    cpu::parallel(threads, [&](int index, int count) {
      if (pack) {
        kernels_.gemm_pack(b.const_data_ptr<T>(), b.stride(0), b.stride(1), K, N,
                           packed.mutable_data_ptr<T>(), index, count);
        barrier.wait(count);
      }
      kernels_.gemm(args, scratch_.mutable_data_ptr<T>() + index * scratch_size, index, count);
    });
  }

  const cpu::LayerKernels<T>& kernels_;
  at::TensorOptions options_;
  at::Tensor scratch_;
};

}  // namespace seqkern::ops
