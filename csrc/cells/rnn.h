// Elman network (Elman 1990): h = act(x + r), act = tanh or relu.
#pragma once

#include "cells/cell.h"

namespace seqkern {

struct RnnBase {
  static constexpr int kGates = 1;
  static constexpr int kSaved = 0;  // the derivative of act follows from h itself
  static constexpr bool kHasCellState = false;
  static constexpr bool kRecurrentBias = false;
  static constexpr bool kCarriesGradH = false;
  static constexpr int kGradGates = 1;
  static constexpr int kGradInputOffset = 0;
  static constexpr int kGradRotation = 0;
};

// saved is an array of one unused value: C++ has no arrays of none.
struct RnnTanh : RnnBase {
  template <class M, class V>
  static SEQKERN_CELL void forward(const V (&x)[1], const V (&r)[1], V /*h_prev*/, V& /*state*/,
                                   V (&/*saved*/)[1], V& h) {
    h = M::tanh(x[0] + r[0]);
  }
  template <class M, class V>
  static SEQKERN_CELL void backward(V grad_h, const V (&/*saved*/)[1], V /*c*/, V /*c_prev*/,
                                    V /*h_prev*/, V h, V& /*grad_state*/, V& /*grad_c*/,
                                    V (&d)[1]) {
    d[0] = grad_h * (1 - h * h);
  }
};

// Written with <= so that NaN goes through, as in torch.
struct RnnRelu : RnnBase {
  template <class M, class V>
  static SEQKERN_CELL void forward(const V (&x)[1], const V (&r)[1], V /*h_prev*/, V& /*state*/,
                                   V (&/*saved*/)[1], V& h) {
    const V a = x[0] + r[0];
    h = a <= V{} ? V{} : a;
  }
  template <class M, class V>
  static SEQKERN_CELL void backward(V grad_h, const V (&/*saved*/)[1], V /*c*/, V /*c_prev*/,
                                    V /*h_prev*/, V h, V& /*grad_state*/, V& /*grad_c*/,
                                    V (&d)[1]) {
    d[0] = h <= V{} ? V{} : grad_h;
  }
};

}  // namespace seqkern
