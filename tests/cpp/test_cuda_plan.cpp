// The CUDA planner with the properties of real devices typed in. Exit status 1 where a plan is not
// as it should be.
#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "cuda/block.h"
#include "cuda/plan.h"
#include "gpus.h"

using namespace seqkern::cuda;
using seqkern::Cell;

namespace {

int failures = 0;

#define CHECK(condition, ...)                                         \
  do {                                                                \
    if (!(condition)) {                                               \
      ++failures;                                                     \
      std::printf("FAIL %s:%d %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                       \
      std::printf("\n");                                              \
    }                                                                 \
  } while (false)

Problem problem(Cell cell, Type type, int64_t B, int64_t H, int directions = 1) {
  return {cell, type, B, H, H, directions, false, false};
}

Problem backward(Problem p) {
  p.backward = true;
  return p;
}

struct Expected {
  const Gpu& gpu;
  Problem problem;
  Tier tier;
};

// The largest H whose W_hh a block can hold forward.
int64_t largest_block(const Gpu& gpu, Cell cell, Type type) {
  int64_t H = 0;
  while (supports(Tier::Block, problem(cell, type, 4, H + 1), gpu.properties)) ++H;
  return H;
}

// The same for the tensor-core kernels of one pass: registers and shared memory of all blocks.
int64_t largest_mma(const Gpu& gpu, Cell cell, bool backwards) {
  const auto at = [&](int64_t H) {
    Problem p = problem(cell, Type::BF16, 16, H);
    p.backward = backwards;
    return supports(Tier::Mma, p, gpu.properties);
  };
  int64_t H = 0;
  while (at(H + 8)) H += 8;
  return H;
}

}  // namespace

int main() {
  const Expected expected[] = {
      // Registers hold all of W_hh.
      {kT4, problem(Cell::Lstm, Type::F32, 16, 64), Tier::Block},
      {kA100, problem(Cell::Lstm, Type::F32, 16, 64), Tier::Block},
      {kRtx4090, problem(Cell::Lstm, Type::F32, 16, 64), Tier::Block},
      {kH100, problem(Cell::Lstm, Type::F32, 16, 64), Tier::Block},
      {kT4, problem(Cell::Lstm, Type::F32, 16, 56), Tier::Block},
      {kT4, problem(Cell::RnnTanh, Type::F32, 16, 64), Tier::Block},
      {kH100, problem(Cell::Gru, Type::F32, 16, 96), Tier::Block},
      {kRtx4090, problem(Cell::Gru, Type::F32, 16, 96), Tier::Block},
      // Double the bytes.
      {kH100, problem(Cell::Lstm, Type::F64, 16, 64), Tier::Block},
      {kA100, problem(Cell::Lstm, Type::F64, 16, 96), Tier::Grid},
      // No more than 512 threads, whatever the memory.
      {kH100, problem(Cell::RnnRelu, Type::F32, 16, 128), Tier::Block},
      {kH100, problem(Cell::RnnRelu, Type::F32, 16, 129), Tier::Grid},
      // Many rounds of blocks lose to products that use the whole device.
      {kA100, problem(Cell::Lstm, Type::F32, 16384, 96), Tier::Stepwise},
      // Blocks that share the units: each of an A100's takes 9 of 928, 131 KiB of weights, and h is
      // 15 KiB. Of 1024 it takes 10, 160 KiB, and h in 2 KiB pieces, a trip to L2 for each.
      {kA100, problem(Cell::Lstm, Type::F32, 4, 928), Tier::Grid},
      {kA100, problem(Cell::Lstm, Type::F32, 4, 1024), Tier::Stepwise},
      {kA100, problem(Cell::Lstm, Type::F32, 16, 1024), Tier::Stepwise},
      // Tensor cores: for large batches or more than 128 units.
      {kA100, problem(Cell::Lstm, Type::BF16, 16, 96), Tier::Block},
      {kA100, problem(Cell::Lstm, Type::BF16, 512, 96), Tier::Mma},
      {kA100, problem(Cell::Lstm, Type::F16, 16, 1024), Tier::Mma},
      {kA100, problem(Cell::Gru, Type::BF16, 64, 512), Tier::Mma},
      {kH100, problem(Cell::Lstm, Type::BF16, 16, 768), Tier::Mma},
      // Also for few rows, where blocks exchange anyway; measured.
      {kH100, problem(Cell::Lstm, Type::F16, 8, 256), Tier::Mma},
      {kH100, problem(Cell::RnnTanh, Type::F16, 32, 192), Tier::Mma},
      {kH100, problem(Cell::RnnTanh, Type::F16, 1, 192), Tier::Mma},
      {kH100, backward(problem(Cell::Lstm, Type::F16, 8, 512)), Tier::Mma},
      {kH100, backward(problem(Cell::Gru, Type::F16, 1, 384)), Tier::Mma},
      {kT4, problem(Cell::Lstm, Type::F16, 16, 48), Tier::Block},
      {kH100, problem(Cell::Lstm, Type::BF16, 4096, 1024), Tier::Stepwise},
      {kH100, backward(problem(Cell::Lstm, Type::BF16, 16, 768)), Tier::Mma},
      {kA100, backward(problem(Cell::Gru, Type::F16, 16, 96)), Tier::Block},
      {kH100, problem(Cell::Lstm, Type::F32, 16, 1024), Tier::Grid},
      {kH100, problem(Cell::Lstm, Type::F32, 4, 2048), Tier::Stepwise},
      {kH100, problem(Cell::Lstm, Type::F32, 64, 512), Tier::Grid},
      {kH100, backward(problem(Cell::Lstm, Type::F32, 16, 768)), Tier::Grid},
      // Two directions have half the blocks each.
      {kH100, problem(Cell::Lstm, Type::F32, 16, 1024, 2), Tier::Stepwise},
      {kH100, problem(Cell::Gru, Type::F32, 16, 512, 2), Tier::Grid},
  };
  for (const Expected& e : expected) {
    const Plan plan = make_plan(e.problem, e.gpu.properties);
    CHECK(plan.tier == e.tier, "%s cell %d type %d B %d H %d: got %s", e.gpu.name,
          int(e.problem.cell), int(e.problem.type), int(e.problem.B), int(e.problem.H),
          name(plan.tier));
  }

  for (const Gpu& gpu : kGpus) {
    const DeviceProperties& d = gpu.properties;
    for (int cell = 0; cell < seqkern::kNumCells; ++cell) {
      for (int type = 0; type < kNumTypes; ++type) {
        for (int64_t H : {1, 2, 3, 17, 31, 64, 100, 128, 129, 500, 4096}) {
          for (int64_t B : {0, 1, 5, 64, 5000}) {
            for (int directions : {1, 2}) {
              const Problem p = problem(Cell(cell), Type(type), B, H, directions);
              const Plan plan = make_plan(p, d);
              CHECK(supports(plan.tier, p, d), "%s chose what it does not support", gpu.name);
              CHECK(plan.chunk_rows >= B && plan.chunk_rows > 0, "%s chunk_rows %ld", gpu.name,
                    long(plan.chunk_rows));
              if (plan.tier == Tier::Block) {
                const BlockShape& b = plan.block;
                CHECK(b.threads % 32 == 0 && b.threads * kBlockUnits >= H * 32 &&
                          b.threads <= block_threads(b.size) && b.size >= H,
                      "%d threads for H %d", b.threads, int(H));
                CHECK(b.shared <= d.shared_per_block_optin, "%s", gpu.name);
                const auto blocks = [&](int rows) { return (B + rows - 1) / rows * directions; };
                CHECK(b.rows == 4 || p.type == Type::BF16 || p.type == Type::F16 ||
                          blocks(b.rows) <= d.multiprocessors,
                      "%d rows", b.rows);
                CHECK(b.rows == 1 || p.type != Type::F32 || blocks(b.rows / 2) > d.multiprocessors,
                      "%d rows", b.rows);
              }
              if (plan.tier == Tier::Grid) {
                const GridShape& g = plan.grid;
                CHECK(g.blocks * directions <= d.multiprocessors, "%s: %d blocks", gpu.name,
                      g.blocks);
                CHECK(int64_t{g.blocks} * g.units >= H && int64_t{g.blocks - 1} * g.units < H,
                      "%s: %d blocks of %d units for H %d", gpu.name, g.blocks, g.units, int(H));
                CHECK(g.threads % 32 == 0, "%d threads", g.threads);
                CHECK(g.piece % kGridColumns == 0 && g.piece > 0 && g.sources == 1,
                      "%s: pieces of %d, %d sources", gpu.name, g.piece, g.sources);
              }
              if (plan.tier == Tier::Mma) {
                const MmaShape& m = plan.mma;
                CHECK(32 * m.groups * m.splits <= kMmaThreads, "%d groups, %d splits", m.groups,
                      m.splits);
                CHECK(m.blocks * m.groups * kMmaUnits >= H && m.row_tiles * m.rows >= B,
                      "%d blocks of %d groups for H %d", m.blocks, m.groups, int(H));
              }
            }
          }
        }
      }
    }
    const int64_t lstm = largest_block(gpu, Cell::Lstm, Type::F32),
                  gru = largest_block(gpu, Cell::Gru, Type::F32),
                  rnn = largest_block(gpu, Cell::RnnTanh, Type::F32);
    CHECK(lstm <= gru && gru <= rnn && rnn == kBlockLargest, "%s: H up to %d %d %d", gpu.name,
          int(lstm), int(gru), int(rnn));
    std::printf("%s: block tier in float32 to H %d (LSTM), %d (GRU), %d (RNN)\n", gpu.name,
                int(lstm), int(gru), int(rnn));
    std::printf("%s: mma tier in bfloat16 forward to H %d (LSTM), %d (GRU); backward %d, %d\n",
                gpu.name, int(largest_mma(gpu, Cell::Lstm, false)),
                int(largest_mma(gpu, Cell::Gru, false)), int(largest_mma(gpu, Cell::Lstm, true)),
                int(largest_mma(gpu, Cell::Gru, true)));
    Problem projected = problem(Cell::Lstm, Type::F32, 4, 32);
    projected.projection = true;
    projected.K = 16;
    CHECK(make_plan(projected, d).tier == Tier::Stepwise, "%s: projection", gpu.name);
  }

  // Shared memory has W_hh where registers do not, whole terms of 16 lanes' sums at least, and two
  // buffers of values for all rows.
  for (const Cell cell : {Cell::Lstm, Cell::Gru, Cell::RnnTanh}) {
    for (int64_t H : {1, 40, 48, 49, 96, 97, 128}) {
      for (int64_t B : {1, 200, 1000}) {
        for (const bool backwards : {false, true}) {
          Problem p = problem(cell, Type::F32, B, H);
          p.backward = backwards;
          const BlockShape b = block_shape(p, kH100.properties);
          const int64_t G = cell == Cell::Lstm ? 4 : cell == Cell::Gru ? 3 : 1;
          const int64_t held = block_held(4, b.size, int(G)) * 4;
          const int64_t rest = std::max<int64_t>(H - held, 0) * G * H * 4;
          const int64_t values = 2 * (backwards ? G : 1) * H * b.rows * 4;
          CHECK(b.rows == (B == 1 ? 1 : B == 200 ? 2 : 4), "B %d: %d rows", int(B), b.rows);
          CHECK(b.shared >= rest + values, "H %d: %d bytes", int(H), int(b.shared));
          CHECK(b.shared < rest * 3 / 2 + 2 * values + 32 * KiB, "H %d: %d bytes", int(H),
                int(b.shared));
        }
      }
    }
  }
  // With what registers hold.
  for (const bool backwards : {false, true}) {
    const int64_t H = largest_mma(kA100, Cell::Lstm, backwards);
    CHECK(H >= (backwards ? 1536 : 1024), "A100: H up to %d", int(H));
  }
  CHECK(largest_mma(kT4, Cell::Lstm, false) == 0, "a T4 has no such instruction");
  // One block for each 16 rows, which are CUDA's third dimension.
  CHECK(supports(Tier::Mma, problem(Cell::Lstm, Type::BF16, 65535 * 16, 8), kA100.properties), "B");
  CHECK(!supports(Tier::Mma, problem(Cell::Lstm, Type::BF16, 65535 * 16 + 1, 8), kA100.properties),
        "B");
  for (const Gpu& gpu : {kA100, kH100}) {
    for (int64_t H = 8; H <= 2048; H += 8) {
      for (const bool backwards : {false, true}) {
        Problem p = problem(Cell::Gru, Type::F16, 20, H);
        p.backward = backwards;
        const MmaShape m = mma_shape(p, gpu.properties);
        // All of W_hh's fragments, but for those in registers.
        const int64_t warps = int64_t{m.groups} * m.splits, per_step = backwards ? 1 : 2;
        const int64_t steps = backwards ? ((H + 7) / 8 * 3 + 1) / 2 : (H + 15) / 16;
        const int64_t all = warps * per_step * ((steps + m.splits - 1) / m.splits);
        const bool split = m.splits > 1, few = m.rows == 8;
        const int held = backwards ? few     ? kMmaHeldBackward<1, true>
                                     : split ? kMmaHeldBackward<2, true>
                                             : kMmaHeldBackward<2, false>
                         : few     ? kMmaHeldForward<1, true>
                         : split   ? kMmaHeldForward<2, true>
                                   : kMmaHeldForward<2, false>;
        CHECK(m.fragments == std::max<int64_t>(all - held * warps, 0), "H %d: %d of %d fragments",
              int(H), m.fragments, int(all));
        CHECK(m.shared >= m.fragments * (backwards ? 256 : 512), "H %d: %d bytes", int(H),
              int(m.shared));
      }
    }
  }

  // h in as few pieces as there is room for, and partial sums summed by as many threads.
  const auto grid = [](Cell cell, int64_t B, int64_t H, bool backwards) {
    Problem p = problem(cell, Type::F32, B, H);
    p.backward = backwards;
    CHECK(supports(Tier::Grid, p, kA100.properties), "H %d", int(H));
    return grid_shape(p, kA100.properties);
  };
  CHECK(grid(Cell::Lstm, 16, 768, false).piece == 768, "all of h");
  CHECK(grid(Cell::Lstm, 64, 512, false).piece == 256, "128 KiB of h beside 40 of weights");
  CHECK(grid(Cell::Gru, 4, 1180, false).piece < 1184, "153 KiB of weights");
  CHECK(grid(Cell::Lstm, 16, 512, true).sources == 13, "103 blocks, 8 at a time");
  CHECK(grid(Cell::Lstm, 64, 512, true).sources == 6, "512 threads for 80 runs of rows");
  CHECK(grid(Cell::Lstm, 4, 1024, true).sources < 12, "160 KiB of weights");

  // What tests force comes back, or is refused.
  const Problem small = problem(Cell::Lstm, Type::F32, 4, 32);
  force_plan("stepwise", 7);
  CHECK(plan_for(small, kA100.properties).tier == Tier::Stepwise, "not forced");
  CHECK(plan_for(small, kA100.properties).chunk_rows == 7, "not forced");
  force_plan("block", 0);
  bool refused = false;
  try {
    plan_for(problem(Cell::Lstm, Type::F32, 4, 512), kA100.properties);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  CHECK(refused, "a block of H 512");
  force_plan("", 0);
  CHECK(plan_for(small, kA100.properties).tier == make_plan(small, kA100.properties).tier,
        "still forced");

  std::printf("test_cuda_plan: %d failures\n", failures);
  return failures != 0;
}
