// What every kernel does once it has a unit's products: reads the rest, calls the cell, writes.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/kernels.h"
#include "cuda/types.cuh"

namespace seqkern::cuda {

template <class T>
SEQKERN_DEVICE const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
SEQKERN_DEVICE T* as(void* p) {
  return static_cast<T*>(p);
}

SEQKERN_DEVICE bool on_16_bytes(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// An array needs one element even where a cell saves nothing.
template <class C>
inline constexpr int kSavedValues = C::kSaved > 0 ? C::kSaved : 1;

// The functions below take a row of the sequence as `row`, the first of a step's or a tile's, which
// all threads have in common, and what comes after it in the type of `r`: an int where a thread's
// rows are few, as 64-bit products of each thread's own cost more than the cell.

// One (row, unit) of a forward step. row + r: in the sequence; q: the recurrent product; c: the
// running cell state. Saves what is asked for and returns h, which the caller stores where the next
// step looks for it.
template <class C, class T, class R>
SEQKERN_DEVICE Math<T> forward_unit(const Forward& a, int64_t row, R r, R unit,
                                    const Math<T> (&x)[C::kGates], const Math<T> (&q)[C::kGates],
                                    Math<T> h_prev, Math<T>& c) {
  using A = Math<T>;
  constexpr int S = C::kSaved;
  const R H = static_cast<R>(a.H);
  A saved[kSavedValues<C>];
  C::template activate<Functions<A>>(x, q, saved);
  const A h = C::template combine<Functions<A>>(saved, h_prev, c);
  if constexpr (C::kHasCellState) {
    if (a.cells) (as<A>(a.cells) + row * a.H)[r * H + unit] = c;
  }
  if constexpr (S > 0) {
    if (a.gates) {
      T* gates = as<T>(a.gates) + row * (S * a.H) + (r * (S * H) + unit);
#pragma unroll
      for (int k = 0; k < S; ++k) gates[k * H] = from_float<T>(saved[k]);
    }
  }
  return h;
}

// The running cell state of a (row, unit), for the next chunk and as a result.
template <class T>
SEQKERN_DEVICE void store_c(const Forward& a, int64_t to, Math<T> c) {
  as<Math<T>>(a.c)[to] = c;
  if (a.c_n) as<T>(a.c_n)[to] = from_float<T>(c);
}

// x[g] += bias[g], and the bias inside the last gate's product to q.
template <class C, class A>
SEQKERN_DEVICE void add_bias(const A* bias, int64_t H, int64_t unit, A (&x)[C::kGates],
                             A (&q)[C::kGates]) {
  constexpr int G = C::kGates;
#pragma unroll
  for (int g = 0; g < G; ++g) x[g] += bias[g * H + unit];
  if constexpr (C::kRecurrentBias) q[G - 1] += bias[G * H + unit];
}

// What a (row, unit) of a backward step reads that no earlier step of the pass makes: known before
// grad_h is, so that it can be fetched while waiting.
template <class C, class T>
struct BackwardInput {
  using A = Math<T>;
  A grad_output, saved[kSavedValues<C>], c, c_prev, h_prev, h;
};

// batch_row: the row of the batch that is the step's row 0 here.
template <class C, class T, class R>
SEQKERN_DEVICE BackwardInput<C, T> read_backward(const Backward& a, const Step& s,
                                                 int64_t chunk_row, int64_t batch_row, R r,
                                                 R unit) {
  using A = Math<T>;
  constexpr int S = C::kSaved;
  BackwardInput<C, T> in{};
  const R H = static_cast<R>(a.H), ldo = static_cast<R>(a.ldo);
  const bool continues = r < s.continued;
  if (!a.projected) {
    in.grad_output = to_float((as<T>(a.grad_output) + s.row * a.ldo)[r * ldo + unit]);
  }
  if constexpr (C::kCarriesGradH) {
    in.h_prev = to_float(continues ? (as<T>(a.output) + s.before * a.ldo)[r * ldo + unit]
                                   : as<T>(a.h_0)[(batch_row + r) * a.K + unit]);
  }
  if constexpr (S > 0) {
    const T* gates = as<T>(a.gates) + chunk_row * (S * a.H) + (r * (S * H) + unit);
#pragma unroll
    for (int k = 0; k < S; ++k) in.saved[k] = to_float(gates[k * H]);
  } else {
    in.h = to_float((as<T>(a.output) + s.row * a.ldo)[r * ldo + unit]);
  }
  if constexpr (C::kHasCellState) {
    in.c = (as<A>(a.cells) + s.row * a.H)[r * H + unit];
    in.c_prev = continues ? (as<A>(a.cells) + s.before * a.H)[r * H + unit]
                          : to_float(as<T>(a.c_0)[(batch_row + r) * a.H + unit]);
  }
  return in;
}

// One (row, unit) of a backward step. grad_h: what reaches h_t from the next step's gates or from
// the projection; grad_state: carried. Writes what is asked for beside d, the gate gradients.
template <class C, class T, class R>
SEQKERN_DEVICE void backward_unit(const Backward& a, int64_t row, int64_t chunk_row, R r, R unit,
                                  const BackwardInput<C, T>& in, Math<T> grad_h,
                                  Math<T>& grad_state, Math<T> (&d)[C::kGradGates]) {
  using A = Math<T>;
  const R H = static_cast<R>(a.H);
  grad_h += in.grad_output;
  if constexpr (C::kCarriesGradH) grad_h += grad_state;
  A grad_c{};
  C::template backward<Functions<A>>(grad_h, in.saved, in.c, in.c_prev, in.h_prev, in.h, grad_state,
                                     grad_c, d);
  T* to =
      as<T>(a.grad_gates) + chunk_row * (C::kGradGates * a.H) + (r * (C::kGradGates * H) + unit);
#pragma unroll
  for (int g = 0; g < C::kGradGates; ++g) to[g * H] = from_float<T>(d[g]);
  if (a.step_grad_h && !a.projected) as<A>(a.step_grad_h)[(row + r) * a.K + unit] = grad_h;
  if constexpr (C::kHasCellState) {
    if (a.step_grad_c) as<A>(a.step_grad_c)[(row + r) * a.H + unit] = grad_c;
    if (a.hidden) {
      as<T>(a.hidden)[(chunk_row + r) * a.H + unit] =
          from_float<T>(C::template hidden<Functions<A>>(in.saved, in.c));
    }
  }
}

}  // namespace seqkern::cuda
