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

// float32's kernels are for H up to this. The fewer threads a block may have, the more registers
// each may take: to 96 all of W_hh lies in them.
inline constexpr int kBlockSizes[] = {48, 96, 128};
SEQKERN_CELL constexpr int block_threads(int size) { return size * 32 / kBlockUnits; }
// Weights of a gate that a thread keeps in registers, a multiple of kBlockPairs; a quarter of
// `size` is all. Other types' kernels are for H up to 128 and keep none.
SEQKERN_CELL constexpr int block_held(bool float32, int size, int gates) {
  if (!float32) return 0;
  if (size < 128) return size / 4;
  return gates == 4 ? 16 : gates == 3 ? 24 : 32;
}

// Terms of a sum that a lane takes, of `width` in all, at least the `held` whose weights are in
// registers; and elements from one lane's values to the next's, which hold `rows` for each term: an
// odd number of 16 bytes, so that lanes which read them together meet no bank conflict.
struct BlockSum {
  int terms, stride;
};
SEQKERN_CELL constexpr BlockSum block_sum(int width, int rows, int held, int element_size) {
  const int parts = block_parts(rows), vector = 16 / element_size;
  const int share = (width + parts - 1) / parts, terms = share > held ? share : held;
  return {terms, ((terms * rows + vector - 1) / vector | 1) * vector};
}

struct BlockShape {
  int rows;        // of the batch in a block: 1, 2 or 4
  int size;        // of kBlockSizes, the kernel's
  int threads;     // more than the largest size has: no block can do it
  int64_t shared;  // bytes
};

}  // namespace seqkern::cuda
