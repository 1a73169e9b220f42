// Which kernels run a layer, and in which shape: a pure function of sizes, type and device.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace seqkern::cuda {

struct Problem {
  Cell cell;
  Type type;
  int64_t B, H, K;  // B: rows of the first step
  int directions;
  bool projection;
};

// stepwise: each step one GEMM and one pointwise kernel; any size.
// block: one block takes a tile of the batch through a whole chunk, W_hh in its shared memory.
enum class Tier : int { Stepwise = 0, Block = 1 };

struct Plan {
  Tier tier;
  int64_t chunk_rows;  // rows of a chunk, at least one step
};

// Bytes of shared memory that a block of the block tier takes, and its threads; 0 threads where no
// block can do it, whatever the device.
struct BlockShape {
  int threads;
  int64_t shared_forward, shared_backward;
};
BlockShape block_shape(const Problem& problem);

// Whether a tier can run the problem at all.
bool supports(Tier tier, const Problem& problem, const DeviceProperties& device);

Plan make_plan(const Problem& problem, const DeviceProperties& device);

}  // namespace seqkern::cuda
