// One time step, both products and the gates together: on the weights as they lie, or packed.
#pragma once

#include "cpu/dots.h"
#include "cpu/layer.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

// The gates' sums of a vector of units, for the batch rows [first, first + Rows): into
// x [kGates][Rows], and the last gate's recurrent part into q [Rows] where the cell wants it apart.
template <class C, class T, int Rows>
void step_products(const StepArgs<T>& a, int64_t unit, int64_t first, Vec<T>* x, Vec<T>* q) {
  for (int g = 0; g < C::kGates; ++g) {
    const Dots<T> from_x{a.w_ih + g * a.H * a.I, a.x + first * a.I, a.I, a.I},
        from_h{a.w_hh + g * a.H * a.H, a.h + first * a.H, a.H, a.H};
    if (a.from_zero) {
      dots<T, Rows>(x + g * Rows, unit, a.H, from_x);
      for (int b = 0; b < Rows; ++b) q[b] = Vec<T>{};
    } else if (C::kRecurrentBias && g == C::kGates - 1) {
      dots<T, Rows>(x + g * Rows, unit, a.H, from_x);
      dots<T, Rows>(q, unit, a.H, from_h);
    } else {
      dots<T, Rows>(x + g * Rows, unit, a.H, from_x, from_h);
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
    V saved[kMaxRows][S > 0 ? S : 1];
    const auto gates = [&](int64_t b) __attribute__((always_inline)) {
      V x[G], q[G];
      sums(b, x, q);
      for (int g = 0; g < G; ++g) {
        x[g] += b_ih[g];
        q[g] += b_hh[g];
      }
      C::template activate<Math<T>>(x, q, saved[b]);
    };
    const auto state = [&](int64_t b) __attribute__((always_inline)) {
      const int64_t row = first + b, at = row * H + unit;
      V c{}, h_prev{};
      if constexpr (C::kRecurrentBias) h_prev = lanes.get(a.h + at);
      if constexpr (C::kHasCellState) c = lanes.get(a.c + at);
      const V h = C::template combine<Math<T>>(saved[b], h_prev, c);
      lanes.put(a.output + row * a.ldo + unit, h);
      if constexpr (C::kHasCellState) lanes.put(a.c_n + at, c);
      if constexpr (S > 0) {
        if (a.gates) {
          for (int k = 0; k < S; ++k) {
            lanes.put(a.gates + row * (S * H) + k * H + unit, saved[b][k]);
          }
        }
      }
    };
    // Apart for the reason of forward_epilogue_of.
    for (int64_t b = 0; b < rows; ++b) {
      gates(b);
      if constexpr (!C::kHasCellState) state(b);
    }
    for (int64_t b = 0; C::kHasCellState && b < rows; ++b) state(b);
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

// The units of the vectors `mine` for one or two batch rows, which read weights more slowly than
// they multiply with them: by products that read each matrix, gate by gate, in long streams.
template <class C, class T, int Rows>
void streamed_step(const StepArgs<T>& a, Range mine) {
  constexpr int G = C::kGates, kLanes = Simd<T>::kLanes, kAtOnce = 16;
  const int64_t blocks = ceil_div(mine.end - mine.begin, kAtOnce);
  const auto ordered = [&](int64_t i, int64_t n) { return a.back ? n - 1 - i : i; };
  for (int64_t i = 0; i < blocks; ++i) {
    const Range block = share(mine.end - mine.begin, int(ordered(i, blocks)), int(blocks));
    const int64_t begin = mine.begin + block.begin, n = block.end - block.begin;
    // Of W_ih, then of W_hh.
    Vec<T> sums[2 * G][kAtOnce][Rows];
    const Dots<T> factors[2] = {{a.w_ih, a.x, a.I, a.I}, {a.w_hh, a.h, a.H, a.H}};
    const int64_t products = a.from_zero ? G : 2 * G;
    for (int64_t j = 0; j < products * n; ++j) {
      const int64_t item = ordered(j, products * n), product = item / n, vector = item % n;
      Dots<T> factor = factors[product / G];
      factor.w += product % G * a.H * factor.k;
      streamed_dots<T, Rows>(sums[product][vector], (begin + vector) * kLanes, a.H, factor);
    }
    for (int64_t j = 0; j < n; ++j) {
      finish_step<C>(a, (begin + j) * kLanes, 0, Rows,
                     [&](int64_t b, Vec<T>(&x)[G], Vec<T>(&q)[G]) __attribute__((always_inline)) {
                       for (int g = 0; g < G; ++g) {
                         x[g] = sums[g][j][b];
                         q[g] = a.from_zero ? Vec<T>{} : sums[G + g][j][b];
                       }
                     });
    }
  }
}

template <class C, class T>
using StepUnits = void (*)(const StepArgs<T>&, int64_t, int64_t);

// step_units<C, T, rows> for rows in [1, kDotRows]
template <class C, class T, int Rows = kDotRows>
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
  if constexpr (kVectorBytes == 64) {
    if (a.streams && a.B <= 2) {
      a.B == 1 ? streamed_step<C, T, 1>(a, mine) : streamed_step<C, T, 2>(a, mine);
      return;
    }
  }
  const int64_t tiles = ceil_div(a.B, kDotRows);
  for (int64_t j = mine.begin; j < mine.end; ++j) {
    const int64_t p = a.back ? mine.begin + mine.end - 1 - j : j;
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
  for (int64_t j = mine.begin; j < mine.end; ++j) {
    const int64_t p = a.back ? mine.begin + mine.end - 1 - j : j;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = a.B * i / tiles, rows = a.B * (i + 1) / tiles - first;
      const Panel shape = panel_at<T>(G, a.H, p);
      const Product<T> multiply = product_of_panel<T, kVectors>(shape.vectors, int(rows));
      multiply(from_x, a.x + first * a.I, a.I, a.w_ih + p * panel_size<T>(G, a.I), a.I, false,
               nullptr);
      multiply(from_h, a.h + first * a.H, a.H, a.w_hh + p * panel_size<T>(G, a.H), a.H, false,
               nullptr);
      for (int u = 0; u < unit_vectors(G); ++u) {
        const int64_t unit = (p * unit_vectors(G) + u) * kLanes;
        if (unit >= a.H) break;
        finish_step<C>(a, unit, first, rows,
                       [&](int64_t b, Vec<T>(&x)[G], Vec<T>(&q)[G]) __attribute__((always_inline)) {
                         for (int g = 0; g < G; ++g) {
                           const int64_t at = (b * shape.vectors + u) * kLanes + g * shape.units;
                           x[g] = load<T>(from_x + at);
                           q[g] = load<T>(from_h + at);
                         }
                       });
      }
    }
  }
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
