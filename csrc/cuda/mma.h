// The shape of a launch of the tensor-core kernels: what they, their launches, the planner and
// csrc/ops agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kMmaRows = 16;      // rows of the batch in a block: two tiles' columns
inline constexpr int kMmaUnits = 8;      // hidden units of a warp: half a tile's rows
inline constexpr int kMmaThreads = 512;  // of a block, at most
// Fragments of W_hh that a lane keeps in registers: more where it has fewer (unit, row) pairs.
// Backward, steps of the sum of so many tiles.
template <bool kSplit>
inline constexpr int kMmaHeldForward = kSplit ? 8 : 4;
template <bool kSplit>
inline constexpr int kMmaHeldTiles = kSplit ? 2 : 0;
inline constexpr int kMmaHeldSteps = 2;

struct MmaShape {
  int groups;        // of kMmaUnits hidden units in a block
  int splits;        // warps that share a group's sum
  int blocks;        // of a direction and kMmaRows rows; they exchange h where there are several
  int row_tiles;     // sets of blocks, one for each kMmaRows rows
  int fragments;     // of W_hh in a block's shared memory, 512 bytes each; the others in registers
  int64_t shared;    // bytes, of the pass that the shape is for
  int64_t partials;  // elements of MmaMemory's: backward, where blocks exchange
};

}  // namespace seqkern::cuda
