// One time step on the weights as they lie: each gate is a dot product of a row of W_ih with x plus
// one of a row of W_hh with h. For a few rows of batch the weights are read once at the speed of
// the cache that holds them; packing them first would read them twice and write them once.
#pragma once

#include <utility>

#include "cpu/layer.h"

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
inline constexpr int kStepWeights = Simd<T>::kLanes < 4 ? Simd<T>::kLanes : 4;
inline constexpr int kStepTile = kVectorBytes == 64 ? 6 : kVectorBytes == 32 ? 3 : 2;

// sum[r][b] += the products, lane by lane, of w[r] [k] with row b of a [Rows, k].
template <class T, int Rows>
SEQKERN_INLINE void multiply_lanes(Vec<T> (&sum)[kStepWeights<T>][Rows],
                                   const T* const (&w)[kStepWeights<T>], const T* a, int64_t k) {
  using V = Vec<T>;
  using U = typename Simd<T>::U;
  constexpr int kLanes = Simd<T>::kLanes;
  const auto add = [&](auto&& part) __attribute__((always_inline)) {
    V x[Rows];
#pragma GCC unroll 6
    for (int b = 0; b < Rows; ++b) x[b] = part(a + b * k);
#pragma GCC unroll 4
    for (int r = 0; r < kStepWeights<T>; ++r) {
      const V weight = part(w[r]);
#pragma GCC unroll 6
      for (int b = 0; b < Rows; ++b) sum[r][b] += weight * x[b];
    }
  };
  if (k < kLanes) {
    add([&](const T* p) __attribute__((always_inline)) { return load<T>(p, k); });
    return;
  }
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    // The rows are short streams: the hardware starts too late on each.
#pragma GCC unroll 4
    for (int r = 0; r < kStepWeights<T>; ++r) __builtin_prefetch(w[r] + i + kStepWeights<T> * k);
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

// The gates' sums of a vector of units, for the batch rows [first, first + Rows): into
// x [kGates][Rows], and the last gate's recurrent part into q [Rows] where the cell wants it apart.
template <class C, class T, int Rows>
void step_products(const StepArgs<T>& a, int64_t unit, int64_t first, Vec<T>* x, Vec<T>* q) {
  using V = Vec<T>;
  constexpr int kLanes = Simd<T>::kLanes, kWeights = kStepWeights<T>, kParts = kLanes / kWeights;
  const auto reduce = [&](V(&sum)[kWeights][Rows], V(&parts)[Rows][kParts], int part) {
#pragma GCC unroll 6
    for (int b = 0; b < Rows; ++b) {
      parts[b][part] = fold_all<T, kWeights, kLanes>(&sum[0][b], Rows);
    }
  };
  for (int g = 0; g < C::kGates; ++g) {
    const bool apart = C::kRecurrentBias && g == C::kGates - 1;
    V parts[Rows][kParts], recurrent[Rows][kParts];
    for (int part = 0; part < kParts; ++part) {
      const T *w_ih[kWeights], *w_hh[kWeights];
      for (int r = 0; r < kWeights; ++r) {
        // Lanes past the last unit repeat it; they are not stored.
        const int64_t own = unit + part * kWeights + r, row = g * a.H + (own < a.H ? own : a.H - 1);
        w_ih[r] = a.w_ih + row * a.I;
        w_hh[r] = a.w_hh + row * a.H;
      }
      V sum[kWeights][Rows] = {};
      multiply_lanes<T, Rows>(sum, w_ih, a.x + first * a.I, a.I);
      if (apart) {
        V apart_sum[kWeights][Rows] = {};
        multiply_lanes<T, Rows>(apart_sum, w_hh, a.h + first * a.H, a.H);
        reduce(apart_sum, recurrent, part);
      } else {
        multiply_lanes<T, Rows>(sum, w_hh, a.h + first * a.H, a.H);
      }
      reduce(sum, parts, part);
    }
    for (int b = 0; b < Rows; ++b) {
      x[g * Rows + b] = fold_all<T, kParts, kLanes / kWeights>(parts[b], 1);
      if (apart) q[b] = fold_all<T, kParts, kLanes / kWeights>(recurrent[b], 1);
    }
  }
}

// The cell's maths for a vector of units and `rows` batch rows from `first` on; sums(b, x, q) gives
// the products of the b-th of them, without biases.
template <class C, class T, class Sums>
SEQKERN_INLINE void finish_step(const StepArgs<T>& a, int64_t unit, int64_t first, int64_t rows,
                                Sums&& sums) {
  using V = Vec<T>;
  constexpr int G = C::kGates, S = C::kSaved, kLanes = Simd<T>::kLanes;
  const int64_t H = a.H;
  const auto finish = [&](auto lanes) __attribute__((always_inline)) {
    V b_ih[G]{}, b_hh[G]{};
    if (a.b_ih) {
      for (int g = 0; g < G; ++g) {
        b_ih[g] = lanes.get(a.b_ih + g * H + unit);
        b_hh[g] = lanes.get(a.b_hh + g * H + unit);
      }
    }
    for (int64_t b = 0; b < rows; ++b) {
      const int64_t row = first + b, at = row * H + unit;
      V x[G], q[G], saved[S > 0 ? S : 1], c{}, h_prev{};
      sums(b, x, q);
      for (int g = 0; g < G; ++g) {
        x[g] += b_ih[g];
        q[g] += b_hh[g];
      }
      if constexpr (C::kRecurrentBias) h_prev = lanes.get(a.h + at);
      if constexpr (C::kHasCellState) c = lanes.get(a.c + at);
      C::template activate<Math<T>>(x, q, saved);
      lanes.put(a.output + row * a.ldo + unit, C::template combine<Math<T>>(saved, h_prev, c));
      if constexpr (C::kHasCellState) lanes.put(a.c_n + at, c);
      if constexpr (S > 0) {
        if (a.gates) {
          for (int k = 0; k < S; ++k) lanes.put(a.gates + row * (S * H) + k * H + unit, saved[k]);
        }
      }
    }
  };
  if (H - unit >= kLanes) {
    finish(Access<T, true>{kLanes});
  } else {
    finish(Access<T, false>{H - unit});
  }
}

template <class C, class T, int Rows>
void step_units(const StepArgs<T>& a, int64_t unit, int64_t first) {
  constexpr int G = C::kGates;
  Vec<T> product[G * Rows], recurrent[Rows];
  step_products<C, T, Rows>(a, unit, first, product, recurrent);
  finish_step<C>(a, unit, first, Rows,
                 [&](int64_t b, Vec<T>(&x)[G], Vec<T>(&q)[G]) __attribute__((always_inline)) {
                   for (int g = 0; g < G; ++g) {
                     x[g] = product[g * Rows + b];
                     q[g] = C::kRecurrentBias && g == G - 1 ? recurrent[b] : Vec<T>{};
                   }
                 });
}

template <class C, class T>
using StepUnits = void (*)(const StepArgs<T>&, int64_t, int64_t);

// step_units<C, T, rows> for rows in [1, kStepTile]
template <class C, class T, int Rows = kStepTile>
SEQKERN_INLINE StepUnits<C, T> step_units_for(int64_t rows) {
  if constexpr (Rows == 1) {
    return step_units<C, T, 1>;
  } else {
    return rows == Rows ? step_units<C, T, Rows> : step_units_for<C, T, Rows - 1>(rows);
  }
}

template <class C, class T>
void step(const StepArgs<T>& a, int index, int count) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Range mine = share(ceil_div(a.H, kLanes), index, count);
  const int64_t tiles = ceil_div(a.B, kStepTile);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = a.B * i / tiles, rows = a.B * (i + 1) / tiles - first;
      step_units_for<C, T>(rows)(a, p * kLanes, first);
    }
  }
}

// Rows up to which `step` takes less time than the large products, which pack the weights: with 16
// registers a tile has too few sums for the weights that it loads.
inline constexpr int64_t kStepRows = kVectorBytes == 64 ? 64 : 8;

// The same on packed weights (pack_gates): the register tile, for any number of rows.
template <class C, class T>
void packed_step(const StepArgs<T>& a, int index, int count) {
  constexpr int G = C::kGates, kVectors = panel_vectors(G), kLanes = Simd<T>::kLanes;
  alignas(64) T from_x[kMaxRows * kVectors * kLanes], from_h[kMaxRows * kVectors * kLanes];
  const Range mine = share(num_panels<T>(G, a.H), index, count);
  const int64_t tiles = ceil_div(a.B, max_rows(kVectors));
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = a.B * i / tiles, rows = a.B * (i + 1) / tiles - first;
      const Product<T> multiply = product_for<T, kVectors>(int(rows));
      multiply(from_x, a.x + first * a.I, a.I, a.w_ih + p * panel_size<T>(G, a.I), a.I);
      multiply(from_h, a.h + first * a.H, a.H, a.w_hh + p * panel_size<T>(G, a.H), a.H);
      for (int u = 0; u < unit_vectors(G); ++u) {
        const int64_t unit = (p * unit_vectors(G) + u) * kLanes;
        if (unit >= a.H) break;
        finish_step<C>(a, unit, first, rows,
                       [&](int64_t b, Vec<T>(&x)[G], Vec<T>(&q)[G]) __attribute__((always_inline)) {
                         for (int g = 0; g < G; ++g) {
                           const int64_t at = (b * kVectors + u * G + g) * kLanes;
                           x[g] = load<T>(from_x + at);
                           q[g] = load<T>(from_h + at);
                         }
                       });
      }
    }
  }
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
