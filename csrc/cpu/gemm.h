// The large matrix products: c = a b or c += a b, row-major c, a and b either way round.
//
// b is packed into panels of kGemmVectors SIMD vectors of columns (the last ones may have fewer),
// [k][columns], which one team shares. a is read where it lies when its rows are contiguous; else
// each thread packs blocks of it, [tile][k][row]. The loops, from outside: slabs of k, so that a
// tile's rows of a stay in the first cache; blocks of packed rows; groups of panels, which stay in
// the second cache; tiles; panels, which stream from there; and blocks of k, which keep a sum's
// rounding error down and are added to c while it is in the first cache.
#pragma once

#include "cpu/dots.h"
#include "cpu/gemm_pack.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/tile.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

// c [Rows, columns] = or += a x panel, whose rows are `width` apart
template <class T, int Rows, int Vectors, bool Interleaved, class O>
void gemm_tile(T* c, int64_t ldc, int64_t columns, const O* a, int64_t lda, const O* panel,
               int64_t width, int64_t k, bool add) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> total[Rows][Vectors];
  accumulate<T, Rows, Vectors, Interleaved, O>(total, a, lda, panel, k, nullptr, width);
  if (columns == Vectors * kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        T* to = c + r * ldc + v * kLanes;
        store<T>(to, add ? load<T>(to) + total[r][v] : total[r][v]);
      }
    }
    return;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      const int64_t left = columns - v * kLanes, n = left < kLanes ? left : kLanes;
      T* to = c + r * ldc + v * kLanes;
      store<T>(to, add ? load<T>(to, n) + total[r][v] : total[r][v], n);
    }
  }
}

template <class T>
using GemmTile = void (*)(Arithmetic<T>*, int64_t, int64_t, const Operand<T>*, int64_t,
                          const Operand<T>*, int64_t, int64_t, bool);

template <class T, bool Interleaved, int Vectors, int Rows = kGemmRows>
SEQKERN_INLINE GemmTile<T> gemm_tile_of_rows(int64_t rows) {
  using A = Arithmetic<T>;
  using O = Operand<T>;
  if constexpr (Rows == 1) {
    return gemm_tile<A, 1, Vectors, Interleaved, O>;
  } else {
    return rows == Rows ? gemm_tile<A, Rows, Vectors, Interleaved, O>
                        : gemm_tile_of_rows<T, Interleaved, Vectors, Rows - 1>(rows);
  }
}

template <class T, bool Interleaved, int Vectors = kGemmVectors>
SEQKERN_INLINE GemmTile<T> gemm_tile_for(int64_t rows, int64_t vectors) {
  if constexpr (Vectors == 1) {
    return gemm_tile_of_rows<T, Interleaved, 1>(rows);
  } else {
    return vectors == Vectors ? gemm_tile_of_rows<T, Interleaved, Vectors>(rows)
                              : gemm_tile_for<T, Interleaved, Vectors - 1>(rows, vectors);
  }
}

// How a team shares c: rows in `down` parts, panels in `across`.
struct GemmGrid {
  int down, across;
};
inline GemmGrid gemm_grid(int64_t tiles, int64_t panels, int count) {
  GemmGrid best{count, 1};
  int64_t least = -1;
  for (int across = 1; across <= count; ++across) {
    if (count % across) continue;
    const int down = count / across;
    const int64_t busiest = ceil_div(tiles, down) * ceil_div(panels, across);
    if (least < 0 || busiest < least) {
      least = busiest;
      best = {down, across};
    }
  }
  return best;
}

// A thread's rows: so many from `begin` on, or those of its groups in each of some steps.
struct GemmPart {
  int64_t begin, rows;
  const int64_t *offsets = nullptr, *c_rows = nullptr;
  int64_t steps = 0;
  RowGroups groups = {};
  int index = 0, count = 1;
};

// Calls f(i, to, n, next) for each tile of n rows: a's from the i-th on, to c's. The tile that
// follows begins with a's row `next`, which is i where none does.
template <class F>
SEQKERN_INLINE void for_row_tiles(const GemmPart& part, F&& f) {
  if (!part.groups) {
    for (int64_t i = 0; i < part.rows; i += kGemmRows) {
      const int64_t left = part.rows - i;
      const bool last = left <= kGemmRows;
      f(i, i, last ? left : int64_t(kGemmRows), last ? i : i + kGemmRows);
    }
    return;
  }
  const auto rows_of = [&](int64_t t) {
    return share(part.groups, part.offsets[t + 1] - part.offsets[t], part.index, part.count);
  };
  for (int64_t t = 0; t < part.steps; ++t) {
    const int64_t first = part.offsets[t] - part.offsets[0];
    const Range mine = rows_of(t);
    const int64_t rows = mine.end - mine.begin, tiles = ceil_div(rows, kGemmRows);
    for (int64_t i = 0; i < tiles; ++i) {
      const Range tile = share(rows, int(i), int(tiles));
      const int64_t row = mine.begin + tile.begin;
      int64_t next = first + row;
      if (i + 1 < tiles) {
        next = first + mine.begin + tile.end;
      } else if (t + 1 < part.steps) {
        next = part.offsets[t + 1] - part.offsets[0] + rows_of(t + 1).begin;
      }
      f(first + row, part.c_rows[t] + row, tile.end - tile.begin, next);
    }
  }
}

// Rows of a [rows, k] into the second cache. Past the end of a there is nothing to fetch.
template <class O>
SEQKERN_INLINE void fetch_rows(const O* a, int64_t lda, int64_t rows, int64_t k) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; i += 64 / sizeof(O)) __builtin_prefetch(a + r * lda + i, 0, 2);
  }
}

// Some k of a thread's part of c: tiles of rows x a group of panels, which stays in the cache. a
// begins at the terms, c at the first row. While a tile of rows that lie in memory is multiplied,
// the next one is fetched: the processor's own prefetching begins anew with each row.
template <class T, bool Interleaved>
void gemm_panels(const GemmArgs<T>& g, const GemmPart& part, Range panels, Range terms,
                 const Operand<T>* a, Arithmetic<T>* c) {
  constexpr int64_t kTerms = kOperandTerms<T>,
                    kGroup = kGemmGroupBytes / (kGemmColumns<T> * sizeof(Operand<T>));
  const int64_t k_block = g.k_block / kTerms;
  const int64_t deepest = k_block > 0 && k_block < kGemmDepth<T> ? k_block : kGemmDepth<T>;
  // At least 1: without terms there is still a zero to write.
  const int64_t K = terms.end - terms.begin, least = K > 0 ? K : 1;
  // Equal blocks: a short last one would read and write c for little.
  const int64_t depth = ceil_div(least, ceil_div(least, deepest)),
                group = kGroup > least ? kGroup / least : 1;
  const int64_t row_step = Interleaved ? K : g.a_row / kTerms,
                term_step = Interleaved ? kGemmRows : 1,
                column_step = g.in_place ? 1 : gemm_operands<T>(g.K);
  const GemmPanels<T> all(g.N);
  for (int64_t first = panels.begin; first < panels.end; first += group) {
    const int64_t last = panels.end - first < group ? panels.end : first + group;
    for_row_tiles(part, [&](int64_t i, int64_t to, int64_t n, int64_t next) {
      const GemmTile<T> whole = gemm_tile_for<T, Interleaved>(n, kGemmVectors);
      for (int64_t p = first; p < last; ++p) {
        const int64_t column = all.begin(p), columns = all.end(p) - column,
                      packed_width = gemm_width<T>(columns),
                      width = g.in_place ? g.b_row : packed_width;
        const GemmTile<T> tile = packed_width == kGemmColumns<T>
                                     ? whole
                                     : gemm_tile_for<T, Interleaved>(n, packed_width / kLanesOf<T>);
        const Operand<T>* const panel =
            operands(g.in_place ? g.b : g.packed) + column * column_step + terms.begin * width;
        if (!Interleaved && first == panels.begin) {
          const Range rows = share(n, int(p - first), int(last - first));
          fetch_rows(a + (next + rows.begin) * row_step, row_step, rows.end - rows.begin, K);
        }
        for (int64_t k0 = 0; k0 < least; k0 += depth) {
          const int64_t k = K - k0 < depth ? K - k0 : depth;
          tile(c + to * g.ldc + column, g.ldc, columns, a + i * row_step + k0 * term_step,
               Interleaved ? kGemmRows : row_step, panel + k0 * width, width, k,
               g.add || terms.begin + k0 > 0);
        }
      }
    });
  }
}

template <class T, bool Interleaved>
void gemm_slabs(const GemmArgs<T>& g, const GemmPart& part, int across, int count,
                Operand<T>* scratch) {
  constexpr int64_t kTerms = kOperandTerms<T>, kBlock = kGemmBlockBytes / sizeof(Operand<T>);
  const int64_t K = gemm_operands<T>(g.K), slabs = K > 0 ? ceil_div(K, kGemmMaxSlab) : 1;
  for (int i = 0; i < slabs; ++i) {
    const Range terms = share(K, i, int(slabs));
    const int64_t depth = terms.end > terms.begin ? terms.end - terms.begin : 1,
                  block = Interleaved ? kBlock / depth / kGemmRows * kGemmRows : part.rows;
    for (int64_t done = 0; done < part.rows; done += block) {
      const int64_t row = part.begin + done;
      const T* const a = g.a + row * g.a_row + terms.begin * kTerms * g.a_column;
      GemmPart rows = part;
      if constexpr (Interleaved) {
        rows.rows = part.rows - done < block ? part.rows - done : block;
        const int64_t last = terms.end * kTerms < g.K ? terms.end * kTerms : g.K;
        interleave(a, g.a_row, g.a_column, rows.rows, last - terms.begin * kTerms, scratch);
      }
      for (const GemmArgs<T>* product = &g; product; product = product->also) {
        const Range panels = share(GemmPanels<T>(product->N).count, across, count);
        gemm_panels<T, Interleaved>(*product, rows, panels, terms,
                                    Interleaved ? scratch : operands(a),
                                    product->c + row * product->ldc);
      }
    }
  }
}

// For fewer rows still, where b's columns are contiguous: dot products with them.
template <class T>
void gemm_dots(const GemmArgs<T>& g, Range tiles, Range panels) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t begin = tiles.begin * kGemmRows,
                end = tiles.end * kGemmRows < g.M ? tiles.end * kGemmRows : g.M,
                parts = ceil_div(end - begin, kDotRows);
  const Range of = GemmPanels<T>(g.N).columns(panels);
  alignas(64) T out[kDotRows * kLanes];
  for (int64_t column = of.begin; column < of.end; column += kLanes) {
    const int64_t columns = of.end - column < kLanes ? of.end - column : kLanes;
    for (int64_t i = 0; i < parts; ++i) {
      const Range part = share(end - begin, int(i), int(parts));
      const int64_t first = begin + part.begin, rows = part.end - part.begin;
      dot_vector_for<T>(rows)(out, kLanes, column, g.N, {g.b, g.a + first * g.a_row, g.a_row, g.K});
      for (int64_t r = 0; r < rows; ++r) {
        T* to = g.c + (first + r) * g.ldc + column;
        const Vec<T> sum = load<T>(out + r * kLanes);
        store<T>(to, g.add ? load<T>(to, columns) + sum : sum, columns);
      }
    }
  }
}

// For very few rows, where b's rows are contiguous: several of them at once, from end to end, are
// added to c's, which stay in the first cache. A panel's part of each is too short a stream.
template <class T, int Rows>
void add_rows(const GemmArgs<T>& g, Range columns, Range terms, T* sums, int64_t ld) {
  using V = Vec<T>;
  constexpr int kTerms = Rows <= 2 ? 8 : 4;
  for (int64_t k = terms.begin; k < terms.end; k += kTerms) {
    const int64_t n = terms.end - k < kTerms ? terms.end - k : kTerms;
    V x[kTerms][Rows];
    const T* b[kTerms];
    for (int t = 0; t < kTerms; ++t) {
      // Past the last term: zeros, with any row.
      b[t] = g.b + (t < n ? k + t : k) * g.b_row;
      for (int r = 0; r < Rows; ++r) {
        x[t][r] = t < n ? broadcast<T>(g.a[r * g.a_row + k + t]) : V{};
      }
    }
    for_vectors<T>(columns.begin, columns.end,
                   [&](int64_t j, auto lanes) __attribute__((always_inline)) {
                     V sum[Rows];
#pragma GCC unroll 4
                     for (int r = 0; r < Rows; ++r)
                       sum[r] = load<T>(sums + r * ld + j - columns.begin);
#pragma GCC unroll 8
                     for (int t = 0; t < kTerms; ++t) {
                       V w = lanes.get(b[t] + j);
                       keep(w);
#pragma GCC unroll 4
                       for (int r = 0; r < Rows; ++r) sum[r] += x[t][r] * w;
                     }
#pragma GCC unroll 4
                     for (int r = 0; r < Rows; ++r)
                       store<T>(sums + r * ld + j - columns.begin, sum[r]);
                   });
  }
}
inline constexpr int64_t kAddedRows = 4;

template <class T>
void gemm_added_rows(const GemmArgs<T>& g, Range panels, T* scratch) {
  constexpr int64_t kLanes = Simd<T>::kLanes, kColumns = 2048;
  const Range of = GemmPanels<T>(g.N).columns(panels);
  const int64_t most = g.k_block > 0 && g.k_block < kGemmMaxSlab ? g.k_block : kGemmMaxSlab,
                slabs = g.K > 0 ? ceil_div(g.K, most) : 1;
  for (int64_t first = of.begin; first < of.end; first += kColumns) {
    const Range columns{first, of.end - first < kColumns ? of.end : first + kColumns};
    const int64_t n = columns.end - columns.begin, ld = ceil_div(n, kLanes) * kLanes;
    for (int64_t i = 0; i < slabs; ++i) {
      const Range terms = share(g.K, int(i), int(slabs));
      for (int64_t j = 0; j < g.M * ld; ++j) scratch[j] = 0;
      switch (g.M) {
        case 1:
          add_rows<T, 1>(g, columns, terms, scratch, ld);
          break;
        case 2:
          add_rows<T, 2>(g, columns, terms, scratch, ld);
          break;
        case 3:
          add_rows<T, 3>(g, columns, terms, scratch, ld);
          break;
        default:
          add_rows<T, 4>(g, columns, terms, scratch, ld);
      }
      const bool add = g.add || i > 0;
      for (int64_t r = 0; r < g.M; ++r) {
        T* const to = g.c + r * g.ldc + columns.begin;
        const T* const sums = scratch + r * ld;
        for (int64_t j = 0; j < n; ++j) to[j] = add ? to[j] + sums[j] : sums[j];
      }
    }
  }
}

// For very few terms: whole rows of c, several at a time, as they are little more than written.
template <class T>
void gemm_outer(const GemmArgs<T>& g, Range tiles, Range panels) {
  constexpr int kRows = 4;
  const int64_t end = tiles.end * kGemmRows < g.M ? tiles.end * kGemmRows : g.M;
  const Range of = GemmPanels<T>(g.N).columns(panels);
  for (int64_t i = tiles.begin * kGemmRows; i < end; i += kRows) {
    const int64_t rows = end - i < kRows ? end - i : kRows;
    Vec<T> x[kOuterTerms][kRows] = {};
    for (int64_t k = 0; k < g.K; ++k) {
      for (int64_t r = 0; r < rows; ++r) {
        x[k][r] = broadcast<T>(g.a[(i + r) * g.a_row + k * g.a_column]);
      }
    }
    for_vectors<T>(of.begin, of.end, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
      Vec<T> sum[kRows] = {};
      for (int64_t k = 0; k < g.K; ++k) {
        Vec<T> w = lanes.get(g.b + k * g.b_row + j);
        keep(w);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r] += x[k][r] * w;
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        T* const to = g.c + (i + r) * g.ldc + j;
        if (r < rows) lanes.put(to, g.add ? lanes.get(to) + sum[r] : sum[r]);
      }
    });
  }
}

// For few rows: packs no more of b than one slab of a panel, just before it is read.
template <class T>
void gemm_few_rows(const GemmArgs<T>& g, Range tiles, Range panels, T* scratch) {
  const int64_t begin = tiles.begin * kGemmRows,
                end = tiles.end * kGemmRows < g.M ? tiles.end * kGemmRows : g.M;
  constexpr int64_t kTerms = kOperandTerms<T>;
  const int64_t most = g.k_block > 0 && g.k_block < kGemmMaxSlab ? g.k_block : kGemmMaxSlab,
                slabs = g.K > 0 ? ceil_div(g.K, most) : 1,
                slab = ceil_div(g.K, slabs * kTerms) * kTerms;
  const GemmPanels<T> all(g.N);
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const Range of = all.columns({p, p + 1});
    const int64_t columns = of.end - of.begin, width = gemm_width<T>(columns);
    for (int64_t i = 0; i < slabs; ++i) {
      const int64_t k0 = i * slab, k = g.K - k0 < slab ? g.K - k0 : slab;
      gemm_pack_panel(g.b + k0 * g.b_row, g.b_row, g.b_column, k, of, scratch);
      for (int64_t row = begin, n; row < end; row += n) {
        n = end - row < kGemmRows ? end - row : kGemmRows;
        gemm_tile_for<T, false>(n, width / kLanesOf<T>)(
            g.c + row * g.ldc + of.begin, g.ldc, columns, operands(g.a + row * g.a_row + k0),
            g.a_row / kTerms, operands(scratch), width, gemm_operands<T>(k), g.add || k0 > 0);
      }
    }
  }
}

template <class T>
bool gemm_reads_rows(const GemmArgs<T>& g) {
  return g.a_column == 1 && g.K % kOperandTerms<T> == 0 && g.a_row % kOperandTerms<T> == 0;
}

template <class T>
bool gemm_deals(const GemmArgs<T>& g) {
  return g.groups && g.packed && !g.also && gemm_reads_rows(g);
}

template <class T>
void gemm(const GemmArgs<T>& g, T* scratch, int index, int count) {
  int64_t all_panels = 0;
  for (const GemmArgs<T>* product = &g; product; product = product->also) {
    all_panels += GemmPanels<T>(product->N).count;
  }
  if (gemm_deals(g)) {
    gemm_slabs<T, false>(g, {0, g.M, g.offsets, g.c_rows, g.steps, g.groups, index, count}, 0, 1,
                         operands(scratch));
    return;
  }
  const int64_t tiles = ceil_div(g.M, kGemmRows);
  const GemmGrid grid = gemm_grid(tiles, all_panels, count);
  const Range down = share(tiles, index / grid.across, grid.down);
  const int across = index % grid.across;
  if (!g.packed && !g.in_place) {
    const Range panels = share(all_panels, across, grid.across);
    if constexpr (kOperandTerms<T> == 1) {
      if (g.M <= dot_rows<T>(g.K, g.plain) && g.b_row == 1 && g.b_column == g.K) {
        gemm_dots(g, down, panels);
        return;
      }
      if (g.M <= kAddedRows && g.b_column == 1) {
        if (down.begin < down.end) gemm_added_rows(g, panels, scratch);
        return;
      }
    }
    gemm_few_rows(g, down, panels, scratch);
    return;
  }
  const int64_t begin = down.begin * kGemmRows,
                end = down.end * kGemmRows < g.M ? down.end * kGemmRows : g.M;
  const auto slabs = [&](const GemmArgs<T>& products) {
    const auto make = gemm_reads_rows(g) ? gemm_slabs<T, false> : gemm_slabs<T, true>;
    make(products, {begin, end - begin}, across, grid.across, operands(scratch));
  };
  if (kOperandTerms<T> > 1 || g.K > kOuterTerms) {
    slabs(g);
    return;
  }
  // So few rows are in place whatever their ends, which vectors of slabs would run over.
  for (const GemmArgs<T>* product = &g; product; product = product->also) {
    if constexpr (kOperandTerms<T> == 1) {
      if (product->in_place) {
        const Range panels = share(GemmPanels<T>(product->N).count, across, grid.across);
        gemm_outer(*product, down, panels);
        continue;
      }
    }
    GemmArgs<T> alone = *product;
    alone.also = nullptr;
    slabs(alone);
  }
}

// to += the sums of a's columns, so many vectors of them: several, as one would wait for its own
// additions. Sums of 8 and of 64 on the way keep the error of long ones down.
template <class T, int Vectors, class Lanes>
SEQKERN_INLINE void add_column_vectors(const T* a, int64_t lda, int64_t rows, Arithmetic<T>* to,
                                       Lanes lanes) {
  using V = Vec<Arithmetic<T>>;
  constexpr int kLanes = kLanesOf<T>;
  const auto each = [](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) f(v);
  };
  V total[Vectors]{};
  for (int64_t i = 0; i < rows;) {
    V block[Vectors]{};
    for (const int64_t end = i + 64 < rows ? i + 64 : rows; i < end;) {
      V sum[Vectors]{};
      for (const int64_t last = i + 8 < end ? i + 8 : end; i < last; ++i) {
        each([&](int v) { sum[v] += lanes.get(a + i * lda + v * kLanes); });
      }
      each([&](int v) { block[v] += sum[v]; });
    }
    each([&](int v) { total[v] += block[v]; });
  }
  each([&](int v) { lanes.put(to + v * kLanes, lanes.get(to + v * kLanes) + total[v]); });
}

// to [n] += the sums of a's columns, a [rows, n].
template <class T>
void add_columns(const T* a, int64_t lda, int64_t rows, int64_t n, Arithmetic<T>* to) {
  using A = Arithmetic<T>;
  constexpr int kLanes = kLanesOf<T>, kVectors = 4;
  int64_t j = 0;
  for (; j + kVectors * kLanes <= n; j += kVectors * kLanes) {
    add_column_vectors<T, kVectors>(a + j, lda, rows, to + j, Access<A, true>{kLanes});
  }
  for_vectors<A>(j, n, [&](int64_t i, auto lanes) {
    add_column_vectors<T, 1>(a + i, lda, rows, to + i, lanes);
  });
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
