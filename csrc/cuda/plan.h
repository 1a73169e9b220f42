// Which kernels run a layer: a pure function of sizes, type and device.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/device.h"
#include "cuda/grid.h"
#include "cuda/kernels.h"

namespace seqkern::cuda {

struct Problem {
  Cell cell;
  Type type;
  int64_t B, H, K;  // B: rows of the first step
  int directions;
  bool projection;
};

// stepwise: each step one product by the BLAS and one pointwise kernel; any size.
// block: one block takes a few rows through a whole chunk, W_hh in its shared memory.
// grid: the hidden units are spread over all blocks, each with its rows of W_hh in shared memory.
enum class Tier : int { Stepwise = 0, Block = 1, Grid = 2 };
inline constexpr int kNumTiers = 3;
const char* name(Tier tier);

struct Plan {
  Tier tier;
  int64_t chunk_rows;  // rows of a chunk, at least one step
  GridShape grid;      // of the grid tier
};

// The fewest units a block, and so the most blocks that are resident at once.
GridShape grid_shape(const Problem& problem, const DeviceProperties& device);

// Whether a tier can run the problem at all.
bool supports(Tier tier, const Problem& problem, const DeviceProperties& device);

// Predicted nanoseconds of a step, which only decide between tiers: counted, not measured.
double predicted_step(Tier tier, const Problem& problem, const DeviceProperties& device);

Plan make_plan(const Problem& problem, const DeviceProperties& device);

// What csrc/ops asks: make_plan, unless a test has forced something. Throws where the forced tier
// does not support the problem.
Plan plan_for(const Problem& problem, const DeviceProperties& device);
// "stepwise", "block", "grid" or "" for the planner's own choice; 0 rows likewise.
void force_plan(const std::string& tier, int64_t chunk_rows);

}  // namespace seqkern::cuda
