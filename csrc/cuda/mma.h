// The shape of a launch of the tensor-core kernels: what they, their launches, the planner and
// csrc/ops agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kMmaUnits = 8;      // hidden units of a warp, alone or with others
inline constexpr int kMmaThreads = 512;  // of a block, at most
// Fragments of W_hh that a lane keeps in registers, as many as 128 of them leave room for: forward
// of 16 x 16 values, backward of 16 x 8. kTiles: sets of 8 rows of a block; kSplit: whether warps
// share sums.
template <int kTiles, bool kSplit>
inline constexpr int kMmaHeldForward = kTiles == 1 ? 6 : (kSplit ? 4 : 2);
template <int kTiles, bool kSplit>
inline constexpr int kMmaHeldBackward = kTiles == 1 ? 20 : (kSplit ? 12 : 8);

struct MmaShape {
  int rows;          // of the batch in a block: 8 or 16
  int groups;        // of kMmaUnits hidden units in a block
  int splits;        // warps that share a group's sum
  int blocks;        // of a direction and `rows` rows; they exchange what crosses units
  int row_tiles;     // sets of blocks, one for each `rows` rows
  int fragments;     // of W_hh in a block's shared memory; the others in registers
  int64_t shared;    // bytes, of the pass that the shape is for
  int64_t exchange;  // elements of MmaMemory's: where blocks exchange
};

}  // namespace seqkern::cuda
