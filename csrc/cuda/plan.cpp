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

double stepwise_step(const Problem& p, const DeviceProperties& d) {
  const double fmas = double(p.B) * p.directions * widths(p.cell).gates * p.H * p.K;
  const double rate =
      product_fma_per_clock(p.type, d) * d.multiprocessors * kGigahertz * kProductEfficiency;
  return kLaunchNs + p.directions * kProductNs + fmas / rate;
}

}  // namespace

const char* name(Tier tier) { return tier == Tier::Stepwise ? "stepwise" : "block"; }

BlockShape block_shape(Cell cell, Type type, int64_t H) {
  const int64_t width = widths(cell).gates * H;
  const int64_t k = ceil_div(H, kBlockParts) * kBlockParts;
  const int64_t j = ceil_div(width, kBlockParts * kBlockRun) * kBlockParts * kBlockRun;
  return {.threads = static_cast<int>(
              std::min<int64_t>(ceil_div(H * kBlockParts, 32) * 32, 2 * kBlockThreads)),
          .shared_forward = (k * width + 2 * k * kBlockRows) * math_bytes(type),
          .shared_backward = (j * H + 2 * j * kBlockRows) * math_bytes(type)};
}

bool supports(Tier tier, const Problem& p, const DeviceProperties& d) {
  if (tier == Tier::Stepwise) return true;
  if (p.projection) return false;
  const BlockShape shape = block_shape(p.cell, p.type, p.H);
  return shape.threads <= kBlockThreads &&
         std::max(shape.shared_forward, shape.shared_backward) <= d.shared_per_block_optin;
}

double predicted_step(Tier tier, const Problem& p, const DeviceProperties& d) {
  return tier == Tier::Block ? block_step(p, d) : stepwise_step(p, d);
}

Plan make_plan(const Problem& p, const DeviceProperties& d) {
  Plan plan{.tier = Tier::Stepwise, .chunk_rows = 0};
  if (supports(Tier::Block, p, d) &&
      predicted_step(Tier::Block, p, d) < predicted_step(Tier::Stepwise, p, d)) {
    plan.tier = Tier::Block;
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
