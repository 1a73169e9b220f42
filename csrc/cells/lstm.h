// Long short-term memory (Hochreiter & Schmidhuber 1997, with forget gate: Gers et al. 2000).
//   i, f, o = sigmoid(x + r)      g = tanh(x + r)
//   c = f * c_prev + i * g        h = o * tanh(c)
// Gate order, everywhere: i, f, g, o (torch.nn's).
#pragma once

#include "cells/cell.h"

namespace seqkern {

struct Lstm {
  static constexpr int kGates = 4;
  static constexpr int kSaved = 4;  // i, f, g, o after their activations
  static constexpr bool kHasCellState = true;
  static constexpr bool kRecurrentBias = false;
  // Whether the gradient carried in grad_state belongs to h rather than to a state of its own.
  static constexpr bool kCarriesGradH = false;
  // Gate gradients: width in units of H, and where the columns belonging to W_ih and W_hh start.
  static constexpr int kGradGates = 4;
  static constexpr int kGradInputOffset = 0;
  // The recurrent columns hold the rows of W_hh rotated by this many gates.
  static constexpr int kGradRotation = 0;

  template <class M, class V>
  static SEQKERN_CELL void activate(const V (&x)[4], const V (&r)[4], V (&saved)[4]) {
    saved[0] = M::sigmoid(x[0] + r[0]);
    saved[1] = M::sigmoid(x[1] + r[1]);
    saved[2] = M::tanh(x[2] + r[2]);
    saved[3] = M::sigmoid(x[3] + r[3]);
  }

  template <class M, class V>
  static SEQKERN_CELL V combine(const V (&saved)[4], V /*h_prev*/, V& c) {
    c = saved[1] * c + saved[0] * saved[2];
    return hidden<M>(saved, c);
  }

  // h before a projection.
  template <class M, class V>
  static SEQKERN_CELL V hidden(const V (&saved)[4], V c) {
    return saved[3] * M::tanh(c);
  }

  // grad_h: dLoss/dh_t; grad_state: dLoss/dc_t coming from step t+1, replaced by that for c_{t-1};
  // grad_c: the total dLoss/dc_t.
  template <class M, class V>
  static SEQKERN_CELL void backward(V grad_h, const V (&saved)[4], V c, V c_prev, V /*h_prev*/,
                                    V /*h*/, V& grad_state, V& grad_c, V (&d)[4]) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = M::tanh(c);
    grad_c = grad_state + grad_h * o * (1 - tanh_c * tanh_c);
    d[0] = grad_c * g * i * (1 - i);
    d[1] = grad_c * c_prev * f * (1 - f);
    d[2] = grad_c * i * (1 - g * g);
    d[3] = grad_h * tanh_c * o * (1 - o);
    grad_state = grad_c * f;
  }
};

}  // namespace seqkern
