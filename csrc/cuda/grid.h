// The shape of a launch of the grid-persistent tier: what its kernels, its launches, the planner
// and csrc/ops agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kGridRows = 8;  // rows of the batch that a warp takes at a time
// Threads of a block, at most: float64 takes twice the registers.
constexpr int grid_threads(int element_size) { return element_size == 8 ? 256 : 512; }

struct GridShape {
  int units;   // hidden units of a block
  int blocks;  // of a direction
  int threads;
  int64_t shared_forward, shared_backward;  // bytes
  int64_t partials;                         // elements of GridMemory's, for all directions
};

}  // namespace seqkern::cuda
