// The large matrix products of a layer on the CPU, on tensors of any strides.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"

namespace seqkern::ops {

// A right factor, packed by the first product with it that has rows enough.
struct Factor {
  at::Tensor b;  // [K, N]
  at::Tensor packed;
};

template <typename T>
class Products {
 public:
  Products(const cpu::LayerKernels<T>& kernels, const at::TensorOptions& options)
      : kernels_(kernels), options_(options) {}

  // c [M, N] = a b or, with add, c += a b; c's rows are contiguous, a and b have rows or columns
  // that are. Sums have at most `terms` terms each before they are added to c (0: any).
  void operator()(const at::Tensor& c, const at::Tensor& a, Factor& factor, bool add = false,
                  int64_t terms = 0) {
    const at::Tensor& b = factor.b;
    const int64_t M = c.size(0), N = c.size(1), K = a.size(1);
    if (M == 0 || N == 0) return;
    const int threads = cpu::product_threads(M, N, K, at::get_num_threads());
    const int64_t scratch_size = kernels_.gemm_scratch_size();
    if (!scratch_.defined() || scratch_.numel() < threads * scratch_size) {
      scratch_ = at::empty({threads * scratch_size}, options_);
    }
    const bool pack = !factor.packed.defined() && (M > kFewRows || (K > 1 && a.stride(1) != 1));
    if (pack) factor.packed = at::empty({kernels_.gemm_packed_size(K, N)}, options_);
    T* const packed = factor.packed.defined() ? factor.packed.mutable_data_ptr<T>() : nullptr;
    const cpu::GemmArgs<T> args{.M = M,
                                .N = N,
                                .K = K,
                                .a = a.const_data_ptr<T>(),
                                .a_row = a.stride(0),
                                .a_column = a.stride(1),
                                .b = b.const_data_ptr<T>(),
                                .b_row = b.stride(0),
                                .b_column = b.stride(1),
                                .packed = packed,
                                .c = c.mutable_data_ptr<T>(),
                                .ldc = c.stride(0),
                                .add = add,
                                .k_block = terms};
    T* const scratch = scratch_.mutable_data_ptr<T>();
    cpu::Barrier barrier;
    cpu::parallel(threads, [&](int index, int count) {
      if (pack) {
        kernels_.gemm_pack(args.b, args.b_row, args.b_column, K, N, packed, index, count);
        barrier.wait(count);
      }
      kernels_.gemm(args, scratch + index * scratch_size, index, count);
    });
  }
  void operator()(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool add = false,
                  int64_t terms = 0) {
    Factor once{b, {}};
    (*this)(c, a, once, add, terms);
  }

 private:
  // Fewer rows than these do not pay for a packed copy of b that goes through memory.
  static constexpr int64_t kFewRows = 64;

  const cpu::LayerKernels<T>& kernels_;
  at::TensorOptions options_;
  at::Tensor scratch_;
};

}  // namespace seqkern::ops
