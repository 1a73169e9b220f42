// What csrc/ops asks of the GPU: launches on a stream, one layer in one or both directions. Raw
// pointers and sizes only; nothing here waits for the device.
//
// Rows are time-major and ragged as in cpu/kernels.h: step t owns rows [offsets[t], offsets[t +
// 1]), their number never grows with t, and row r of step t continues row r of the step before. A
// chunk is a run of consecutive steps; "chunk" arrays start at the chunk's first row, "all rows" at
// the sequence's.
//
// Notation: T steps, B rows of the first step, R rows in all, H hidden size, K width of h (the
// projected size, or H), G gates, S saved values, GG gate gradients per unit. Pointers are to the
// storage type ("store") or to the type of the arithmetic ("math"): float, for float64 double.
#pragma once

#include <cstdint>

#include "cells/cell.h"
#include "cuda/device.h"

namespace seqkern::cuda {

enum class Type : int { F32 = 0, F64 = 1, BF16 = 2, F16 = 3 };
inline constexpr int kNumTypes = 4;

struct Steps {
  const int64_t* offsets;  // [T + 1], or null: every step has B rows
  int64_t batch;           // B
  int64_t total;           // T
  int64_t begin, end;      // the chunk
  bool reverse;            // time runs from T - 1 to 0
};

// One step as a direction sees it.
struct Step {
  int64_t row, rows;          // first row, active rows
  int64_t before, continued;  // the step before: its first row, and how many rows continue it
};

SEQKERN_CELL Step step_at(const Steps& s, int64_t t) {
  const auto first = [&](int64_t u) { return s.offsets ? s.offsets[u] : u * s.batch; };
  const auto rows = [&](int64_t u) { return first(u + 1) - first(u); };
  const int64_t before = s.reverse ? t + 1 : t - 1, n = rows(t);
  if (before < 0 || before >= s.total) return {first(t), n, 0, 0};
  const int64_t m = rows(before);
  return {first(t), n, first(before), m < n ? m : n};
}

// Arguments of one direction.
struct Forward {
  Steps steps;
  int64_t H, K;
  const void* x;     // math, chunk [rows, G*H]: W_ih x, no bias
  const void* bias;  // math, [G + 1, H]: added to x; last row: inside the last gate's product
  const void* w_hh;  // store, [G*H, K]
  const void* h_0;   // store, [B, K]
  void* h;           // store, [B, K]: h_0 at first, the last step's h of each row on return
  void* c;           // math, [B, H]: likewise; null where there is none
  void* c_n;         // store, [B, H] or null: c too, on return
  void* output;      // store, all rows [R, ldo], first K columns
  int64_t ldo;
  void* gates;   // store, all rows [R, S*H] or null
  void* cells;   // math, all rows [R, H] or null: every c_t
  void* hidden;  // store, [B, H] with projection: h before it; else null
};

struct Backward {
  Steps steps;
  int64_t H, K;
  const void* grad_output;  // store, all rows [R, ldo], first K columns
  const void* output;       // store, all rows [R, ldo], first K columns
  int64_t ldo;
  const void* gates;       // store, chunk [rows, S*H]
  const void* cells;       // math, all rows [R, H]
  const void* h_0;         // store, [B, K]
  const void* c_0;         // store, [B, H]
  const void* w_hh;        // store, [G*H, K], its rows rotated by kGradRotation gates
  void* grad_h;            // math, [B, K]: what reaches h_t from the next step's gates, or grad_h_n
  const void* projected;   // math, [rows of the step, H]: dLoss/dh_t W_hr; null without projection
  void* grad_state;        // math, [B, H]: carried over the steps, grad_c_n on entry for the LSTM
  void* grad_gates;        // store, chunk [rows, GG*H]
  void* grad_projected_h;  // store, chunk [rows, K] with projection: dLoss/dh_t; else null
  void* hidden;            // store, chunk [rows, H] with projection: h before it; else null
  void* step_grad_h;       // math, all rows [R, K] or null: dLoss/dh_t
  void* step_grad_c;       // math, all rows [R, H] or null: dLoss/dc_t
};

// One launch covers up to two directions.
template <class Args>
struct Both {
  Args direction[2];
  int count;
};

// ---- stepwise: the products are someone else's, one launch a step ----

// `product[d]`: math, [rows, G*H], W_hh h_{t-1}. `t[d]`: the step that direction d takes.
struct StepForward : Both<Forward> {
  const void* product[2];
  Step step[2];
};
void launch_step_forward(Cell cell, Type type, const StepForward& args, Stream stream);

// Reads grad_h and writes gate gradients; the caller turns those into the next grad_h.
struct StepBackward : Both<Backward> {
  Step step[2];
};
void launch_step_backward(Cell cell, Type type, const StepBackward& args, Stream stream);

// With projection: grad_projected_h = grad_h + grad_output.
void launch_step_project(Type type, const StepBackward& args, Stream stream);

// ---- block-persistent: a chunk in one launch; plan.h says when it can ----

struct BlockShape;  // cuda/block.h
void launch_block_forward(Cell cell, Type type, const BlockShape& shape, const Both<Forward>& args,
                          Stream stream);
void launch_block_backward(Cell cell, Type type, const BlockShape& shape,
                           const Both<Backward>& args, Stream stream);

// ---- grid-persistent: a chunk in one cooperative launch ----

struct GridShape;  // cuda/grid.h
struct GridMemory {
  uint32_t* counters;         // zeros, one for each direction
  void* partials;             // math, backward only: GridShape::partials elements
  int units, piece, sources;  // filled in by the launch
};
void launch_grid_forward(Cell cell, Type type, const GridShape& shape, const Both<Forward>& args,
                         const GridMemory& memory, Stream stream);
void launch_grid_backward(Cell cell, Type type, const GridShape& shape, const Both<Backward>& args,
                          const GridMemory& memory, Stream stream);

// ---- tensor cores, bfloat16 and float16: a chunk in one launch ----

struct MmaShape;  // cuda/mma.h
struct MmaMemory {
  uint32_t* counters;        // zeros, one for each direction and set of rows
  void* exchange;            // store, MmaShape::exchange elements; zeros where blocks exchange
  int rows, groups, splits;  // filled in by the launch
};
void launch_mma_forward(Cell cell, Type type, const MmaShape& shape, const Both<Forward>& args,
                        const MmaMemory& memory, Stream stream);
void launch_mma_backward(Cell cell, Type type, const MmaShape& shape, const Both<Backward>& args,
                         const MmaMemory& memory, Stream stream);

// ---- around the steps: what costs the host more than the GPU, in as few launches as will do ----

// What an array consists of: the storage type, the type of the arithmetic, or uint32_t.
enum class Element : int { Store = 0, Math = 1, Word = 2 };

// to = a + b, or a where b is null, or zeros where a is null as well. Words are zeros alone.
struct Fill {
  const void* a;
  const void* b;
  void* to;
  int64_t count;       // elements of each
  Element from, type;  // of a and b; of `to`
};
inline constexpr int kMostFills = 16;
struct Fills {
  Fill fill[kMostFills];
  int count;
};

// h_{t-1} of every row of a chunk, gathered: one product for all of them.
struct Gather {
  Steps steps;
  int64_t K, row, rows;  // of the chunk; no rows: nothing to gather
  const void* output;    // store, all rows [R, ldo], first K columns
  int64_t ldo;
  const void* h_0;  // store, [B, K]
  void* h_prev;     // store, chunk [rows, K]
};

// What the steps begin with, and what is known before them.
struct Prepare {
  Fills fills;
  Gather gather[2];
};
void launch_prepare(Type type, const Prepare& args, Stream stream);

// The sums over the rows of gate gradients: of each run of kSumRows, then of all. Their order
// depends on sizes alone.
inline constexpr int64_t kSumRows = 1024;
constexpr int64_t sum_runs(int64_t rows) { return (rows + kSumRows - 1) / kSumRows; }
struct Rows {
  const void* from;  // [rows, width]
  int64_t rows, width;
  Element type;
};
struct RunSums {
  Rows of;
  void* sums;  // math, [sum_runs(rows), width]
};
void launch_run_sums(Type type, const Both<RunSums>& args, Stream stream);

// The biases' gradients from all gate gradients or from the sums of their runs.
struct BiasGrad {
  Rows of;
  int64_t outputs;       // G*H
  int64_t input_offset;  // of the columns for b_ih
  int64_t rotation;      // the element of b_hh that column 0 is for
  void* b_ih;            // store, [G*H]
  void* b_hh;            // store, [G*H]
};

// What is left to do after the steps.
struct Finish {
  Fills fills;
  Both<BiasGrad> bias;  // of no direction where there is no bias
};
void launch_finish(Type type, const Finish& args, Stream stream);

// The gates again, once a chunk, from both their products: what forward computed and did not save.
struct Activate {
  int64_t H, rows;
  const void* x;        // math, [rows, G*H], no bias
  const void* product;  // math, [rows, G*H], no bias
  const void* bias;     // math, [G + 1, H], as in Forward
  void* gates;          // store, [rows, S*H]
};
void launch_activate(Cell cell, Type type, const Activate& args, Stream stream);

}  // namespace seqkern::cuda
