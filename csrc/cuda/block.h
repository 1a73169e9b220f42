// The shape of a block of the block-persistent tier: what its kernels, its launches and the planner
// agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kBlockRows = 4;       // rows of the batch in a block
inline constexpr int kBlockParts = 4;      // threads that share a unit's sum
inline constexpr int kBlockRun = 4;        // consecutive terms of a sum that one of them takes
inline constexpr int kBlockThreads = 512;  // at most

struct BlockShape {
  int threads;                              // more than kBlockThreads: no block can do it
  int64_t shared_forward, shared_backward;  // bytes
};
BlockShape block_shape(Cell cell, Type type, int64_t H);

}  // namespace seqkern::cuda
