// The shape of a launch of the tensor-core kernels: what they, their launches, the planner and
// csrc/ops agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kMmaRows = 16;      // rows of the batch in a block: two tiles' columns
inline constexpr int kMmaUnits = 8;      // hidden units of a warp: half a tile's rows
inline constexpr int kMmaThreads = 512;  // of a block, at most

struct MmaShape {
  int groups;      // of kMmaUnits hidden units in a block
  int splits;      // warps that share a group's sum
  int blocks;      // of a direction and kMmaRows rows; they exchange h where there are several
  int row_tiles;   // sets of blocks, one for each kMmaRows rows
  int64_t shared;  // bytes
};

}  // namespace seqkern::cuda
