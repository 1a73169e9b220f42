// How a layer is split over threads and time: a pure function of sizes.
#pragma once

#include <cstdint>
#include <vector>

namespace seqkern::cpu {

struct Problem {
  int64_t B, H, K;  // B: rows of the first step
  int gates;        // columns of a row's activations or gradients, in units of H
  int directions;
  int panel_units;         // hidden units in one panel of packed weights
  int element_size;        // bytes of the arithmetic's type
  int64_t pass_flops;      // of all its products
  int64_t min_chunk_rows;  // fewest rows worth a product of their own outside the time loop
  int64_t cache_bytes;     // of a core's second-level cache
};

struct Plan {
  int threads;         // wanted of the region
  int teams;           // one for each direction, or one that does them in turn
  bool split_rows;     // a direction's team splits rows or the hidden units
  bool alternate;      // the panels of weights are read there and back
  int64_t chunk_rows;  // rows of a chunk, at least one step
};

// Threads for one time step on weights that are not packed: enough that each reads as much as
// starting it costs.
int step_threads(int64_t B, int64_t weight_bytes, int available_threads);

// Whether steps that read so many bytes of weights each, to a thread, are faster if every other one
// reads them backwards.
bool alternates(int64_t bytes, int64_t cache_bytes);

// Threads for a product [M, K] x [K, N].
int product_threads(int64_t M, int64_t N, int64_t K, int available_threads);

Plan make_plan(const Problem& problem, int available_threads);

// For tests: whether passes take as many threads as their steps are worth, however few their flops.
void ignore_pass_flops(bool ignore);

// Whether a layer of bfloat16 is better multiplied in pairs at half the rate of float32 than
// converted, for B rows a step, R in all, and so many recurrent weights.
bool slow_pairs_pay(int64_t B, int64_t R, int64_t weights);

// The boundaries 0 = t_0 < t_1 < ... < T of chunks with at most chunk_rows rows each, or one step.
// They are nearly equal: two directions take them in opposite order at the same time. With `bound`,
// which is one of them, those before it are so, and those after it.
std::vector<int64_t> chunk_steps(const std::vector<int64_t>& offsets, int64_t chunk_rows,
                                 int64_t bound = 0);

// RowGroups for some consecutive steps.
struct GroupBounds {
  std::vector<int64_t> bounds;
  int64_t rows;  // of all steps, in the group that takes longest
};

// Each group has as much work as the others, and so few sequences if they are long.
GroupBounds row_groups(const std::vector<int64_t>& offsets, int64_t begin, int64_t end,
                       int64_t groups);

// How many of the steps are to be split by rows, from the first one on; the rest has few rows.
// Groups of all these steps can make up for steps that some have no part in, those of a chunk can
// not.
int64_t grouped_steps(const std::vector<int64_t>& offsets, int64_t groups, bool of_all);

}  // namespace seqkern::cpu
