#include "cuda/plan.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace seqkern::cuda {

namespace {

// What the largest array of a chunk may take of the device's memory.
constexpr int64_t kChunkBytes = int64_t{128} << 20;
// Blocks of a launch along z, on every device.
constexpr int64_t kMostGridZ = 65535;

struct Widths {
  int gates, saved, grad_gates;
};
template <class C>
constexpr Widths kWidthsOf{C::kGates, C::kSaved, C::kGradGates};
constexpr Widths kWidths[kNumCells] = {kWidthsOf<Lstm>, kWidthsOf<Gru>, kWidthsOf<RnnTanh>,
                                       kWidthsOf<RnnRelu>};
Widths widths(Cell cell) { return kWidths[static_cast<int>(cell)]; }

int store_bytes(Type type) { return type == Type::F64 ? 8 : type == Type::F32 ? 4 : 2; }
int64_t math_bytes(Type type) { return type == Type::F64 ? 8 : 4; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Prediction. Throughputs per multiprocessor and clock are from the CUDA C++ Programming
// Guide's table of arithmetic instructions; the rest are round figures. ----

constexpr double kGigahertz = 1.75;
// Of a step that is launched by itself, measured: what the host needs for a launch and for a
// product of the BLAS, and how long the device takes from one to the next.
constexpr double kHostLaunchNs = 6000, kHostProductNs = 9000, kLaunchNs = 2500;
// Of a step that stays in a block: two trips through shared memory, the exchange in the quad, the
// cell's functions, the barrier.
constexpr double kBlockStepClocks = 400;
// Of a step that crosses blocks, measured (docs/cuda.md): what blocks need to know that all have
// published, and for each KiB of h that a block reads, or of partial sums that it reads or writes.
constexpr double kExchangeNs = 1300, kStatesNs = 12.5, kPartialsNs = 20;
// And for each unit whose partial sum a block of the grid tier writes and others wait for.
constexpr double kPartialUnitNs = 2.5;
// The grid tier's pointwise part, with its barriers and trips to L2; measured.
constexpr double kGridPointwiseClocks = 1700;
// The tensor cores' kernels, measured: clocks of any step where blocks exchange, and of these what
// each gate adds; of one where a block has all units; of a warp's step of 16 terms, and of the
// pointwise part for a pair of each lane, on one of a multiprocessor's four schedulers.
struct MmaClocks {
  double step, gate, alone, terms, pair;
};
constexpr MmaClocks kMmaForward{350, 325, 2300, 60, 80}, kMmaBackward{1650, 140, 3700, 60, 200};
// Bytes that shared memory moves in a clock, and a multiprocessor's part of what L2 and DRAM do.
constexpr double kBankBytes = 128, kL2Bytes = 32, kDramBytes = 10;
// Around a step's sum: the exchange between lanes, biases, the cell, loads and stores.
constexpr double kPointwiseInstructions = 150;
// Of a multiprocessor, each of which issues an instruction of a warp in a clock.
constexpr int64_t kSchedulers = 4;
// At most, of a thread of the block tier.
constexpr int kBlockRegisters = 168;
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

// What every tier reads and writes. Forward the input product and the output; backward the
// output's gradient, what forward saved (of the others h), c or the GRU's h_{t-1}, gate gradients.
double streamed_bytes(const Problem& p) {
  const Widths w = widths(p.cell);
  const double pairs = double(p.B) * p.directions * p.H;
  if (!p.backward) return pairs * (w.gates * math_bytes(p.type) + store_bytes(p.type));
  const int stored = 1 + std::max(w.saved, 1) + w.grad_gates + (p.cell == Cell::Gru);
  return pairs * (stored * store_bytes(p.type) + (p.cell == Cell::Lstm) * math_bytes(p.type));
}

// As if nothing overlapped.
double memory_ns(double l2_bytes, double dram_bytes, const DeviceProperties& d) {
  return std::max(l2_bytes / kL2Bytes, dram_bytes / kDramBytes) / d.multiprocessors / kGigahertz;
}

int block_outputs(const Problem& p) { return p.backward ? 1 : widths(p.cell).gates; }

// Of `shape` its rows and size count.
int block_held_terms(const Problem& p, const BlockShape& shape) {
  const int G = widths(p.cell).gates;
  return block_held(store_bytes(p.type), shape.size, G) * (G / block_outputs(p)) * shape.rows /
         kBlockPairs;
}

BlockSum block_sum_of(const Problem& p, const BlockShape& shape) {
  const int64_t H = std::min<int64_t>(p.H, 2 * kBlockLargest);  // no block can do more
  const int64_t width = p.backward ? widths(p.cell).gates * H : H;
  return block_sum(static_cast<int>(width), shape.rows, block_held_terms(p, shape),
                   block_outputs(p), static_cast<int>(math_bytes(p.type)));
}

Cost block_cost(const Problem& p, const DeviceProperties& d) {
  const BlockShape shape = block_shape(p, d);
  const BlockSum sum = block_sum_of(p, shape);
  const int outputs = block_outputs(p), units = kBlockPairs / shape.rows;
  const int64_t blocks = ceil_div(p.B, shape.rows) * p.directions;
  const int64_t fit = std::max<int64_t>(
      std::min({d.shared_per_multiprocessor / (shape.shared + 1024),
                int64_t{d.threads_per_multiprocessor} / shape.threads,
                int64_t{d.registers_per_multiprocessor} / (shape.threads * kBlockRegisters)}),
      1);
  const int64_t rounds = ceil_div(blocks, d.multiprocessors * fit);
  const int64_t together = std::min(fit, ceil_div(blocks, d.multiprocessors));
  // Of a thread: multiplications; words through shared memory, which are values, weights that
  // registers do not hold and the exchange: three shuffles, and one for each doubling of the units.
  const double weights = double(block_held_terms(p, shape)) * units * outputs + sum.rest;
  const double fmas = weights * shape.rows;
  const double words = double(math_bytes(p.type)) / 4 *
                       (sum.terms * shape.rows + sum.rest + outputs * (3 + units / 2));
  const double warps = double(shape.threads) / 32 * together, bytes = streamed_bytes(p);
  // As if loads and arithmetic never overlapped: large batches are the BLAS's.
  const double clocks = warps * (32 * fmas / fma_per_clock(p.type, d) + words) +
                        std::ceil(warps / kSchedulers) * kPointwiseInstructions + kBlockStepClocks;
  return {.shared_bytes = warps * words * kBankBytes,
          .l2_bytes = bytes,
          .dram_bytes = bytes,
          .barriers = 1,
          .exchanges = 0,
          .instructions = fmas + words + kPointwiseInstructions,
          .nanoseconds = rounds * clocks / kGigahertz + memory_ns(bytes, bytes, d)};
}

// What blocks send each other: forward each reads all of h, backward each writes and reads a
// partial sum for every unit.
double exchanged_bytes(const Problem& p, int64_t blocks) {
  return double(p.B) * p.H * blocks * p.directions *
         (p.backward ? 2 * math_bytes(p.type) : store_bytes(p.type));
}

Cost grid_cost(const Problem& p, const DeviceProperties& d) {
  const int G = widths(p.cell).gates;
  const GridShape shape = grid_shape(p, d);
  const int64_t warps = shape.threads / 32, pairs = shape.units * p.B;
  const double words = double(math_bytes(p.type)) / 4, fma = fma_per_clock(p.type, d);
  // Of the busiest multiprocessor: clocks of its shared memory and of its arithmetic, instructions
  // of a warp, and how many warps have so many. And what it reads and writes.
  double shared, fmas, instructions, exchanged;
  int64_t busy;
  if (p.backward) {
    // For 32 sums a lane: its weights, and two runs of gate gradients, which some lanes share.
    const int64_t items = ceil_div(p.H, 4) * ceil_div(p.B, kGridRows), terms = shape.units * G;
    const double steps = double(ceil_div(items, 32)) * terms;
    shared = steps * words * 8;
    fmas = steps * 32 * 32 / fma;
    instructions = double(ceil_div(items, shape.threads)) * terms * 35;
    busy = std::min(ceil_div(items, 32), warps);
    exchanged = double(p.H + shape.units * shape.blocks) * p.B * math_bytes(p.type);
  } else {
    // A tile's weights and values, and for each of its sums three instructions and a shuffle.
    const int units = std::min(grid_units(G, store_bytes(p.type)), shape.units),
              run = grid_run(store_bytes(p.type));
    const int64_t rows = p.B <= 2 ? 2 : kGridRows, sums = units * G * rows;
    const int64_t chunks = ceil_div(p.H, 32 * run);
    const int64_t tiles = ceil_div(shape.units, units) * ceil_div(p.B, kGridRows);
    const int64_t work = tiles * chunks, share = ceil_div(work, warps);
    busy = std::min(work, warps);
    const int64_t slots = tiles + busy - 1;
    shared = work * double(units * G + rows) * run * store_bytes(p.type) / 4 + double(slots * sums);
    fmas = work * double(sums) * run * 32 / fma;
    instructions = double(share) * (sums * run + 30) + ceil_div(slots, busy) * sums * 4.0;
    exchanged = double(p.B) * p.H * store_bytes(p.type);
  }
  const int64_t rounds = ceil_div(pairs, shape.threads), pieces = ceil_div(p.H, shape.piece);
  const double clocks = std::max({shared, fmas, instructions * ceil_div(busy, kSchedulers)}) +
                        kGridPointwiseClocks * (rounds + (p.backward ? 0 : pieces - 1));
  const double dram = streamed_bytes(p);
  return {.shared_bytes = shared * kBankBytes,
          .l2_bytes = dram + exchanged_bytes(p, shape.blocks),
          .dram_bytes = dram,
          .barriers = p.backward ? 4 : static_cast<int>(2 + 2 * pieces),
          .exchanges = 1,
          .instructions = instructions + kPointwiseInstructions * rounds,
          .nanoseconds = clocks / kGigahertz + kExchangeNs +
                         (p.backward ? kPartialsNs : kStatesNs) * exchanged / 1024 +
                         (p.backward ? kPartialUnitNs * double(p.H) : 0) +
                         memory_ns(dram, dram, d)};
}

Cost mma_cost(const Problem& p, const DeviceProperties& d) {
  const MmaShape shape = mma_shape(p, d);
  const int64_t warps = int64_t{shape.groups} * shape.splits, units = shape.groups * kMmaUnits;
  const bool exchanges = shape.blocks > 1, split = shape.splits > 1;
  const int G = widths(p.cell).gates;
  const double steps = p.backward ? ceil_div(ceil_div(p.H, kMmaUnits) * G, 2) : ceil_div(p.H, 16);
  // Products of a block, each with what a step of 16 terms has for it; the fragments of W_hh that
  // registers do not hold.
  const double row_sets = shape.rows / 8;
  const double products = shape.groups * steps * (p.backward ? 1 : (G + 1) / 2 * row_sets);
  const double crossing = shape.groups * steps * row_sets * 256;
  const double fragments = double(shape.fragments) * (p.backward ? 256 : 512);
  const double shared = fragments + (p.backward && exchanges ? 0 : crossing);
  const double pairs = std::max<double>(1, double(units) * shape.rows / (32 * warps));
  const MmaClocks& of = p.backward ? kMmaBackward : kMmaForward;
  const double clocks = std::max(shared / kBankBytes, steps / shape.splits * of.terms) +
                        pairs * std::max<double>(warps / double(kSchedulers), 1) * of.pair +
                        (exchanges ? of.step + of.gate * G : of.alone);
  const int64_t sets = int64_t{shape.row_tiles} * p.directions;
  const int64_t rounds = exchanges ? 1 : ceil_div(sets, d.multiprocessors);
  const double dram = streamed_bytes(p);
  // Each block reads what all have written.
  const double exchanged = exchanges ? steps * 16 * shape.rows * 2 : 0;
  const double l2 = dram + exchanged * shape.blocks * sets;
  return {.shared_bytes = shared,
          .l2_bytes = l2,
          .dram_bytes = dram,
          .barriers = (exchanges ? 2 : 1) + split + (!p.backward && exchanges && shape.groups > 1),
          .exchanges = exchanges ? 1 : 0,
          .instructions = products / warps * 4 + pairs * kPointwiseInstructions,
          .nanoseconds = rounds * clocks / kGigahertz +
                         (exchanges ? kExchangeNs + exchanged / 1024 * kStatesNs : 0) +
                         memory_ns(l2 - exchanged * shape.blocks * sets, dram, d)};
}

Cost stepwise_cost(const Problem& p, const DeviceProperties& d) {
  const int G = widths(p.cell).gates;
  const double fmas = double(p.B) * p.directions * G * p.H * p.K;
  const double rate =
      product_fma_per_clock(p.type, d) * d.multiprocessors * kGigahertz * kProductEfficiency;
  const double weights = double(G) * p.H * p.K * p.directions * store_bytes(p.type);
  // The product is written and read again, and so is c, or its gradient. Backward the product is
  // the gradient of h.
  const double pointwise =
      2.0 * p.B * p.directions * p.H * ((p.backward ? 1 : G) + 1) * math_bytes(p.type);
  const double l2 = streamed_bytes(p) + weights + pointwise;
  const double dram = streamed_bytes(p) + (weights > d.l2_bytes ? weights : 0);
  return {.shared_bytes = 0,
          .l2_bytes = l2,
          .dram_bytes = dram,
          .barriers = 0,
          .exchanges = 1 + p.directions,
          .instructions = 0,
          .nanoseconds =
              std::max(kHostLaunchNs + p.directions * kHostProductNs,
                       (1 + p.directions) * kLaunchNs + fmas / rate + memory_ns(l2, dram, d))};
}

}  // namespace

const char* name(Tier tier) {
  constexpr const char* kNames[kNumTiers] = {"stepwise", "block", "grid", "mma"};
  return kNames[static_cast<int>(tier)];
}

BlockShape block_shape(const Problem& p, const DeviceProperties& d) {
  BlockShape shape{.rows = kBlockPairs, .size = kBlockLargest, .threads = 0, .shared = 0};
  if (p.type != Type::F64) {
    // Large batches of 16-bit types are the tensor cores'.
    for (const int rows : {2, 1}) {
      const bool fits = ceil_div(p.B, rows) * p.directions <= d.multiprocessors;
      if (p.type != Type::F32 ? rows == 1 : fits) shape.rows = rows;
    }
    for (const int size : kBlockSizes) {
      if (p.H <= size) shape.size = size;
    }
  }
  const int64_t H = std::min<int64_t>(p.H, 2 * kBlockLargest);  // no block can do more
  const BlockSum sum = block_sum_of(p, shape);
  shape.threads = static_cast<int>(ceil_div(H, kBlockUnits) * 32);
  shape.shared = (2 * block_parts(shape.rows) * sum.stride + int64_t{shape.threads} * sum.rest) *
                 math_bytes(p.type);
  return shape;
}

GridShape grid_shape(const Problem& p, const DeviceProperties& d) {
  // One block a multiprocessor.
  const int64_t most = std::max<int64_t>(d.multiprocessors / p.directions, 1);
  const int64_t G = widths(p.cell).gates, units = std::max<int64_t>(ceil_div(p.H, most), 1);
  const int64_t blocks = ceil_div(p.H, units), tiles = ceil_div(p.B, kGridRows);
  const int64_t stored = store_bytes(p.type), math = math_bytes(p.type);
  const int64_t width = ceil_div(p.H, kGridColumns) * kGridColumns, pairs = units * p.B;
  const int64_t most_threads = grid_threads(store_bytes(p.type), p.backward);
  const auto threads = [&](int64_t wanted) {
    return std::clamp<int64_t>(ceil_div(wanted, 32) * 32, 128, most_threads);
  };
  GridShape shape{.units = static_cast<int>(units),
                  .blocks = static_cast<int>(blocks),
                  .threads = 0,
                  .piece = static_cast<int>(width),
                  .sources = 1,
                  .shared = units * G * width * stored,
                  .partials = 0};
  const auto room = [&] { return std::max<int64_t>(d.shared_per_block_optin - shape.shared, 0); };
  if (p.backward) {
    const int64_t padded = tiles * kGridRows, runs = std::max<int64_t>(units * padded / 4, 1);
    const int64_t sources = ceil_div(blocks, kGridInFlight);
    shape.threads = static_cast<int>(threads(std::max(ceil_div(p.H, 4) * tiles, runs * sources)));
    shape.shared += (units * G * padded + 2 * pairs) * math;
    const int64_t fit = std::min<int64_t>(shape.threads / runs, room() / (runs * 4 * math));
    shape.sources = static_cast<int>(std::clamp<int64_t>(fit, 1, sources));
    shape.shared += shape.sources * runs * 4 * math;
    shape.partials = 2 * p.directions * blocks * width * padded;
  } else {
    const int64_t together =
        std::min<int64_t>(units, grid_units(static_cast<int>(G), store_bytes(p.type)));
    const int64_t chunk = 32 * grid_run(store_bytes(p.type));
    const int64_t all = ceil_div(units, together) * tiles;
    shape.threads = static_cast<int>(threads(std::max(32 * all * ceil_div(width, chunk), pairs)));
    const int64_t slots = all + shape.threads / 32, rows = std::min<int64_t>(p.B, kGridRows);
    shape.shared += (slots * together * G * rows + (G + 1) * units + 2 * pairs) * math;
    // Of h what there is room for, in equal pieces; too little of it takes too many trips.
    const int64_t row_bytes = std::max<int64_t>(p.B * stored * kGridColumns, 1);
    const int64_t fit = std::max<int64_t>(room() / row_bytes, 4) * kGridColumns;
    const int64_t pieces = ceil_div(width, fit);
    shape.piece = static_cast<int>(
        ceil_div(std::max<int64_t>(width, 1), std::max<int64_t>(pieces, 1) * kGridColumns) *
        kGridColumns);
    shape.shared += shape.piece * p.B * stored;
  }
  return shape;
}

template <int kTiles>
int held_fragments(bool backward, bool split) {
  if (backward) return split ? kMmaHeldBackward<kTiles, true> : kMmaHeldBackward<kTiles, false>;
  return split ? kMmaHeldForward<kTiles, true> : kMmaHeldForward<kTiles, false>;
}

MmaShape mma_shape(const Problem& p, const DeviceProperties& d) {
  const int64_t G = widths(p.cell).gates, all = ceil_div(p.H, kMmaUnits);
  const int64_t most = kMmaThreads / 32;
  // Steps of a sum, and fragments of W_hh that each takes, of so many bytes.
  const int64_t steps = p.backward ? ceil_div(all * G, 2) : ceil_div(p.H, 16);
  const int64_t fragments_of_step = p.backward ? 1 : (G + 1) / 2;
  const int64_t fragment_bytes = p.backward ? 256 : 512;
  const auto shape = [&](int64_t rows, int64_t groups) {
    const int64_t row_tiles = ceil_div(p.B, rows), sets = row_tiles * p.directions;
    const int64_t most_splits = std::min<int64_t>(steps, p.backward ? 16 : 8);
    int64_t splits = 1;
    while (2 * splits * groups <= most && 2 * splits <= most_splits) splits *= 2;
    const int64_t warps = groups * splits, blocks = ceil_div(all, groups);
    const int64_t held = (rows == 8 ? held_fragments<1>(p.backward, splits > 1)
                                    : held_fragments<2>(p.backward, splits > 1)) /
                         fragments_of_step;
    const int64_t fragments =
        warps * std::max<int64_t>(ceil_div(steps, splits) - held, 0) * fragments_of_step;
    // What crosses units, h or gate gradients, and the splits' partial sums.
    const int64_t crossing = steps * 16 * rows * 2;
    const int64_t here = blocks == 1 ? 2 : p.backward ? 0 : 1;
    const int64_t sums =
        splits > 1 ? warps * fragments_of_step * (p.backward ? rows / 4 : rows / 2) : 0;
    return MmaShape{.rows = static_cast<int>(rows),
                    .groups = static_cast<int>(groups),
                    .splits = static_cast<int>(splits),
                    .blocks = static_cast<int>(blocks),
                    .row_tiles = static_cast<int>(row_tiles),
                    .fragments = static_cast<int>(fragments),
                    .shared = std::max<int64_t>(
                        fragments * fragment_bytes + here * crossing + sums * 32 * 4, 128),
                    .exchange = blocks > 1 ? 2 * sets * steps * 16 * rows : 0};
  };
  // Few rows a block while there are multiprocessors for all of them: each has less to do.
  const int64_t rows = ceil_div(p.B, 8) * p.directions <= d.multiprocessors ? 8 : 16;
  if (all <= most && shape(rows, all).shared <= d.shared_per_block_optin) return shape(rows, all);
  const int64_t spread_rows = p.B <= 8 ? 8 : 16;
  const int64_t sets = std::max<int64_t>(ceil_div(p.B, spread_rows) * p.directions, 1);
  const int64_t blocks = std::max<int64_t>(d.multiprocessors / sets, 1);
  return shape(spread_rows, std::clamp<int64_t>(ceil_div(all, blocks), 1, most));
}

bool supports(Tier tier, const Problem& p, const DeviceProperties& d) {
  if (tier == Tier::Stepwise) return true;
  if (p.projection) return false;
  if (tier == Tier::Mma) {
    if ((p.type != Type::BF16 && p.type != Type::F16) || d.major < 8) return false;
    const MmaShape shape = mma_shape(p, d);
    const int64_t together = int64_t{shape.blocks} * shape.row_tiles * p.directions;
    return shape.shared <= d.shared_per_block_optin && shape.row_tiles <= kMostGridZ &&
           (shape.blocks == 1 || (d.cooperative_launch && together <= d.multiprocessors));
  }
  if (tier == Tier::Grid) {
    const GridShape shape = grid_shape(p, d);
    return d.cooperative_launch && shape.blocks * p.directions <= d.multiprocessors &&
           shape.shared <= d.shared_per_block_optin;
  }
  const BlockShape shape = block_shape(p, d);
  return shape.threads <= block_threads(shape.size) && shape.shared <= d.shared_per_block_optin;
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

Plan make_plan(const Problem& problem, const DeviceProperties& d) {
  Problem p = problem;
  p.B = std::max<int64_t>(p.B, 1);  // of an empty batch nothing runs
  Plan plan{.tier = Tier::Stepwise,
            .chunk_rows = 0,
            .block = block_shape(p, d),
            .grid = grid_shape(p, d),
            .mma = mma_shape(p, d)};
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
