// The threads that make a layer on the CPU, and the large matrix products that they share.
#pragma once

#include <ATen/Parallel.h>

#include <initializer_list>
#include <iterator>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"

namespace seqkern::ops {

// Element (i, j) lies at data[i * row_stride + j * column_stride].
template <typename T>
struct Matrix {
  T* data;
  int64_t rows, columns, row_stride, column_stride = 1;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
  Matrix from_row(int64_t first, int64_t n) const {
    return {data + first * row_stride, n, columns, row_stride, column_stride};
  }
  Matrix from_column(int64_t first, int64_t n) const {
    return {data + first * column_stride, rows, n, row_stride, column_stride};
  }
  operator Matrix<const T>() const { return {data, rows, columns, row_stride, column_stride}; }
};

// The right factor of a product.
template <typename T>
struct Factor {
  Matrix<const T> b;
  T* packed;  // room for it, or null where it is read as it lies: by products of few rows alone,
  bool in_place = false;  // or by any
  bool stale = true;

  // Left factors of no more rows than this do not pay for a packed copy that goes through memory.
  static constexpr int64_t kFewRows = 384;
};

// The time steps whose rows a left factor has, where they split these; else none.
struct StepRows {
  const int64_t* offsets = nullptr;  // [count + 1]
  const int64_t* to = nullptr;       // where each step's begin in the product
  int64_t count = 0;
  cpu::RowGroups groups = {};
};

// Work goes in phases, which wait() parts. A team in a region is one of its threads, and each calls
// the same methods; the only thread of a team without region starts one for every phase.
template <typename T>
class Team {
 public:
  Team(const cpu::LayerKernels<T>& kernels, T* scratch) : Team(kernels, scratch, 0, 1, nullptr) {}
  Team(const cpu::LayerKernels<T>& kernels, T* scratch, int index, int count, cpu::Barrier* barrier)
      : kernels_(kernels), scratch_(scratch), index_(index), count_(count), barrier_(barrier) {}

  // f(index, count) by every thread; without a region by `threads` of them.
  template <typename F>
  void all(int threads, F&& f) const {
    if (barrier_) {
      f(index_, count_);
    } else {
      cpu::parallel(threads, [&](int index, int count) { f(index, count); });
    }
  }

  // f(begin, end) over shares of [0, n).
  template <typename F>
  void each(int64_t n, F&& f) const {
    all(1, [&](int index, int count) { f(n * index / count, n * (index + 1) / count); });
  }

  bool in_region() const { return barrier_ != nullptr; }

  void wait() const {
    if (barrier_) barrier_->wait(index_, count_);
  }

  // Packs a right factor: before a wait, and then the products with it.
  void pack(Factor<T>& factor) const {
    if (!factor.packed) return;
    if (barrier_) {
      pack_share(factor, index_, count_);
    } else {
      factor.stale = true;
    }
  }

  // c = a b or, with add, c += a b; c's rows are contiguous, a and b have rows or columns that are.
  // Sums have at most `terms` terms each before they are added to c (0: any). Products into one c
  // need no wait between them.
  struct Product {
    Matrix<cpu::Arithmetic<T>> c;
    Factor<T>* b;
    bool add = false;
    int64_t terms = 0;
  };

  void multiply(Matrix<cpu::Arithmetic<T>> c, Matrix<const T> a, Factor<T>& b, bool add = false,
                const StepRows& steps = {}) const {
    if (c.rows > 0 && c.columns > 0) multiply(a, {{c, &b, add}}, steps);
  }

  // Whether, in a product, each thread makes just the rows of its groups.
  bool deals(const Product& product, Matrix<const T> a, const StepRows& steps) const {
    return barrier_ && kernels_.gemm_deals(arguments(product, a, steps));
  }

  // Up to two products of one left factor; of two the right factors are packed or in place. With
  // steps a thread finds in its cache what it made itself, where the product deals their rows.
  void multiply(Matrix<const T> a, std::initializer_list<Product> products,
                const StepRows& steps = {}) const {
    cpu::GemmArgs<T> args[2];
    TORCH_INTERNAL_ASSERT(products.size() <= std::size(args));
    const cpu::GemmArgs<T>* first = nullptr;
    int64_t columns = 0;
    for (size_t i = 0; i < products.size(); ++i) {
      args[i] = arguments(products.begin()[i], a, steps);
      args[i].also = first;
      first = &args[i];
      columns += args[i].N;
    }
    const auto product = [&](int index, int count) {
      kernels_.gemm(*first, scratch_ + index * kernels_.gemm_scratch_size(), index, count);
    };
    if (barrier_) {
      product(index_, count_);
      return;
    }
    const int threads = cpu::product_threads(a.rows, columns, a.columns, at::get_num_threads());
    const auto each_stale = [&](auto&& f) {
      for (const Product& product : products) {
        if (product.b->packed && product.b->stale) f(*product.b);
      }
    };
    bool pack = false;
    each_stale([&](Factor<T>&) { pack = true; });
    cpu::Barrier packed;
    cpu::parallel(threads, [&](int index, int count) {
      if (pack) {
        each_stale([&](Factor<T>& factor) { pack_share(factor, index, count); });
        packed.wait(index, count);
      }
      product(index, count);
    });
    each_stale([](Factor<T>& factor) { factor.stale = false; });
  }

 private:
  cpu::GemmArgs<T> arguments(const Product& product, const Matrix<const T>& a,
                             const StepRows& steps) const {
    const Factor<T>& factor = *product.b;
    const Matrix<const T>& b = factor.b;
    return {.M = a.rows,
            .N = b.columns,
            .K = a.columns,
            .a = a.data,
            .a_row = a.row_stride,
            .a_column = a.column_stride,
            .b = b.data,
            .b_row = b.row_stride,
            .b_column = b.column_stride,
            .packed = factor.packed,
            .c = product.c.data,
            .ldc = product.c.row_stride,
            .add = product.add,
            .k_block = product.terms,
            .offsets = steps.offsets,
            .c_rows = steps.to,
            .steps = steps.count,
            .groups = barrier_ ? steps.groups : cpu::RowGroups{},
            .in_place = factor.in_place,
            .plain = cpu::plain_rows()};
  }

  void pack_share(const Factor<T>& factor, int index, int count) const {
    const Matrix<const T>& b = factor.b;
    kernels_.gemm_pack(b.data, b.row_stride, b.column_stride, b.rows, b.columns, factor.packed,
                       index, count);
  }

  const cpu::LayerKernels<T>& kernels_;
  T* scratch_;  // [threads, gemm_scratch_size()]
  int index_, count_;
  cpu::Barrier* barrier_;
};

}  // namespace seqkern::ops
