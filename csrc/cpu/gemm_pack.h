// The factors of the large matrix products (cpu/gemm.h): which columns of the right one belong to
// which panel, and the packing of both.
#pragma once

#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

inline constexpr int kGemmVectors = kVectorBytes == 64 ? 3 : 2;
inline constexpr int kGemmRows = max_rows(kGemmVectors);
// Of a's packed block and of a group of panels, in the second cache.
inline constexpr int64_t kGemmBlockBytes = 256 << 10, kGemmGroupBytes = 512 << 10;

template <class T>
constexpr int64_t kGemmColumns = kGemmVectors * kLanesOf<T>;
// A block of k, in operands, as all of k is below that is not called terms.
template <class T>
constexpr int64_t kGemmDepth = (24 << 10) / int64_t(kGemmColumns<T> * sizeof(Operand<T>));
// Terms of a tile's rows that the first cache holds beside what streams through it.
inline constexpr int64_t kGemmMaxSlab = 640;

// Which of n columns belong to which panel. A last panel of one vector would take longer than its
// products, as each is one load: the one before it gives it a second one.
template <class T>
struct GemmPanels {
  static constexpr int64_t kLanes = kLanesOf<T>;
  int64_t n, count;
  bool gives;

  SEQKERN_INLINE explicit GemmPanels(int64_t n)
      : n(n),
        count(ceil_div(n, kGemmColumns<T>)),
        gives(kGemmVectors > 2 && count > 1 && n - (count - 1) * kGemmColumns<T> <= kLanes) {}
  // Of panel p, or the end of the last one.
  SEQKERN_INLINE int64_t begin(int64_t p) const {
    if (p == count) return n;
    return p * kGemmColumns<T> - (gives && p == count - 1 ? kLanes : 0);
  }
  SEQKERN_INLINE int64_t end(int64_t p) const { return begin(p + 1); }
  SEQKERN_INLINE Range columns(Range panels) const {
    return {begin(panels.begin), begin(panels.end)};
  }
};

// So many columns in whole vectors.
template <class T>
SEQKERN_INLINE int64_t gemm_width(int64_t columns) {
  return ceil_div(columns, kLanesOf<T>) * kLanesOf<T>;
}

template <class T>
SEQKERN_INLINE int64_t gemm_operands(int64_t terms) {
  return ceil_div(terms, kOperandTerms<T>);
}

template <class T>
int64_t gemm_packed_size(int64_t k, int64_t n) {
  return gemm_operands<T>(k) * kOperandTerms<T> * gemm_width<T>(n);
}

template <class T>
int64_t gemm_scratch_size() {
  static_assert(kGemmMaxSlab * kGemmColumns<T> <= kGemmBlockBytes / int64_t(sizeof(Operand<T>)));
  return kGemmBlockBytes / sizeof(T);
}

// n columns of a row, in whole vectors.
template <class T>
SEQKERN_INLINE void pack_columns(const T* from, int64_t n, T* to) {
  for_vectors<T>(0, n, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    store<T>(to + j, lanes.get(from + j));
  });
}

// Rows [0, k) of some columns of b.
template <class T>
void gemm_pack_panel(const T* b, int64_t row_stride, int64_t column_stride, int64_t k, Range of,
                     T* packed) {
  constexpr int kLanes = kLanesOf<T>;
  constexpr int64_t kTerms = kOperandTerms<T>;
  Operand<T>* panel = operands(packed);
  const int64_t columns = of.end - of.begin, width = gemm_width<T>(columns);
  const T* from = b + of.begin * column_stride;
  if (row_stride == 1 && column_stride != 1 && k % kTerms == 0 && column_stride % kTerms == 0) {
    for (int64_t j = 0; j < width; j += kLanes) {
      const auto column = [&](int64_t n) { return operands(from + (j + n) * column_stride); };
      pack_vector(column, columns - j, k / kTerms, panel + j, width);
    }
    return;
  }
  for (int64_t i = 0; i < k; i += kTerms, from += kTerms * row_stride, panel += width) {
    if constexpr (kTerms == 1) {
      if (column_stride == 1) {
        pack_columns(from, columns, panel);
        continue;
      }
    } else if (column_stride == 1 && k - i > 1) {
      for (int64_t j = 0; j < columns; ++j) panel[j] = operand(from + j, row_stride, kTerms);
      for (int64_t j = columns; j < width; ++j) panel[j] = 0;
      continue;
    }
    for (int64_t j = 0; j < width; ++j) {
      panel[j] = j < columns ? operand(from + j * column_stride, row_stride, k - i) : 0;
    }
  }
}

template <class T>
void gemm_pack(const T* b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n,
               T* packed, int index, int count) {
  const GemmPanels<T> panels(n);
  if constexpr (kOperandTerms<T> == 1) {
    if (column_stride == 1) {
      // Row by row, as they lie in memory.
      const Range mine = share(k, index, count);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        for (int64_t p = 0; p < panels.count; ++p) {
          const int64_t first = panels.begin(p), columns = panels.end(p) - first;
          pack_columns(b + i * row_stride + first, columns,
                       packed + first * k + i * gemm_width<T>(columns));
        }
      }
      return;
    }
  }
  const Range mine = share(panels.count, index, count);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    gemm_pack_panel(b, row_stride, column_stride, k, panels.columns({p, p + 1}),
                    packed + panels.begin(p) * gemm_operands<T>(k) * kOperandTerms<T>);
  }
}

// Terms of a product that is made row by row of c, with all of b in the first cache.
inline constexpr int64_t kOuterTerms = 8;

// Very few rows; or rows of up to 1 KiB, as what a chunk's products read of them then stays in the
// second cache, and in few pages. No vector may begin in one of those and end in the next.
template <class T>
bool gemm_in_place(int64_t row_stride, int64_t column_stride, int64_t k, int64_t n) {
  if (kOperandTerms<T> > 1 || column_stride != 1) return false;
  return k <= kOuterTerms || (n % kLanesOf<T> == 0 && row_stride * int64_t(sizeof(T)) <= 1024);
}

// `rows` rows of a, of so many terms, as [tile][k][row], tiles of kGemmRows.
template <class T>
SEQKERN_INLINE void interleave(const T* a, int64_t row_stride, int64_t column_stride, int64_t rows,
                               int64_t terms, Operand<T>* to) {
  constexpr int64_t kTile = kGemmRows * sizeof(T), kTerms = kOperandTerms<T>;
  const int64_t k = gemm_operands<T>(terms);
  int64_t i = 0;
  if constexpr (kTerms > 1) {
    for (; i < rows; i += kGemmRows) {
      const int64_t n = rows - i < kGemmRows ? rows - i : kGemmRows;
      const T* from = a + i * row_stride;
      Operand<T>* tile = to + i * k;
      for (int64_t j = 0; j < terms; j += kTerms, from += kTerms * column_stride) {
        if (row_stride == 1 && n == kGemmRows && terms - j > 1) {
          for (int64_t r = 0; r < kGemmRows; ++r)
            tile[r] = operand(from + r, column_stride, kTerms);
        } else {
          for (int64_t r = 0; r < n; ++r) {
            tile[r] = operand(from + r * row_stride, column_stride, terms - j);
          }
        }
        tile += kGemmRows;
      }
    }
    return;
  } else {
    // A vector of rows is two tiles', whose first halves of two k make one vector of the first
    // tile: whole cache lines are read and written. Two such pairs at once, as lines lie far apart.
    if constexpr (Simd<T>::kLanes == 2 * kGemmRows) {
      constexpr int64_t kPairs = 2, kLanes = Simd<T>::kLanes;
      for (; row_stride == 1 && i + kPairs * kLanes <= rows; i += kPairs * kLanes) {
        const T* from = a + i;
        int64_t j = 0;
        for (; j + 2 <= k; j += 2, from += 2 * column_stride) {
#pragma GCC unroll 2
          for (int64_t pair = 0; pair < kPairs; ++pair) {
            const Vec<T> one = load<T>(from + pair * kLanes),
                         two = load<T>(from + column_stride + pair * kLanes);
            T* const tile = to + (i + pair * kLanes) * k + j * kGemmRows;
            store<T>(tile, first_halves<T>(one, two));
            store<T>(tile + kGemmRows * k, last_halves<T>(one, two));
          }
        }
        for (int64_t tile = 0; j < k && tile < 2 * kPairs; ++tile) {
          std::memcpy(to + (i + tile * kGemmRows) * k + j * kGemmRows, from + tile * kGemmRows,
                      kTile);
        }
      }
    } else if (row_stride == 1) {
      // Two tiles at once: they share the cache lines, which lie far apart and do not stay.
      for (; i + 2 * kGemmRows <= rows; i += 2 * kGemmRows) {
        const T* from = a + i;
        T *first = to + i * k, *second = first + kGemmRows * k;
        for (int64_t j = 0; j < k; ++j, from += column_stride) {
          std::memcpy(first + j * kGemmRows, from, kTile);
          std::memcpy(second + j * kGemmRows, from + kGemmRows, kTile);
        }
      }
    }
    for (; i < rows; i += kGemmRows) {
      const int64_t n = rows - i < kGemmRows ? rows - i : kGemmRows;
      const T* from = a + i * row_stride;
      T* tile = to + i * k;
      for (int64_t j = 0; j < k; ++j, from += column_stride, tile += kGemmRows) {
        if (row_stride == 1 && n == kGemmRows) {
          std::memcpy(tile, from, kTile);
        } else {
          for (int64_t r = 0; r < n; ++r) tile[r] = from[r * row_stride];
        }
      }
    }
  }
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
