// One level's large matrix products against sums in double precision: every way round, sizes on
// both sides of the tiles, blocks and slabs, packed and with few rows, teams of several threads.
// Memory of exact sizes, so that AddressSanitizer sees the first element past the end.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"

using namespace seqkern::cpu;

namespace {

std::mt19937 generator(1);

int64_t any_of(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

template <class T>
T rounded(double x) {
  return T(x);
}
template <>
Bf16 rounded<Bf16>(double x) {
  // Few enough bits that cutting the others off loses nothing.
  const float few = float(std::round(x * 128) / 128);
  uint32_t bits;
  std::memcpy(&bits, &few, sizeof bits);
  return {uint16_t(bits >> 16)};
}

template <class T>
double exactly(T x) {
  return x;
}
double exactly(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T not_a_number() {
  return std::numeric_limits<T>::quiet_NaN();
}
template <>
Bf16 not_a_number<Bf16>() {
  return {0x7fc0};
}

struct Case {
  int64_t M, N, K, count, k_block;
  bool a_transposed, b_transposed, add, packed;
};

// Rows x columns with `gap` elements between rows, or between columns where transposed.
template <class T>
struct Matrix {
  int64_t row, column;
  std::vector<T> data;
  Matrix(int64_t rows, int64_t columns, bool transposed, int64_t gap) {
    row = transposed ? 1 : columns + gap;
    column = transposed ? rows + gap : 1;
    const bool empty = rows == 0 || columns == 0;
    data.resize(empty ? 0 : (rows - 1) * row + (columns - 1) * column + 1);
    std::uniform_real_distribution<double> values(-1, 1);
    for (T& x : data) x = rounded<T>(values(generator));
  }
};

template <class T>
bool check(const LayerKernels<T>& kernels, Case s) {
  using A = Arithmetic<T>;
  // Few rows of bfloat16 are read as pairs where they lie.
  const bool pairs = sizeof(T) == 2 && !s.packed;
  const int64_t gap = pairs ? any_of({0, 2, 8}) : any_of({0, 1, 7});
  if (pairs) s.K += s.K % 2;
  const Matrix<T> a(s.M, s.K, s.a_transposed, gap), b(s.K, s.N, s.b_transposed, gap);
  Matrix<A> c(s.M, s.N, false, gap);
  const Matrix<A> before = c;
  // A product that reads what it should not, or leaves anything unwritten, shows a NaN.
  const A nan = not_a_number<A>();
  if (!s.add) {
    for (int64_t i = 0; i < s.M; ++i) {
      for (int64_t j = 0; j < s.N; ++j) c.data[i * c.row + j] = nan;
    }
  }
  std::vector<T> packed(s.packed ? kernels.gemm_packed_size(s.K, s.N) : 0, not_a_number<T>());
  const GemmArgs<T> args{
      s.M,           s.N,           s.K,   a.data.data(), a.row,
      a.column,      b.data.data(), b.row, b.column,      s.packed ? packed.data() : nullptr,
      c.data.data(), c.row,         s.add, s.k_block};
  if (s.packed) {
    for (int i = 0; i < s.count; ++i) {
      kernels.gemm_pack(b.data.data(), b.row, b.column, s.K, s.N, packed.data(), i, s.count);
    }
  }
  for (int i = 0; i < s.count; ++i) {
    std::vector<T> scratch(kernels.gemm_scratch_size(), not_a_number<T>());
    kernels.gemm(args, scratch.data(), i, s.count);
  }
  for (int64_t i = 0; i < s.M; ++i) {
    for (int64_t j = 0; j < s.N; ++j) {
      double exact = s.add ? double(before.data[i * c.row + j]) : 0, size = std::fabs(exact);
      for (int64_t k = 0; k < s.K; ++k) {
        const double term =
            exactly(a.data[i * a.row + k * a.column]) * exactly(b.data[k * b.row + j * b.column]);
        exact += term;
        size += std::fabs(term);
      }
      const double error = std::fabs(double(c.data[i * c.row + j]) - exact);
      // The bound for a sum of K terms in any order.
      if (!(error <= (s.K + 2) * double(std::numeric_limits<A>::epsilon()) * size)) {
        std::printf(
            "%zu bytes, M %ld N %ld K %ld, threads %ld, k_block %ld%s%s%s%s: (%ld, %ld) is "
            "%g instead of %g\n",
            sizeof(T), long(s.M), long(s.N), long(s.K), long(s.count), long(s.k_block),
            s.a_transposed ? ", a transposed" : "", s.b_transposed ? ", b transposed" : "",
            s.add ? ", add" : "", s.packed ? ", packed" : "", long(i), long(j),
            double(c.data[i * c.row + j]), exact);
        return false;
      }
    }
  }
  // Between the rows nothing may change.
  for (int64_t i = 0; i + 1 < s.M; ++i) {
    for (int64_t j = s.N; j < c.row; ++j) {
      if (c.data[i * c.row + j] != before.data[i * c.row + j]) {
        std::printf("M %ld N %ld K %ld: wrote past the end of row %ld\n", long(s.M), long(s.N),
                    long(s.K), long(i));
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 400;
  for (int i = 0; i < cases; ++i) {
    Case s{.M = any_of({1, 2, 5, 8, 9, 23, 64, 65, 130}),
           .N = any_of({1, 3, 8, 16, 17, 47, 48, 49, 100}),
           .K = any_of({0, 1, 2, 7, 16, 33, 127, 129}),
           .count = any_of({1, 2, 3, 4}),
           .k_block = any_of({0, 0, 64}),
           .a_transposed = generator() % 2 == 0,
           .b_transposed = generator() % 2 == 0,
           .add = generator() % 2 == 0,
           .packed = generator() % 2 == 0};
    // A few past the slab, the largest block of rows, and rows 4 KiB apart.
    if (i % 40 == 0) s.K = any_of({513, 1024, 1025});
    if (i % 40 == 20) s.M = any_of({513, 700});
    if (i % 40 == 10) s.N = 300;
    if (s.a_transposed) s.packed = true;
#if defined(__AVX512BF16__)
    if (!check(SEQKERN_CAPABILITY::bf16_table(), s)) return 1;
#else
    const KernelTable& table = SEQKERN_CAPABILITY::table();
    if (!check(table.f32, s) || !check(table.f64, s)) return 1;
#endif
  }
  std::printf("%d products: ok\n", cases);
}
