// The shape of a launch of the block-persistent tier: what its kernels, its launches, the planner
// and csrc/ops agree on.
#pragma once

#include "cuda/kernels.h"

namespace seqkern::cuda {

inline constexpr int kBlockUnits = 8;  // hidden units of a warp
// A group of lanes owns this many pairs of a unit and a row: with 1, 2 or 4 rows of the batch in a
// block 4, 2 or 1 units, and as many times 4 lanes share each sum.
inline constexpr int kBlockPairs = 4;
SEQKERN_CELL constexpr int block_parts(int rows) { return kBlockPairs * (kBlockPairs / rows); }

// Kernels are for H up to one of these, float64's for the first. The fewer threads a
// block may have, the more registers each may take: up to 96 all of W_hh lies in them.
inline constexpr int kBlockLargest = 128, kBlockSizes[] = {kBlockLargest, 96, 48};
SEQKERN_CELL constexpr int block_threads(int size) { return size * 32 / kBlockUnits; }
// Weights of a gate that a thread keeps in registers, a multiple of kBlockPairs; a quarter of
// `size` is all.
SEQKERN_CELL constexpr int block_held(int element_size, int size, int gates) {
  if (element_size == 8) return 0;
  if (size < kBlockLargest) return size / 4;
  return gates == 4 ? 16 : gates == 3 ? (element_size == 4 ? 24 : 20) : 32;
}

// Terms whose weights lie side by side in shared memory: 4 weights make one load.
SEQKERN_CELL constexpr int block_run(int outputs) { return outputs == 1 ? 4 : 1; }

// How a group's lanes share the sums over `width` terms, `outputs` for each pair.
struct BlockSum {
  int terms;   // of a lane, at least those whose weights are in registers
  int stride;  // elements from one lane's values to the next's
  int rest;    // weights of a thread that are in shared memory
};
// `held`: terms whose weights are in registers. The stride is an odd number of 16 bytes, so that
// lanes which read their values together meet no bank conflict.
SEQKERN_CELL constexpr BlockSum block_sum(int width, int rows, int held, int outputs,
                                          int element_size) {
  const int parts = block_parts(rows), vector = 16 / element_size, run = block_run(outputs);
  const int share = (width + parts - 1) / parts, terms = share > held ? share : held;
  const int rest = (terms - held + run - 1) / run * run;
  return {terms, (((held + rest) * rows + vector - 1) / vector | 1) * vector,
          rest * (kBlockPairs / rows) * outputs};
}

struct BlockShape {
  int rows;        // of the batch in a block: 1, 2 or 4
  int size;        // of kBlockSizes, the kernel's
  int threads;     // more than the largest size has: no block can do it
  int64_t shared;  // bytes
};

}  // namespace seqkern::cuda
