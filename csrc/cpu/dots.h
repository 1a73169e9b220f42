// Products with a few rows of batch on weights as they lie: each sum is a dot product of a row of
// weights. The weights are read once at the speed of the cache that holds them; packing them first
// would read them twice and write them once.
#pragma once

#include <utility>

#include "cpu/capability.h"
#include "cpu/tile.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

// Lanes of two vectors of blocks of `Width` lanes: of each block the half that `Upper` names.
template <class T, int Width, int Upper, int... I>
SEQKERN_INLINE Vec<T> half_blocks(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int kHalf = Width / 2;
  return __builtin_shufflevector(a, b, ((I / kHalf) * Width + Upper * kHalf + I % kHalf)...);
}

// a and b hold sums still to be made over blocks of Width lanes; so does the result, over blocks of
// half that width, first those of a, then those of b.
template <class T, int Width>
SEQKERN_INLINE Vec<T> fold(Vec<T> a, Vec<T> b) {
  using Lanes = std::make_integer_sequence<int, Simd<T>::kLanes>;
  return half_blocks<T, Width, 0>(a, b, Lanes{}) + half_blocks<T, Width, 1>(a, b, Lanes{});
}

// N vectors, each a row's sums over blocks of Width lanes, folded into one.
template <class T, int N, int Width>
SEQKERN_INLINE Vec<T> fold_all(const Vec<T>* v, int64_t stride) {
  if constexpr (N == 1) {
    return *v;
  } else {
    return fold<T, Width * 2 / N>(fold_all<T, N / 2, Width>(v, stride),
                                  fold_all<T, N / 2, Width>(v + N / 2 * stride, stride));
  }
}

// Weight rows and batch rows whose products are summed at once, in registers: 24 sums, 6 vectors of
// x and a weight with 32 of them; 12, 3 and 1 with 16; without FMA a product needs a register too.
template <class T>
inline constexpr int kDotWeights = Simd<T>::kLanes < 4 ? Simd<T>::kLanes : 4;
inline constexpr int kDotRows = kVectorBytes == 64 ? 6 : kVectorBytes == 32 ? 3 : 2;

// Rows up to which a product with weights of k terms takes less time so than with packed ones: each
// sum ends with additions within a vector, which more terms outweigh. Rows of weights that are no
// whole vectors do not start at one either, and each is read twice: half as many rows. On Zen 4 and
// 5 packing takes longer beside that, and longer yet of such rows.
template <class T>
constexpr int64_t dot_rows(int64_t k, PlainRows plain) {
  constexpr int64_t kLanes = kLanesOf<T>;
  if (kOperandTerms<T> > 1) return 0;
  const int64_t rows = k * kLanes /
                       (plain != PlainRows::Slow && kVectorBytes == 64 ? 64
                        : k % kLanes == 0                              ? 112
                                                                       : 224);
  return rows < 48 ? rows : 48;
}

// Whether the same holds of the recurrent products of so many steps, and rows in all. A packed
// matrix is a single stream and several of its rows are not: on Zen 5 each step costs as much as
// three rows more; on Zen 4 as eight, but for the rows of a single gate, which follow one another.
template <class T>
constexpr bool dot_steps(int gates, int64_t steps, int64_t rows, int64_t k, PlainRows plain) {
  const bool several = plain == PlainRows::Several;
  if (kOperandTerms<T> > 1 || kVectorBytes < 64 || plain == PlainRows::Slow ||
      (several && gates == 1)) {
    return rows <= dot_rows<T>(k, plain);
  }
  const int64_t cost = several ? 4 * steps + rows / 2 : 3 * steps + rows, limit = several ? 56 : 48,
                most = k * kLanesOf<T> * 7 / 256;
  return cost <= (most < limit ? most : limit);
}

// A right factor as it lies: rows w [n, k] (row stride k), each to be multiplied with a's rows
// [Rows, k] (row stride lda).
template <class T>
struct Dots {
  const T* w;
  const T* a;
  int64_t lda, k;
};

// sum[r][b] += the products, lane by lane, of w[r] [k] with row b of a [Rows, k].
template <class T, int Rows, int Weights>
SEQKERN_INLINE void multiply_lanes(Vec<T> (&sum)[Weights][Rows], const T* const (&w)[Weights],
                                   const T* a, int64_t lda, int64_t k) {
  using V = Vec<T>;
  using U = typename Simd<T>::U;
  constexpr int kLanes = Simd<T>::kLanes;
  const auto add = [&](auto&& part) __attribute__((always_inline)) {
    V x[Rows];
#pragma GCC unroll 6
    for (int b = 0; b < Rows; ++b) {
      x[b] = part(a + b * lda);
      keep(x[b]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < Weights; ++r) {
      V weight = part(w[r]);
      keep(weight);
#pragma GCC unroll 6
      for (int b = 0; b < Rows; ++b) sum[r][b] += weight * x[b];
    }
  };
  if (k < kLanes) {
    add([&](const T* p) __attribute__((always_inline)) { return load<T>(p, k); });
    return;
  }
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes <= k; i += kLanes) {
    // Several rows are short streams: the hardware starts too late on each.
#pragma GCC unroll 4
    for (int r = 0; r < Weights && Weights > 1; ++r) __builtin_prefetch(w[r] + i + Weights * k);
    add([&](const T* p) __attribute__((always_inline)) { return load<T>(p + i); });
  }
  if (i == k) return;
  // The rest lies at the end of the last whole vector; what was multiplied before becomes zero.
  U lane{};
  for (int n = 0; n < kLanes; ++n) lane[n] = n;
  const U mask = (U)(lane >= U{} + (typename Simd<T>::Bits)(kLanes - (k - i)));
  add([&](const T* p)
          __attribute__((always_inline)) { return (V)((U)load<T>(p + k - kLanes) & mask); });
}

// out [Rows]: the products of a vector of w's rows, from `first` on, with each row of a, summed
// over the factors. w has n rows; lanes past the last one repeat it.
template <class T, int Rows, int Weights = kDotWeights<T>, class... Factors>
SEQKERN_INLINE void dots(Vec<T>* out, int64_t first, int64_t n, const Factors&... factors) {
  constexpr int kLanes = Simd<T>::kLanes, kParts = kLanes / Weights;
  Vec<T> parts[Rows][kParts];
  for (int part = 0; part < kParts; ++part) {
    Vec<T> sum[Weights][Rows] = {};
    const auto multiply = [&](const Dots<T>& f) __attribute__((always_inline)) {
      const T* w[Weights];
      for (int r = 0; r < Weights; ++r) {
        const int64_t row = first + part * Weights + r;
        w[r] = f.w + (row < n ? row : n - 1) * f.k;
      }
      multiply_lanes<T, Rows, Weights>(sum, w, f.a, f.lda, f.k);
    };
    (multiply(factors), ...);
#pragma GCC unroll 6
    for (int b = 0; b < Rows; ++b) {
      parts[b][part] = fold_all<T, Weights, kLanes>(&sum[0][b], Rows);
    }
  }
#pragma GCC unroll 6
  for (int b = 0; b < Rows; ++b) {
    out[b] = fold_all<T, kParts, kLanes / Weights>(parts[b], 1);
  }
}

// The same with one row of weights after the other, where they are long enough.
template <class T, int Rows>
SEQKERN_INLINE void streamed_dots(Vec<T>* out, int64_t first, int64_t n, const Dots<T>& factor) {
  if (factor.k >= 4 * Simd<T>::kLanes) {
    dots<T, Rows, 1>(out, first, n, factor);
  } else {
    dots<T, Rows>(out, first, n, factor);
  }
}

// The same into memory: out [Rows, lanes], rows `stride` apart.
template <class T, int Rows>
void dot_vector(T* out, int64_t stride, int64_t first, int64_t n, const Dots<T>& factor) {
  Vec<T> sums[Rows];
  dots<T, Rows>(sums, first, n, factor);
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) store<T>(out + r * stride, sums[r]);
}

template <class T>
using DotVector = void (*)(T*, int64_t, int64_t, int64_t, const Dots<T>&);

// dot_vector<T, rows> for rows in [1, kDotRows]
template <class T, int Rows = kDotRows>
SEQKERN_INLINE DotVector<T> dot_vector_for(int64_t rows) {
  if constexpr (Rows == 1) {
    return dot_vector<T, 1>;
  } else {
    return rows == Rows ? dot_vector<T, Rows> : dot_vector_for<T, Rows - 1>(rows);
  }
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
