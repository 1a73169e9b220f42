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

  template <class M, class V>
  static SEQKERN_CELL V combine(const V (&saved)[1], V /*h_prev*/, V& /*state*/) {
    return saved[0];
  }
};

// saved holds h itself, on its way from activate to combine: it is not kept.
struct RnnTanh : RnnBase {
  template <class M, class V>
  static SEQKERN_CELL void activate(const V (&x)[1], const V (&r)[1], V (&saved)[1]) {
    saved[0] = M::tanh(x[0] + r[0]);
  }
  template <class M, class V>
  static SEQKERN_CELL void backward(V grad_h, const V (& /*saved*/)[1], V /*c*/, V /*c_prev*/,
                                    V /*h_prev*/, V h, V& /*grad_state*/, V& /*grad_c*/,
                                    V (&d)[1]) {
    d[0] = grad_h * (1 - h * h);
  }
};

// Written with <= so that NaN goes through, as in torch.
struct RnnRelu : RnnBase {
  template <class M, class V>
  static SEQKERN_CELL void activate(const V (&x)[1], const V (&r)[1], V (&saved)[1]) {
    const V a = x[0] + r[0];
    saved[0] = a <= V{} ? V{} : a;
  }
  template <class M, class V>
  static SEQKERN_CELL void backward(V grad_h, const V (& /*saved*/)[1], V /*c*/, V /*c_prev*/,
                                    V /*h_prev*/, V h, V& /*grad_state*/, V& /*grad_c*/,
                                    V (&d)[1]) {
    d[0] = h <= V{} ? V{} : grad_h;
  }
};

}  // namespace seqkern
