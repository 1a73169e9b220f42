// One level's large matrix products against sums in double precision: every way round, sizes on
// both sides of the tiles, blocks and slabs, the right factor packed, read in place and with few
// rows, one product and two of one left factor, teams of several threads.
// Memory of exact sizes, so that AddressSanitizer sees the first element past the end.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

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

enum class Right { kFewRows, kPacked, kInPlace };

struct Case {
  int64_t M, K, count;
  std::vector<int64_t> offsets, c_rows, bounds;  // of steps' rows and their groups, or none
  bool a_transposed;
  struct Product {
    int64_t N, k_block;
    bool b_transposed, add;
    PlainRows plain;
    Right right;
  };
  std::vector<Product> products;
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
  const bool pairs = sizeof(T) == 2 && s.products[0].right == Right::kFewRows;
  const auto any_gap = [&] { return pairs ? any_of({0, 2, 8}) : any_of({0, 1, 7}); };
  if (pairs) s.K += s.K % 2;
  const Matrix<T> a(s.M, s.K, s.a_transposed, any_gap());
  struct Operands {
    Matrix<T> b;
    Matrix<A> c, before;
    std::vector<T> packed;
  };
  std::vector<Operands> operands;
  std::vector<GemmArgs<T>> args;
  args.reserve(s.products.size());
  operands.reserve(s.products.size());
  for (Case::Product& p : s.products) {
    const Matrix<T> b(s.K, p.N, p.b_transposed, any_gap());
    const Matrix<A> c(s.c_rows.empty() ? s.M : s.c_rows.back(), p.N, false, any_gap());
    if (p.right == Right::kInPlace && !kernels.gemm_in_place(b.row, b.column, s.K, p.N)) {
      p.right = Right::kPacked;
    }
    const bool packs = p.right == Right::kPacked;
    operands.push_back({b, c, c, {}});
    Operands& o = operands.back();
    // Without terms still a pointer, which says that it is packed.
    const int64_t size = packs ? std::max<int64_t>(kernels.gemm_packed_size(s.K, p.N), 1) : 0;
    o.packed.assign(size, not_a_number<T>());
    // A product that reads what it should not, or leaves anything unwritten, shows a NaN.
    for (size_t i = 0; i * c.row < c.data.size() && !p.add; ++i) {
      for (int64_t j = 0; j < p.N; ++j) o.c.data[i * c.row + j] = not_a_number<A>();
    }
    for (int i = 0; i < s.count && packs; ++i) {
      kernels.gemm_pack(o.b.data.data(), b.row, b.column, s.K, p.N, o.packed.data(), i, s.count);
    }
    const GemmArgs<T>* const also = args.empty() ? nullptr : &args.back();
    args.push_back({.M = s.M,
                    .N = p.N,
                    .K = s.K,
                    .a = a.data.data(),
                    .a_row = a.row,
                    .a_column = a.column,
                    .b = o.b.data.data(),
                    .b_row = b.row,
                    .b_column = b.column,
                    .packed = packs ? o.packed.data() : nullptr,
                    .c = o.c.data.data(),
                    .ldc = c.row,
                    .add = p.add,
                    .k_block = p.k_block,
                    .offsets = s.offsets.data(),
                    .c_rows = s.c_rows.data(),
                    .steps = s.offsets.empty() ? 0 : int64_t(s.offsets.size()) - 1,
                    .groups = s.bounds.empty()
                                  ? RowGroups{}
                                  : RowGroups{s.bounds.data(), int64_t(s.bounds.size()) - 1},
                    .in_place = p.right == Right::kInPlace,
                    .plain = p.plain,
                    .also = also});
  }
  const bool deals = kernels.gemm_deals(args.back());
  // Calls f(i, its row in c, the thread that makes it or -1) for each row of a.
  const auto for_rows = [&](auto f) {
    if (!deals) {
      for (int64_t i = 0; i < s.M; ++i) f(i, i, -1);
      return;
    }
    const int64_t groups = int64_t(s.bounds.size()) - 1;
    for (size_t t = 0; t + 1 < s.offsets.size(); ++t) {
      const int64_t first = s.offsets[t] - s.offsets[0], rows = s.offsets[t + 1] - s.offsets[t];
      for (int64_t r = 0, thread = 0; r < rows; ++r) {
        while (r >= s.bounds[groups * (thread + 1) / s.count]) ++thread;
        f(first + r, s.c_rows[t] + r, thread);
      }
    }
  };
  for (int i = 0; i < s.count; ++i) {
    std::vector<T> scratch(kernels.gemm_scratch_size(), not_a_number<T>());
    const Matrix<A> others = operands.back().c;
    kernels.gemm(args.back(), scratch.data(), i, s.count);
    bool alone = true;
    for_rows([&](int64_t row, int64_t to, int64_t thread) {
      const int64_t at = to * others.row;
      const size_t bytes = s.products.back().N * sizeof(A);
      if (thread < 0 || thread == i) return;
      if (std::memcmp(&others.data[at], &operands.back().c.data[at], bytes) == 0) return;
      alone = false;
      std::printf("M %ld, threads %ld: thread %d wrote row %ld\n", long(s.M), long(s.count), i,
                  long(row));
    });
    if (!alone) return false;
  }
  for (size_t n = 0; n < s.products.size(); ++n) {
    const Case::Product& p = s.products[n];
    const auto& [b, c, before, packed] = operands[n];
    const auto fail = [&](const char* what, int64_t i, int64_t j) {
      std::printf(
          "%zu bytes, M %ld N %ld K %ld, threads %ld, k_block %ld%s%s%s, right %d, %zu/%zu: "
          "(%ld, %ld) %s\n",
          sizeof(T), long(s.M), long(p.N), long(s.K), long(s.count), long(p.k_block),
          s.a_transposed ? ", a transposed" : "", p.b_transposed ? ", b transposed" : "",
          p.add ? ", add" : "", int(p.right), n + 1, s.products.size(), long(i), long(j), what);
      return false;
    };
    bool right = true;
    for_rows([&](int64_t i, int64_t to, int64_t) {
      for (int64_t j = 0; right && j < p.N; ++j) {
        double exact = p.add ? double(before.data[to * c.row + j]) : 0, size = std::fabs(exact);
        for (int64_t k = 0; k < s.K; ++k) {
          const double term =
              exactly(a.data[i * a.row + k * a.column]) * exactly(b.data[k * b.row + j * b.column]);
          exact += term;
          size += std::fabs(term);
        }
        const double error = std::fabs(double(c.data[to * c.row + j]) - exact);
        // The bound for a sum of K terms in any order.
        if (!(error <= (s.K + 2) * double(std::numeric_limits<A>::epsilon()) * size)) {
          right = fail("is wrong", i, j);
        }
      }
    });
    if (!right) return false;
    // Between the rows nothing may change.
    for (int64_t i = 0; i + 1 < s.M; ++i) {
      for (int64_t j = p.N; j < c.row; ++j) {
        if (c.data[i * c.row + j] != before.data[i * c.row + j]) {
          return fail("is past the end of its row, and written", i, j);
        }
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
           .K = any_of({0, 1, 2, 7, 8, 9, 16, 33, 127, 129}),
           .count = any_of({1, 2, 3, 4}),
           .offsets = {},
           .c_rows = {},
           .bounds = {},
           .a_transposed = generator() % 2 == 0};
    // A few past the slab and the largest block of rows.
    if (i % 40 == 0) s.K = any_of({513, 1024, 1025});
    if (i % 40 == 20) s.M = any_of({513, 700});
    if (i % 4 == 1) {
      // Steps, of any number of rows or of one.
      const int64_t equal = any_of({0, 1, 9, 16, 48});
      s.offsets.push_back(any_of({0, 7}));
      for (int64_t t = any_of({1, 2, 3, 10}); t > 0; --t) {
        s.offsets.push_back(s.offsets.back() + (equal ? equal : any_of({1, 3, 8, 13, 20, 35})));
      }
      s.M = s.offsets.back() - s.offsets[0];
      int64_t most = 0, to = any_of({0, 2});
      for (size_t t = 0; t + 1 < s.offsets.size(); ++t) {
        const int64_t rows = s.offsets[t + 1] - s.offsets[t];
        s.c_rows.push_back(to);
        to += rows + any_of({0, 5});
        most = std::max(most, rows);
      }
      s.c_rows.push_back(to);
      s.bounds.push_back(0);
      for (int64_t group = any_of({0, 1, 2, 4}); group > 0; --group) {
        s.bounds.push_back(std::min(most, s.bounds.back() + any_of({0, 1, 7, 12})));
      }
      s.bounds.push_back(most);
    }
    for (int64_t n = any_of({1, 2}); n > 0; --n) {
      Case::Product p{.N = any_of({1, 3, 8, 16, 17, 32, 47, 48, 49, 96, 100, 128}),
                      .k_block = any_of({0, 0, 64}),
                      .b_transposed = generator() % 2 == 0,
                      .add = generator() % 2 == 0,
                      .plain = PlainRows(generator() % 3),
                      .right = generator() % 2 == 0 ? Right::kPacked : Right::kInPlace};
      // Many panels, and with as many terms as a slab has more than one group of them.
      if (i % 40 == 10 || i % 80 == 40) p.N = 300;
      s.products.push_back(p);
    }
    if (!s.a_transposed && s.products.size() == 1 && generator() % 2 == 0) {
      s.products[0].right = Right::kFewRows;
    }
#if defined(__AVX512BF16__)
    if (!check(SEQKERN_CAPABILITY::bf16_table(), s)) return 1;
#else
    const KernelTable& table = SEQKERN_CAPABILITY::table();
    if (!check(table.f32, s) || !check(table.f64, s)) return 1;
#endif
  }
  std::printf("%d products: ok\n", cases);
}
