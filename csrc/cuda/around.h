// Threads of a block of the kernels around the steps: what they and the table of docs/cuda.md agree
// on.
#pragma once

namespace seqkern::cuda {

inline constexpr int kPrepareThreads = 128;
inline constexpr int kFinishThreads = 512;  // of the sums over runs too

}  // namespace seqkern::cuda
