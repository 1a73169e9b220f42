// Packed weights and the register tile that multiplies with them.
//
// A panel holds `vectors` SIMD vectors of columns for every k: [k][vectors][lanes], one stream of
// memory. For forward products a panel has all gates of its units, [gates][units], so that one tile
// ends up with these; for plain products it has adjacent columns. The last panel has no more
// vectors than its columns fill.
#pragma once

#include "cpu/parallel.h"
#include "cpu/vec.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

// Vectors of units in a panel, by gates per unit: a tile wants at least two vectors a row, or it
// loads more than it multiplies.
constexpr int unit_vectors(int gates) { return gates == 1 ? 2 : 1; }
constexpr int panel_vectors(int gates) { return gates * unit_vectors(gates); }
inline constexpr int kPlainVectors = panel_vectors(1);

// Rows of a tile at most. Accumulators, the panel's vectors and a broadcast share the registers:
// 32 with AVX-512, 16 else.
constexpr int max_rows(int vectors) {
  if (kVectorBytes == 64) return vectors == 4 ? 6 : 8;
  return vectors == 4 ? 3 : vectors == 3 ? 4 : 6;
}
inline constexpr int kMaxRows = 8;

// Few rows make few accumulators: several sets over k hide the latency of the FMA.
constexpr int k_sets(int rows, int vectors) {
  const int chains = rows * vectors;
  return chains > (kRegisters == 32 ? 12 : 7) ? 1 : chains >= 4 ? 2 : 4;
}

// What a tile multiplies of a kernel's type: a pair of bfloat16, whose elements follow one another
// in k. A matrix whose rows are contiguous in k is one of operands as it lies.
template <class T>
using Operand = std::conditional_t<std::is_same_v<T, Bf16>, uint32_t, T>;
template <class T>
inline constexpr int64_t kOperandTerms = sizeof(Operand<T>) / sizeof(T);

template <class T>
SEQKERN_INLINE const Operand<T>* operands(const T* p) {
  return reinterpret_cast<const Operand<T>*>(p);
}
template <class T>
SEQKERN_INLINE Operand<T>* operands(T* p) {
  return reinterpret_cast<Operand<T>*>(p);
}

// A pair may lie in what was written as single elements: read as bytes, so that the compiler orders
// the two.
template <class O>
SEQKERN_INLINE O read_operand(const O* p) {
  return *p;
}
template <>
SEQKERN_INLINE uint32_t read_operand(const uint32_t* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return pair;
}

// Lanes of a vector of sums, and of operands.
template <class T>
inline constexpr int kLanesOf = Simd<Arithmetic<T>>::kLanes;

// Instead of another panel's vectors (Ahead) a tile may bring its own, so many bytes before it
// reads them, into the first cache.
inline constexpr int kOwnAhead = -1;
inline constexpr int64_t kOwnAheadBytes = 4096;

// Sums a [Rows, k] x panel [k, Vectors*lanes] in registers, and brings k * Ahead vectors from
// `ahead` on into the second cache meanwhile. Element (r, i) of a lies at a[r * row_stride + i] or,
// Interleaved, at a[i * row_stride + r]; the panel's rows lie `width` elements apart. T is that of
// the sums, O that of the operands.
template <class T, int Rows, int Vectors, bool Interleaved = false, class O = T, int Ahead = 0>
SEQKERN_INLINE void accumulate(Vec<T> (&total)[Rows][Vectors], const O* a, int64_t row_stride,
                               const O* panel, int64_t k, const O* ahead = nullptr,
                               int64_t width = Vectors * Simd<T>::kLanes) {
  using V = Vec<T>;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kSets = k_sets(Rows, Vectors);
  constexpr bool kKeep = kSets * Rows * Vectors + Vectors + 1 <= kRegisters;
  V sum[kSets][Rows][Vectors] = {};
  const auto multiply = [&](int set, int64_t i) __attribute__((always_inline)) {
    const O* w = panel + i * width;
    Vec<O> weight[Vectors];
    if constexpr (Ahead == kOwnAhead) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        __builtin_prefetch(w + v * kLanes + kOwnAheadBytes / sizeof(O), 0, 3);
    }
#pragma GCC unroll 4
    for (int v = 0; v < Ahead; ++v) __builtin_prefetch(ahead + (i * Ahead + v) * kLanes, 0, 2);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      weight[v] = load<O>(w + v * kLanes);
      if constexpr (kKeep) keep(weight[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec<O> x =
          broadcast<O>(read_operand(a + (Interleaved ? i * row_stride + r : r * row_stride + i)));
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        if constexpr (std::is_same_v<O, T>) {
          sum[set][r][v] += x * weight[v];
        } else {
          sum[set][r][v] = multiply_add(x, weight[v], sum[set][r][v]);
        }
      }
    }
  };
  int64_t i = 0;
  for (; i + kSets <= k; i += kSets) {
#pragma GCC unroll 4
    for (int set = 0; set < kSets; ++set) multiply(set, i + set);
  }
  if constexpr (kSets > 1) {
    for (; i < k; ++i) multiply(0, i);
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      total[r][v] = sum[0][r][v];
#pragma GCC unroll 4
      for (int set = 1; set < kSets; ++set) total[r][v] += sum[set][r][v];
    }
  }
}

// out [Rows, Vectors*lanes] = a [Rows, k] (row stride lda) x panel, or += with add; ahead is read
// with Ahead alone. Rows of out and of the panel have Width vectors.
template <class T, int Rows, int Vectors, class O = T, int Ahead = 0, int Width = Vectors>
void product(T* out, const O* a, int64_t lda, const O* panel, int64_t k, bool add, const O* ahead) {
  Vec<T> total[Rows][Vectors];
  accumulate<T, Rows, Vectors, false, O, Ahead>(total, a, lda, panel, k, ahead,
                                                Width * Simd<T>::kLanes);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      T* const to = out + (r * Width + v) * Simd<T>::kLanes;
      store<T>(to, add ? total[r][v] + load<T>(to) : total[r][v]);
    }
  }
}

template <class T, class O = T>
using Product = void (*)(T*, const O*, int64_t, const O*, int64_t, bool, const O*);

// product<T, rows, Vectors, O, Ahead, Width> for rows in [1, max_rows(Vectors)]
template <class T, int Vectors, class O = T, int Ahead = 0, int Width = Vectors,
          int Rows = max_rows(Vectors)>
SEQKERN_INLINE Product<T, O> product_for(int rows) {
  if constexpr (Rows == 1) {
    return product<T, 1, Vectors, O, Ahead, Width>;
  } else {
    return rows == Rows ? product<T, Rows, Vectors, O, Ahead, Width>
                        : product_for<T, Vectors, O, Ahead, Width, Rows - 1>(rows);
  }
}

struct Range {
  int64_t begin, end;
};

SEQKERN_INLINE Range share(int64_t n, int index, int count) {
  return {n * index / count, n * (index + 1) / count};
}
SEQKERN_INLINE Range share(const RowGroups& groups, int64_t rows, int index, int count) {
  return {groups.begin(index, count, rows), groups.begin(index + 1, count, rows)};
}

SEQKERN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
SEQKERN_INLINE int64_t num_panels(int gates, int64_t units) {
  return ceil_div(units, unit_vectors(gates) * kLanesOf<T>);
}

template <class T>
SEQKERN_INLINE int64_t panel_size(int gates, int64_t k) {
  return k * panel_vectors(gates) * kLanesOf<T>;
}

// A panel as it is: the last one may have fewer units than the others.
struct Panel {
  int64_t units;    // which its gates' columns lie apart
  int64_t vectors;  // panel_vectors(gates) at most
};
template <class T>
SEQKERN_INLINE Panel panel_at(int gates, int64_t units, int64_t p) {
  const int64_t most = unit_vectors(gates) * kLanesOf<T>, left = units - p * most,
                n = left < most ? left : most;
  return {n, ceil_div(n * gates, kLanesOf<T>)};
}

// product<T, rows, vectors, O> for vectors in [1, Vectors] and rows in [1, max_rows(Vectors)]
template <class T, int Vectors, class O = T>
SEQKERN_INLINE Product<T, O> product_of_panel(int64_t vectors, int rows) {
  if constexpr (Vectors == 1) {
    return product_for<T, 1, O>(rows);
  } else {
    return vectors == Vectors ? product_for<T, Vectors, O>(rows)
                              : product_of_panel<T, Vectors - 1, O>(vectors, rows);
  }
}

// The operand of p and, where it has two terms and n is not 1, of what lies `stride` elements on.
template <class T>
SEQKERN_INLINE Operand<T> operand(const T* p, int64_t stride, int64_t n) {
  if constexpr (kOperandTerms<T> == 1) {
    return *p;
  } else {
    return uint32_t(p->bits) | (n > 1 ? uint32_t(p[stride].bits) << 16 : 0);
  }
}

// One vector of columns of a panel: lane j of to[i * width] is element i of row(j) [k], or zero
// past the last of `rows` rows.
template <class T, class Row>
SEQKERN_INLINE void pack_vector(Row&& row, int64_t rows, int64_t k, T* to, int64_t width) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t i = 0; i < k; i += kLanes) {
    Vec<T> square[kLanes];
    if (rows >= kLanes && k - i >= kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) square[j] = load<T>(row(j) + i);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store<T>(to + (i + j) * width, square[j]);
    } else {
      const int64_t n = k - i < kLanes ? k - i : kLanes;
      for (int j = 0; j < kLanes; ++j) square[j] = j < rows ? load<T>(row(j) + i, n) : Vec<T>{};
      transpose<T>(square);
      for (int64_t j = 0; j < n; ++j) store<T>(to + (i + j) * width, square[j]);
    }
  }
}

template <class T>
void pack_gates(const T* w, int64_t ldw, int gates, int64_t units, int64_t k, T* packed, int index,
                int count) {
  if constexpr (kOperandTerms<T> > 1) {
    pack_gates(operands(w), ldw / kOperandTerms<T>, gates, units, k / kOperandTerms<T>,
               operands(packed), index, count);
    return;
  } else {
    constexpr int kLanes = kLanesOf<T>;
    const Range mine = share(num_panels<T>(gates, units), index, count);
    for (int64_t p = mine.begin; p < mine.end; ++p) {
      const Panel panel = panel_at<T>(gates, units, p);
      const T* const first = w + p * unit_vectors(gates) * kLanes * ldw;
      T* const to = packed + p * panel_size<T>(gates, k);
      for (int64_t v = 0; v < panel.vectors; ++v) {
        const T* row[kLanes] = {};
        int64_t rows = 0;
        for (int64_t j = v * kLanes; rows < kLanes && j < gates * panel.units; ++j) {
          row[rows++] = first + (j / panel.units * units + j % panel.units) * ldw;
        }
        pack_vector([&](int j) { return row[j]; }, rows, k, to + v * kLanes,
                    panel.vectors * kLanes);
      }
    }
  }
}

template <class T>
void pack_rows(const T* w, int64_t ldw, int64_t k, int64_t first, int64_t n, T* packed, int index,
               int count) {
  constexpr int64_t kWidth = kPlainVectors * kLanesOf<T>;
  const Range mine = share(num_panels<T>(1, n), index, count);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    Operand<T>* to = operands(packed + p * panel_size<T>(1, k));
    const Panel panel = panel_at<T>(1, n, p);
    const int64_t columns = panel.units, width = panel.vectors * kLanesOf<T>;
    for (int64_t i = 0; i < k; i += kOperandTerms<T>, to += width) {
      const int64_t row = i + first < k ? i + first : i + first - k;
      const T* from = w + row * ldw + p * kWidth;
      for (int64_t j = 0; j < columns; ++j) to[j] = operand(from + j, ldw, kOperandTerms<T>);
      for (int64_t j = columns; j < width; ++j) to[j] = 0;
    }
  }
}

template <class T>
int64_t packed_gates_size(int gates, int64_t units, int64_t k) {
  return num_panels<T>(gates, units) * panel_size<T>(gates, k);
}

template <class T>
int64_t packed_rows_size(int64_t k, int64_t n) {
  return num_panels<T>(1, n) * panel_size<T>(1, k);
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
