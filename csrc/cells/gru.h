// Gated recurrent unit, reset gate applied after the product (torch.nn's and cuDNN's variant of
// Cho et al. 2014).
//   rg, z = sigmoid(x + r)       n = tanh(x_n + rg * q),  q = W_hn h_prev + b_hn
//   h = (1 - z) * n + z * h_prev
// Gate order, everywhere: r, z, n (torch.nn's).
#pragma once

#include "cells/cell.h"

namespace seqkern {

struct Gru {
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;  // r, z, n, q
  static constexpr bool kHasCellState = false;
  static constexpr bool kRecurrentBias = true;  // b_hn lies inside the product that r multiplies
  static constexpr bool kCarriesGradH = true;
  // n has one gradient for the input product (d_n) and another for the recurrent one (r * d_n).
  // The order r * d_n, d_r, d_z, d_n makes both sides contiguous: columns [1H, 4H) are r, z, n as
  // in W_ih; columns [0, 3H) are n, r, z, W_hh's rows rotated by two gates.
  static constexpr int kGradGates = 4;
  static constexpr int kGradInputOffset = 1;
  static constexpr int kGradRotation = 2;

  template <class M, class V>
  static SEQKERN_CELL void activate(const V (&x)[3], const V (&r)[3], V (&saved)[4]) {
    saved[0] = M::sigmoid(x[0] + r[0]);
    saved[1] = M::sigmoid(x[1] + r[1]);
    saved[2] = M::tanh(x[2] + saved[0] * r[2]);
    saved[3] = r[2];
  }

  template <class M, class V>
  static SEQKERN_CELL V combine(const V (&saved)[4], V h_prev, V& /*state*/) {
    const V z = saved[1], n = saved[2];
    return n + z * (h_prev - n);
  }

  // grad_state: the part of dLoss/dh_t that reaches h_{t-1} past the gates, z * grad_h.
  template <class M, class V>
  static SEQKERN_CELL void backward(V grad_h, const V (&saved)[4], V /*c*/, V /*c_prev*/, V h_prev,
                                    V /*h*/, V& grad_state, V& /*grad_c*/, V (&d)[4]) {
    const V reset = saved[0], z = saved[1], n = saved[2], q = saved[3];
    const V d_n = grad_h * (1 - z) * (1 - n * n);
    d[0] = d_n * reset;
    d[1] = d_n * q * reset * (1 - reset);
    d[2] = grad_h * (h_prev - n) * z * (1 - z);
    d[3] = d_n;
    grad_state = grad_h * z;
  }
};

}  // namespace seqkern
