// What the tests set and ask of the modelled device, as torch.ops.seqkern_cuda_host.*, and what
// csrc/ops asks of a GPU.
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "cuda/plan.h"
#include "cuda_host/runtime.h"
#include "ops/device_cuda.h"
#include "ops/layer.h"

namespace seqkern::ops {

cuda::Stream current_stream(c10::Device /*device*/) { return nullptr; }

const cuda::DeviceProperties& properties(c10::Device /*device*/) {
  return cuda::device_properties(0);
}

namespace {

namespace host = cuda::host;

// "forward", "reverse", "greedy", or "random" with a seed.
void set_schedule(std::string name, int64_t seed) {
  TORCH_CHECK(name == "forward" || name == "reverse" || name == "greedy" || name == "random",
              "schedule must be forward, reverse, greedy or random, got '", name, "'");
  host::set_schedule(name == "forward"   ? host::Schedule::Forward
                     : name == "reverse" ? host::Schedule::Reverse
                     : name == "greedy"  ? host::Schedule::Greedy
                                         : host::Schedule::Random,
                     static_cast<uint64_t>(seed));
}

// Where a value is 0, that of an A100.
void set_device(int64_t capability, int64_t multiprocessors, int64_t shared_per_block_optin) {
  cuda::DeviceProperties p = host::default_device();
  if (capability > 0) {
    p.major = static_cast<int>(capability / 10);
    p.minor = static_cast<int>(capability % 10);
  }
  if (multiprocessors > 0) p.multiprocessors = static_cast<int>(multiprocessors);
  if (shared_per_block_optin > 0) {
    p.shared_per_block_optin = shared_per_block_optin;
    p.shared_per_multiprocessor = shared_per_block_optin + 1024;
  }
  host::set_device(p);
}

// Launches, cooperative ones among them, threads and switches since the last call.
std::tuple<int64_t, int64_t, int64_t, int64_t> take_counts() {
  const host::Counts c = host::take_counts();
  return {c.launches, c.cooperative, c.threads, c.switches};
}

std::vector<std::string> tiers() {
  std::vector<std::string> names;
  for (int i = 0; i < cuda::kNumTiers; ++i) names.emplace_back(cuda::name(cuda::Tier(i)));
  return names;
}

// type: f32, f64, bf16, f16.
cuda::Problem problem_of(const std::string& cell, const std::string& type) {
  constexpr const char* kTypes[cuda::kNumTypes] = {"f32", "f64", "bf16", "f16"};
  cuda::Problem problem{};
  int found = 0;
  for (int i = 0; i < kNumCells; ++i) {
    if (cell == cell_info(Cell(i)).name) problem.cell = Cell(i), ++found;
  }
  for (int i = 0; i < cuda::kNumTypes; ++i) {
    if (type == kTypes[i]) problem.type = cuda::Type(i), ++found;
  }
  TORCH_CHECK(found == 2, "no cell '", cell, "' or no type '", type, "'");
  return problem;
}

// Whether the tier can run the layer on the modelled device, forward and backward.
bool supports(std::string tier, std::string cell, std::string type, int64_t B, int64_t H, int64_t K,
              int64_t D, bool projection) {
  cuda::Problem problem = problem_of(cell, type);
  problem.B = B;
  problem.H = H;
  problem.K = K;
  problem.directions = static_cast<int>(D);
  problem.projection = projection;
  for (int i = 0; i < cuda::kNumTiers; ++i) {
    if (tier == cuda::name(cuda::Tier(i))) {
      const bool forward = cuda::supports(cuda::Tier(i), problem, cuda::device_properties(0));
      problem.backward = true;
      return forward && cuda::supports(cuda::Tier(i), problem, cuda::device_properties(0));
    }
  }
  TORCH_CHECK(false, "no tier '", tier, "'");
}

cuda::Problem problem_of(const std::string& cell, const std::string& type, int64_t B, int64_t H,
                         int64_t D, bool backward) {
  cuda::Problem problem = problem_of(cell, type);
  problem.B = B;
  problem.H = problem.K = H;
  problem.directions = static_cast<int>(D);
  problem.backward = backward;
  return problem;
}

// A launch of the block tier on the modelled device: rows of a block, the size that the kernel is
// for, and the bytes of shared memory.
std::tuple<int64_t, int64_t, int64_t> block_shape(std::string cell, std::string type, int64_t B,
                                                  int64_t H, int64_t D, bool backward) {
  const cuda::BlockShape s =
      cuda::block_shape(problem_of(cell, type, B, H, D, backward), cuda::device_properties(0));
  return {s.rows, s.size, s.shared};
}

// Of the tensor-core kernels: rows of a block, blocks of a direction and these rows, groups,
// splits, and the fragments of W_hh that registers do not hold.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> mma_shape(std::string cell,
                                                                  std::string type, int64_t B,
                                                                  int64_t H, int64_t D,
                                                                  bool backward) {
  const cuda::MmaShape s =
      cuda::mma_shape(problem_of(cell, type, B, H, D, backward), cuda::device_properties(0));
  return {s.rows, s.blocks, s.groups, s.splits, s.fragments};
}

// Of the grid tier: blocks of a direction, units of a block, columns of h that a block has in
// shared memory, threads that share the sum of what blocks sent.
std::tuple<int64_t, int64_t, int64_t, int64_t> grid_shape(std::string cell, std::string type,
                                                          int64_t B, int64_t H, int64_t D,
                                                          bool backward) {
  const cuda::GridShape s =
      cuda::grid_shape(problem_of(cell, type, B, H, D, backward), cuda::device_properties(0));
  return {s.blocks, s.units, s.piece, s.sources};
}

// A tier's name or "", and rows of a chunk or 0, for the planner's choice.
void force_plan(std::string tier, int64_t chunk_rows) { cuda::force_plan(tier, chunk_rows); }

}  // namespace

TORCH_LIBRARY(seqkern_cuda_host, m) {
  m.def("set_schedule", &set_schedule);
  m.def("set_device", &set_device);
  m.def("take_counts", &take_counts);
  m.def("tiers", &tiers);
  m.def("supports", &supports);
  m.def("block_shape", &block_shape);
  m.def("mma_shape", &mma_shape);
  m.def("grid_shape", &grid_shape);
  m.def("force_plan", &force_plan);
}

}  // namespace seqkern::ops
