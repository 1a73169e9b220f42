// The shape of a launch of the grid-persistent tier: what its kernels, its launches, the planner
// and csrc/ops agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kGridRows = 8;  // rows of the batch that a warp takes at a time
// Rows of W_hh and of h are padded to a multiple of so many columns: 16 bytes of any type.
inline constexpr int kGridColumns = 8;
// Partial sums that a thread has on their way to it at a time.
inline constexpr int kGridInFlight = 8;

// Units that a warp takes at a time, forward: shared memory is read once for so many units and
// kGridRows rows. Their sums are in registers.
SEQKERN_CELL constexpr int grid_units(int gates, int element_size) {
  return gates == 1 ? 4 : element_size == 8 ? 1 : 2;
}
// Terms of a sum that a lane of a warp takes at a time, forward.
SEQKERN_CELL constexpr int grid_run(int element_size) { return element_size == 8 ? 2 : 4; }
// Threads of a block, at most. Forward few: each has more sums in registers, and fewer of them have
// to be added up. Backward float64 takes twice the registers.
constexpr int grid_threads(int element_size, bool backward) {
  return backward && element_size < 8 ? 512 : 256;
}

struct GridShape {
  int units;   // hidden units of a block
  int blocks;  // of a direction
  int threads;
  int piece;         // forward: columns of h that shared memory has room for
  int sources;       // backward: threads that share the sum of what all blocks sent
  int64_t shared;    // bytes
  int64_t partials;  // elements of GridMemory's, for all directions
};

}  // namespace seqkern::cuda
