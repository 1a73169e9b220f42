#include "cuda/plan.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/block.h"

namespace seqkern::cuda {

namespace {

// What the largest array of a chunk may take of the device's memory.
constexpr int64_t kChunkBytes = int64_t{128} << 20;

struct Widths {
  int gates, grad_gates;
};
constexpr Widths kWidths[kNumCells] = {{Lstm::kGates, Lstm::kGradGates},
                                       {Gru::kGates, Gru::kGradGates},
                                       {RnnTanh::kGates, RnnTanh::kGradGates},
                                       {RnnRelu::kGates, RnnRelu::kGradGates}};
Widths widths(Cell cell) { return kWidths[static_cast<int>(cell)]; }

int store_bytes(Type type) { return type == Type::F64 ? 8 : type == Type::F32 ? 4 : 2; }
int64_t math_bytes(Type type) { return type == Type::F64 ? 8 : 4; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Prediction. Throughputs per multiprocessor and clock are from the CUDA C++ Programming
// Guide's table of arithmetic instructions; the rest are round figures. ----

constexpr double kGigahertz = 1.5;
// A launch and a product of the BLAS, one after the other on a stream.
constexpr double kLaunchNs = 2500, kProductNs = 4000;
// Of a step that stays in a block: two trips through shared memory, the exchange in the quad, the
// cell's functions, the barrier.
constexpr double kBlockStepClocks = 400;
// Of a step that crosses blocks: a release, an acquire, and the trip of h through L2 and back.
constexpr double kGridStepNs = 2500;
// Bytes that shared memory moves in a clock.
constexpr double kBankBytes = 128;
// Around a step's sum: the exchange between lanes, biases, the cell, loads and stores.
constexpr double kPointwiseInstructions = 150;
// Share of the peak that a product of one step reaches.
constexpr double kProductEfficiency = 0.75;

double fma_per_clock(Type type, const DeviceProperties& d) {
  const bool server = d.minor == 0 && d.major >= 8;  // with full-rate float64 units
  if (type == Type::F64) return server ? (d.major == 8 ? 32 : 64) : 2;
  return d.major == 7 || (d.major == 8 && d.minor == 0) ? 64 : 128;
}

// Products with tensor cores, which bfloat16 and float16 have from the BLAS.
double product_fma_per_clock(Type type, const DeviceProperties& d) {
  if (type == Type::F32 || type == Type::F64) return fma_per_clock(type, d);
  return d.minor == 0 && d.major >= 8 ? (d.major == 8 ? 1024 : 2048) : 512;
}

// What every tier reads and writes: the input product and the output.
double streamed_bytes(const Problem& p) {
  return double(p.B) * p.directions * p.H *
         (widths(p.cell).gates * math_bytes(p.type) + store_bytes(p.type));
}

Cost block_cost(const Problem& p, const DeviceProperties& d) {
  const int G = widths(p.cell).gates;
  const BlockShape shape = block_shape(p.cell, p.type, p.H);
  const int64_t blocks = ceil_div(p.B, kBlockRows) * p.directions;
  const int64_t fit = std::max<int64_t>(
      std::min<int64_t>(d.shared_per_multiprocessor / (shape.shared_forward + 1024),
                        d.threads_per_multiprocessor / shape.threads),
      1);
  const int64_t rounds = ceil_div(blocks, d.multiprocessors * fit);
  const int64_t together = std::min(fit, ceil_div(blocks, d.multiprocessors));
  // Per warp and group of terms: G weights a thread, and four values that its quads share. As if
  // loads and arithmetic never overlapped: large batches are the BLAS's.
  const double loads = double(math_bytes(p.type)) / 4 * (G + 2);
  const double fmas = 32.0 * kBlockRows * G / fma_per_clock(p.type, d);
  const double terms = double(ceil_div(p.H, kBlockParts));
  const double groups = terms * (shape.threads / 32) * together;
  return {.shared_bytes = groups * loads * kBankBytes,
          .l2_bytes = streamed_bytes(p),
          .dram_bytes = streamed_bytes(p),
          .barriers = 1,
          .exchanges = 0,
          .instructions = terms * (kBlockRows * G + 2) + kPointwiseInstructions,
          .nanoseconds = rounds * (groups * (loads + fmas) + kBlockStepClocks) / kGigahertz};
}

Cost grid_cost(const Problem& p, const DeviceProperties& d) {
  const int G = widths(p.cell).gates;
  const GridShape shape = grid_shape(p, d);
  // Per warp and 32 terms of a sum: G weights and kGridRows values a lane.
  const double loads = double(math_bytes(p.type)) / 4 * (G + kGridRows);
  const double fmas = 32.0 * kGridRows * G / fma_per_clock(p.type, d);
  const double terms = double(ceil_div(p.H, 32));
  const int64_t items = shape.units * ceil_div(p.B, kGridRows);
  return {.shared_bytes = terms * items * math_bytes(p.type) / 4 * G * kBankBytes,
          .l2_bytes = streamed_bytes(p) +
                      double(p.B) * p.H * store_bytes(p.type) * shape.blocks * p.directions,
          .dram_bytes = streamed_bytes(p),
          .barriers = 2,
          .exchanges = 1,
          .instructions = ceil_div(items, shape.threads / 32) *
                          (terms * (kGridRows * G + kGridRows + G) + kPointwiseInstructions),
          .nanoseconds = terms * items * (loads + fmas) / kGigahertz + kGridStepNs};
}

Cost mma_cost(const Problem& p, const DeviceProperties& d) {
  const MmaShape shape = mma_shape(p, d);
  const int64_t tiles = (widths(p.cell).gates + 1) / 2, k_steps = ceil_div(p.H, 16);
  // Shared memory: fragments of W_hh once, of h once for each group, and h on its way in.
  const double clocks = double(shape.groups) * k_steps * (4 * tiles + 4) + k_steps * 4;
  const int64_t sets = int64_t{shape.row_tiles} * p.directions;
  const int64_t rounds = shape.blocks == 1 ? ceil_div(sets, d.multiprocessors) : 1;
  const bool exchanges = shape.blocks > 1;
  return {.shared_bytes = clocks * kBankBytes,
          .l2_bytes = streamed_bytes(p) +
                      double(p.B) * p.H * store_bytes(p.type) * shape.blocks * p.directions,
          .dram_bytes = streamed_bytes(p),
          .barriers = 5,
          .exchanges = exchanges ? 1 : 0,
          .instructions =
              double(ceil_div(k_steps, shape.splits)) * (3 * tiles + 4) + kPointwiseInstructions,
          .nanoseconds =
              rounds * (clocks + kBlockStepClocks) / kGigahertz + (exchanges ? kGridStepNs : 0)};
}

Cost stepwise_cost(const Problem& p, const DeviceProperties& d) {
  const int G = widths(p.cell).gates;
  const double fmas = double(p.B) * p.directions * G * p.H * p.K;
  const double rate =
      product_fma_per_clock(p.type, d) * d.multiprocessors * kGigahertz * kProductEfficiency;
  const double weights = double(G) * p.H * p.K * p.directions * store_bytes(p.type);
  // The product is written and read again, and so is c.
  const double pointwise = 2.0 * p.B * p.directions * p.H * (G + 1) * math_bytes(p.type);
  return {.shared_bytes = 0,
          .l2_bytes = streamed_bytes(p) + weights + pointwise,
          .dram_bytes = streamed_bytes(p) + (weights > d.l2_bytes ? weights : 0),
          .barriers = 0,
          .exchanges = 1 + p.directions,
          .instructions = 0,
          .nanoseconds = kLaunchNs + p.directions * kProductNs + fmas / rate};
}

}  // namespace

const char* name(Tier tier) {
  constexpr const char* kNames[kNumTiers] = {"stepwise", "block", "grid", "mma"};
  return kNames[static_cast<int>(tier)];
}

BlockShape block_shape(Cell cell, Type type, int64_t H) {
  const int64_t width = widths(cell).gates * H;
  const int64_t k = ceil_div(H, kBlockParts) * kBlockParts;
  const int64_t j = ceil_div(width, kBlockParts * kBlockRun) * kBlockParts * kBlockRun;
  return {.threads = static_cast<int>(
              std::min<int64_t>(ceil_div(H * kBlockParts, 32) * 32, 2 * kBlockThreads)),
          .shared_forward = (k * width + 2 * k * kBlockRows) * math_bytes(type),
          .shared_backward = (j * H + 2 * j * kBlockRows) * math_bytes(type)};
}

GridShape grid_shape(const Problem& p, const DeviceProperties& d) {
  // One block a multiprocessor.
  const int64_t most = std::max<int64_t>(d.multiprocessors / p.directions, 1);
  const int64_t G = widths(p.cell).gates, units = std::max<int64_t>(ceil_div(p.H, most), 1);
  const int64_t blocks = ceil_div(p.H, units), tiles = ceil_div(p.B, kGridRows);
  const int64_t weights = ceil_div(units * G * p.H * store_bytes(p.type), 16) * 16;
  return {
      .units = static_cast<int>(units),
      .blocks = static_cast<int>(blocks),
      .threads = static_cast<int>(
          std::clamp<int64_t>(units * tiles * 32, 128, grid_threads(store_bytes(p.type)))),
      .shared_forward = weights + 2 * units * p.B * math_bytes(p.type),
      .shared_backward = weights + units * (G * tiles * kGridRows + 2 * p.B) * math_bytes(p.type),
      .partials = 2 * p.directions * blocks * blocks * p.B * units};
}

MmaShape mma_shape(const Problem& p, const DeviceProperties& d) {
  const int64_t tiles = (widths(p.cell).gates + 1) / 2, k_steps = ceil_div(p.H, 16);
  const int64_t all = ceil_div(p.H, kMmaUnits), row_tiles = ceil_div(p.B, kMmaRows);
  const int64_t most = kMmaThreads / 32;
  const auto shape = [&](int64_t groups) {
    int64_t splits = 1;
    while (2 * splits * groups <= most && 2 * splits <= std::min<int64_t>(k_steps, 8)) splits *= 2;
    const int64_t h = kMmaRows * (k_steps * 16 + 8) * 2,
                  partials = groups * splits * tiles * (kMmaRows / 8) * 4 * 32 * 4;
    return MmaShape{.groups = static_cast<int>(groups),
                    .splits = static_cast<int>(splits),
                    .blocks = static_cast<int>(ceil_div(all, groups)),
                    .row_tiles = static_cast<int>(row_tiles),
                    .shared = groups * tiles * k_steps * 512 + std::max(h, partials)};
  };
  if (all <= most && shape(all).shared <= d.shared_per_block_optin) return shape(all);
  const int64_t sets = std::max<int64_t>(row_tiles * p.directions, 1);
  const int64_t blocks = std::max<int64_t>(d.multiprocessors / sets, 1);
  return shape(std::clamp<int64_t>(ceil_div(all, blocks), 1, most));
}

bool supports(Tier tier, const Problem& p, const DeviceProperties& d) {
  if (tier == Tier::Stepwise) return true;
  if (p.projection) return false;
  if (tier == Tier::Mma) {
    if (p.backward || (p.type != Type::BF16 && p.type != Type::F16) || d.major < 8) return false;
    const MmaShape shape = mma_shape(p, d);
    const int64_t together = int64_t{shape.blocks} * shape.row_tiles * p.directions;
    return shape.shared <= d.shared_per_block_optin &&
           (shape.blocks == 1 || (d.cooperative_launch && together <= d.multiprocessors));
  }
  if (tier == Tier::Grid) {
    const GridShape shape = grid_shape(p, d);
    return d.cooperative_launch && shape.blocks * p.directions <= d.multiprocessors &&
           std::max(shape.shared_forward, shape.shared_backward) <= d.shared_per_block_optin;
  }
  const BlockShape shape = block_shape(p.cell, p.type, p.H);
  return shape.threads <= kBlockThreads &&
         std::max(shape.shared_forward, shape.shared_backward) <= d.shared_per_block_optin;
}

Cost predict(Tier tier, const Problem& p, const DeviceProperties& d) {
  switch (tier) {
    case Tier::Block:
      return block_cost(p, d);
    case Tier::Grid:
      return grid_cost(p, d);
    case Tier::Mma:
      return mma_cost(p, d);
    default:
      return stepwise_cost(p, d);
  }
}

Plan make_plan(const Problem& p, const DeviceProperties& d) {
  Plan plan{
      .tier = Tier::Stepwise, .chunk_rows = 0, .grid = grid_shape(p, d), .mma = mma_shape(p, d)};
  for (const Tier tier : {Tier::Block, Tier::Grid, Tier::Mma}) {
    if (supports(tier, p, d) &&
        predict(tier, p, d).nanoseconds < predict(plan.tier, p, d).nanoseconds) {
      plan.tier = tier;
    }
  }
  const int64_t row_bytes = widths(p.cell).grad_gates * p.H * p.directions * math_bytes(p.type);
  plan.chunk_rows = std::max(kChunkBytes / std::max<int64_t>(row_bytes, 1), p.B);
  return plan;
}

// ---- What tests force ----

namespace {
std::atomic<int> forced_tier{-1};
std::atomic<int64_t> forced_chunk_rows{0};
}  // namespace

void force_plan(const std::string& tier, int64_t chunk_rows) {
  int found = -1;
  for (int i = 0; i < kNumTiers; ++i) {
    if (tier == name(Tier(i))) found = i;
  }
  if (found < 0 && !tier.empty()) {
    throw std::runtime_error("seqkern: no CUDA tier is called '" + tier + "'");
  }
  forced_tier = found;
  forced_chunk_rows = chunk_rows;
}

Plan plan_for(const Problem& p, const DeviceProperties& d) {
  Plan plan = make_plan(p, d);
  if (forced_tier >= 0 && !(Tier(forced_tier.load()) == Tier::Mma && p.backward)) {
    plan.tier = Tier(forced_tier.load());
    if (!supports(plan.tier, p, d)) {
      throw std::runtime_error(std::string("seqkern: the CUDA tier '") + name(plan.tier) +
                               "' was forced on a layer that it does not support");
    }
  }
  if (forced_chunk_rows > 0) plan.chunk_rows = forced_chunk_rows;
  return plan;
}

}  // namespace seqkern::cuda
