// Which kernels run a layer: a pure function of sizes, type and device.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/block.h"
#include "cuda/device.h"
#include "cuda/grid.h"
#include "cuda/kernels.h"
#include "cuda/mma.h"

namespace seqkern::cuda {

struct Problem {
  Cell cell;
  Type type;
  int64_t B, H, K;  // B: rows of the first step
  int directions;
  bool projection;
  bool backward = false;  // which pass: each has its own plan
};

// stepwise: each step one product by the BLAS and one pointwise kernel; any size.
// block: one block takes a few rows through a whole chunk, W_hh in its registers and shared memory.
// grid: the hidden units are spread over all blocks, each with its rows of W_hh in shared memory.
// mma: tensor cores, for bfloat16 and float16; as block where one block has room for all of
// W_hh, else as grid.
enum class Tier : int { Stepwise = 0, Block = 1, Grid = 2, Mma = 3 };
inline constexpr int kNumTiers = 4;
const char* name(Tier tier);

struct Plan {
  Tier tier;
  int64_t chunk_rows;  // rows of a chunk, at least one step
  BlockShape block;    // of the block tier
  GridShape grid;      // of the grid tier
  MmaShape mma;        // of the mma tier
};

// The fewest rows a block with which all blocks run at once, one a multiprocessor.
BlockShape block_shape(const Problem& problem, const DeviceProperties& device);
// The fewest units a block, and so the most blocks that are resident at once.
GridShape grid_shape(const Problem& problem, const DeviceProperties& device);
// One block where that has room, else the fewest groups a block.
MmaShape mma_shape(const Problem& problem, const DeviceProperties& device);

// Whether a tier can run the problem at all.
bool supports(Tier tier, const Problem& problem, const DeviceProperties& device);

// What one step of the problem's pass takes, forward without saved gates: counted, not measured.
struct Cost {
  double shared_bytes;  // through the shared memory of the busiest multiprocessor
  double l2_bytes;      // of the whole device
  double dram_bytes;    // of the whole device
  int barriers;         // of a block
  int exchanges;        // launches, or trips from block to block through L2
  double instructions;  // of the thread that has most to do
  double nanoseconds;   // predicted
};
Cost predict(Tier tier, const Problem& problem, const DeviceProperties& device);

Plan make_plan(const Problem& problem, const DeviceProperties& device);

// What csrc/ops asks: make_plan, unless a test has forced something. Throws where the forced tier
// does not support the problem.
Plan plan_for(const Problem& problem, const DeviceProperties& device);
// "stepwise", "block", "grid", "mma" or "" for the planner's own choice; 0 rows likewise.
void force_plan(const std::string& tier, int64_t chunk_rows);

}  // namespace seqkern::cuda
