// What every cell header shares. A cell states its pointwise maths once, forward and backward, as
// templates over the value type V: a SIMD vector on the CPU, a plain float in a CUDA thread.
//
// The time loop hands a cell
//   x[G]      input product plus the biases that are added outside any product,
//   r[G]      recurrent product W_hh h_{t-1} (plus the biases inside it, see kRecurrentBias),
//   state     what is carried from step to step beside h (the LSTM's c; unused otherwise),
// and gets h in two strides: activate makes the S values that backward needs (saved, or made again
// from x and r), combine makes h of them and moves the state on. backward takes dLoss/dh_t back to
// the gates' pre-activations. M supplies the functions M::sigmoid and M::tanh.
#pragma once

#if defined(__CUDACC__)
#define SEQKERN_CELL __host__ __device__ __forceinline__
#else
#define SEQKERN_CELL inline __attribute__((always_inline))
#endif

namespace seqkern {

// Order of the per-cell kernel tables and of the operators' registration.
enum class Cell : int { Lstm = 0, Gru = 1, RnnTanh = 2, RnnRelu = 3 };
inline constexpr int kNumCells = 4;

}  // namespace seqkern
