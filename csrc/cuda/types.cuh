// Storage types, the type in which each is computed with, and how kernels are declared.
#pragma once

#include "cells/cell.h"
#include "cuda/simt.h"

#define SEQKERN_DEVICE __device__ __forceinline__

// Parameters that stay where the launch put them, so that kernels may index into them.
#if defined(SEQKERN_CUDA_HOST)
#define SEQKERN_PARAMETER const
#else
#define SEQKERN_PARAMETER const __grid_constant__
#endif

// Applies M(type's name, type, ...) to each storage type, M(cell's name, cell, ...) to each cell.
#define SEQKERN_FOR_TYPES(M, ...) \
  M(f32, float, __VA_ARGS__)      \
  M(f64, double, __VA_ARGS__)     \
  M(bf16, bf16, __VA_ARGS__)      \
  M(f16, f16, __VA_ARGS__)
#define SEQKERN_FOR_CELLS(M, ...) \
  M(lstm, Lstm, __VA_ARGS__)      \
  M(gru, Gru, __VA_ARGS__)        \
  M(rnn_tanh, RnnTanh, __VA_ARGS__) M(rnn_relu, RnnRelu, __VA_ARGS__)

// The table [cell][type] of the kernels seqkern_CELL_name_TYPE.
#define SEQKERN_ENTRY(type, T, cell, name) seqkern_##cell##_##name##_##type,
#define SEQKERN_ROW(cell, C, name) {SEQKERN_FOR_TYPES(SEQKERN_ENTRY, cell, name)},
#define SEQKERN_TABLE(name) {SEQKERN_FOR_CELLS(SEQKERN_ROW, name)}

namespace seqkern::cuda {

template <class T>
using Math = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The cells' functions. CUDA's expf, exp and tanh are within 1 ulp, __fdividef within 2 where the
// divisor is at most 2^126, beyond which it gives 0 (CUDA C++ Programming Guide, mathematical
// functions appendix). float32's are within 4 ulp for sigmoid, or 2^-126 below that, and 3 for
// tanh. They have no branches and no exact division: what a thread waits for in a step is
// mostly these.
template <class A>
struct Functions;
template <>
struct Functions<float> {
  static SEQKERN_CELL float sigmoid(float x) { return divide(1.f, 1.f + expf(-x)); }
  static SEQKERN_CELL float tanh(float x) {
    const float a = fabsf(x), s = a * a;
    // a + a^3 times a minimax polynomial in a^2, where the difference below would cancel.
    float p = -0.005905867554f;
    p = p * s + 0.02080538310f;
    p = p * s - 0.05378668383f;
    p = p * s + 0.1333195865f;
    p = p * s - 0.3333329856f;
    const float small = p * s * a + a;
    const float large = 1.f - divide(2.f, expf(2.f * a) + 1.f);
    return copysignf(a < 0.6f ? small : large, x);  // NaN takes the latter
  }

 private:
  static SEQKERN_CELL float divide(float x, float y) {
#if defined(__CUDA_ARCH__)
    return __fdividef(x, y);
#else
    return x / y;
#endif
  }
};
template <>
struct Functions<double> {
  static SEQKERN_CELL double sigmoid(double x) { return 1. / (1. + exp(-x)); }
  static SEQKERN_CELL double tanh(double x) { return ::tanh(x); }
};

}  // namespace seqkern::cuda
