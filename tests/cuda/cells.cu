// Compiled only (`make cells-cuda`): each cell's maths on plain floats in device code, as a CUDA
// kernel has it. Every function of every cell is instantiated.
#include <cmath>
#include <cstdint>

#include "cells/cell.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace seqkern {

struct ScalarMath {
  static SEQKERN_CELL float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
  static SEQKERN_CELL float tanh(float x) { return tanhf(x); }
};

template <class C>
constexpr int kSavedValues = C::kSaved > 0 ? C::kSaved : 1;

template <class C>
__global__ void forward(int64_t n, const float* x,  // [G, n]
                        const float* r,             // [G, n]
                        const float* h_prev,        // [n]
                        float* state,               // [n]
                        float* saved, float* h) {   // [S, n], [n]
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  float gates[C::kGates], products[C::kGates], kept[kSavedValues<C>];
  for (int gate = 0; gate < C::kGates; ++gate) {
    gates[gate] = x[gate * n + i];
    products[gate] = r[gate * n + i];
  }
  C::template activate<ScalarMath>(gates, products, kept);
  h[i] = C::template combine<ScalarMath>(kept, h_prev[i], state[i]);
  for (int value = 0; value < C::kSaved; ++value) saved[value * n + i] = kept[value];
}

template <class C>
__global__ void backward(int64_t n, const float* grad_h,  // [n], as all that follow but
                         const float* saved,              // [S, n]
                         const float* c, const float* c_prev, const float* h_prev, const float* h,
                         float* grad_state, float* grad_c,
                         float* grad_gates) {  // [GG, n]
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  float kept[kSavedValues<C>], d[C::kGradGates];
  for (int value = 0; value < C::kSaved; ++value) kept[value] = saved[value * n + i];
  C::template backward<ScalarMath>(grad_h[i], kept, c[i], c_prev[i], h_prev[i], h[i], grad_state[i],
                                   grad_c[i], d);
  for (int gate = 0; gate < C::kGradGates; ++gate) grad_gates[gate * n + i] = d[gate];
}

__global__ void lstm_hidden(const float* saved, const float* c, float* h) {
  const float kept[4] = {saved[0], saved[1], saved[2], saved[3]};
  *h = Lstm::hidden<ScalarMath>(kept, *c);
}

#define INSTANTIATE(C)                                                                           \
  template __global__ void forward<C>(int64_t, const float*, const float*, const float*, float*, \
                                      float*, float*);                                           \
  template __global__ void backward<C>(int64_t, const float*, const float*, const float*,        \
                                       const float*, const float*, const float*, float*, float*, \
                                       float*);
INSTANTIATE(Lstm)
INSTANTIATE(Gru)
INSTANTIATE(RnnTanh)
INSTANTIATE(RnnRelu)

}  // namespace seqkern
