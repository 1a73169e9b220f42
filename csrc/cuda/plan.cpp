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

double block_step(const Problem& p, const DeviceProperties& d) {
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
  const double clocks =
      double(ceil_div(p.H, kBlockParts) * (shape.threads / 32) * together) * (loads + fmas);
  return rounds * (clocks + kBlockStepClocks) / kGigahertz;
}

double grid_step(const Problem& p, const DeviceProperties& d) {
  const int G = widths(p.cell).gates;
  const GridShape shape = grid_shape(p, d);
  // Per warp and 32 terms of a sum: G weights and kGridRows values a lane.
  const double loads = double(math_bytes(p.type)) / 4 * (G + kGridRows);
  const double fmas = 32.0 * kGridRows * G / fma_per_clock(p.type, d);
  const double clocks =
      double(ceil_div(p.H, 32) * shape.units * ceil_div(p.B, kGridRows)) * (loads + fmas);
  return clocks / kGigahertz + kGridStepNs;
}

double stepwise_step(const Problem& p, const DeviceProperties& d) {
  const double fmas = double(p.B) * p.directions * widths(p.cell).gates * p.H * p.K;
  const double rate =
      product_fma_per_clock(p.type, d) * d.multiprocessors * kGigahertz * kProductEfficiency;
  return kLaunchNs + p.directions * kProductNs + fmas / rate;
}

}  // namespace

const char* name(Tier tier) {
  constexpr const char* kNames[kNumTiers] = {"stepwise", "block", "grid"};
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

bool supports(Tier tier, const Problem& p, const DeviceProperties& d) {
  if (tier == Tier::Stepwise) return true;
  if (p.projection) return false;
  if (tier == Tier::Grid) {
    const GridShape shape = grid_shape(p, d);
    return d.cooperative_launch && shape.blocks * p.directions <= d.multiprocessors &&
           std::max(shape.shared_forward, shape.shared_backward) <= d.shared_per_block_optin;
  }
  const BlockShape shape = block_shape(p.cell, p.type, p.H);
  return shape.threads <= kBlockThreads &&
         std::max(shape.shared_forward, shape.shared_backward) <= d.shared_per_block_optin;
}

double predicted_step(Tier tier, const Problem& p, const DeviceProperties& d) {
  if (tier == Tier::Block) return block_step(p, d);
  return tier == Tier::Grid ? grid_step(p, d) : stepwise_step(p, d);
}

Plan make_plan(const Problem& p, const DeviceProperties& d) {
  Plan plan{.tier = Tier::Stepwise, .chunk_rows = 0, .grid = grid_shape(p, d)};
  for (const Tier tier : {Tier::Block, Tier::Grid}) {
    if (supports(tier, p, d) && predicted_step(tier, p, d) < predicted_step(plan.tier, p, d)) {
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
  if (forced_tier >= 0) {
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
