// What docs/cuda.md's tables need and only C++ knows.
//
// With --predict: the planner's cost model for some shapes, as a table.
//
// Without: theoretical occupancy, by NVIDIA's cuda_occupancy.h, which needs no GPU. Reads lines
//   kernel capability registers static_shared
// and prints for each
//   kernel capability threads dynamic_shared warps_per_multiprocessor most_warps
// with the launch shapes that csrc/cuda chooses. The others than stepwise kernels take the shared
// memory of the largest hidden size, a multiple of 16, that the device has room for with 16 rows.
#include <cuda_occupancy.h>

#include <climits>
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/block.h"
#include "cuda/plan.h"
#include "gpus.h"

using namespace seqkern::cuda;
using seqkern::Cell;

namespace {

constexpr const char* kCells[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
constexpr const char* kTypes[] = {"f32", "f64", "bf16", "f16"};

struct Launch {
  int threads = 256;
  int64_t shared = 0;
};

Launch launch_of(const std::string& kernel, const DeviceProperties& d) {
  const bool block = kernel.find("_block_") != std::string::npos;
  const bool mma = kernel.find("_mma_") != std::string::npos;
  if (!block && !mma && kernel.find("_grid_") == std::string::npos) return {};
  Problem p{Cell::Lstm, Type::F32, 16, 16, 16, 1, false};
  for (int i = 0; i < seqkern::kNumCells; ++i) {
    if (kernel.find(kCells[i]) != std::string::npos) p.cell = Cell(i);
  }
  for (int i = 0; i < kNumTypes; ++i) {
    if (kernel.ends_with(std::string("_") + kTypes[i])) p.type = Type(i);
  }
  const bool forward = kernel.find("forward") != std::string::npos;
  const Tier tier = block ? Tier::Block : mma ? Tier::Mma : Tier::Grid;
  if (!supports(tier, p, d)) return {};
  while (supports(tier, p, d)) p.H = p.K = p.H + 16;
  p.H = p.K = p.H - 16;
  if (block) {
    const BlockShape shape = block_shape(p.cell, p.type, p.H);
    return {shape.threads, forward ? shape.shared_forward : shape.shared_backward};
  }
  if (mma) {
    const MmaShape shape = mma_shape(p, d);
    return {32 * shape.groups * shape.splits, shape.shared};
  }
  const GridShape shape = grid_shape(p, d);
  return {shape.threads, forward ? shape.shared_forward : shape.shared_backward};
}

}  // namespace

// Forward, one direction; the record's figures are from docs/cuda.md's list of sources.
struct Case {
  const char* what;
  Problem problem;
  const char* record;
};
constexpr Case kCases[] = {
    {"LSTM B 6 H 40, f32", {Cell::Lstm, Type::F32, 6, 40, 40, 1, false}, "cuDNN 0.66"},
    {"LSTM B 6 H 72, f32", {Cell::Lstm, Type::F32, 6, 72, 72, 1, false}, "cuDNN 0.88"},
    {"LSTM B 16 H 128, f32", {Cell::Lstm, Type::F32, 16, 128, 128, 1, false}, "cuDNN 2.6"},
    {"GRU B 16 H 96, f32", {Cell::Gru, Type::F32, 16, 96, 96, 1, false}, "-"},
    {"LSTM B 16 H 768, f32", {Cell::Lstm, Type::F32, 16, 768, 768, 1, false}, "haste 18.0"},
    {"LSTM B 16 H 128, bf16", {Cell::Lstm, Type::BF16, 16, 128, 128, 1, false}, "-"},
    {"LSTM B 16 H 768, bf16", {Cell::Lstm, Type::BF16, 16, 768, 768, 1, false}, "FlashRNN 4.8"},
    {"LSTM B 16 H 768, f16", {Cell::Lstm, Type::F16, 16, 768, 768, 1, false}, "cuDNN 2.0"},
    {"GRU B 16 H 1024, bf16", {Cell::Gru, Type::BF16, 16, 1024, 1024, 1, false}, "-"},
    {"LSTM B 512 H 1024, bf16", {Cell::Lstm, Type::BF16, 512, 1024, 1024, 1, false}, "-"},
};

void print_predictions() {
  std::printf(
      "| forward step of | device, tier | KiB through a multiprocessor's shared memory | KiB "
      "through "
      "L2 | KiB of DRAM | barriers, exchanges | instructions of a thread | predicted us | on "
      "record, "
      "us |\n|---|---|---|---|---|---|---|---|---|\n");
  for (const Case& c : kCases) {
    for (const Gpu* gpu : {&kA100, &kH100}) {
      const Plan plan = make_plan(c.problem, gpu->properties);
      const Cost cost = predict(plan.tier, c.problem, gpu->properties);
      std::printf("| %s | %s, %s | %.0f | %.0f | %.0f | %d, %d | %.0f | %.1f | %s |\n", c.what,
                  gpu->name, name(plan.tier), cost.shared_bytes / KiB, cost.l2_bytes / KiB,
                  cost.dram_bytes / KiB, cost.barriers, cost.exchanges, cost.instructions,
                  cost.nanoseconds / 1000, gpu == &kH100 ? c.record : "");
    }
  }
}

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--predict") {
    print_predictions();
    return 0;
  }
  char kernel[200];
  int capability = 0, registers = 0;
  size_t shared = 0;
  while (std::scanf("%199s %d %d %zu", kernel, &capability, &registers, &shared) == 4) {
    const Gpu* gpu = nullptr;
    for (const Gpu& g : kGpus) {
      if (10 * g.properties.major + g.properties.minor == capability) gpu = &g;
    }
    if (!gpu) {
      std::fprintf(stderr, "no device of capability %d in tests/cpp/gpus.h\n", capability);
      return 1;
    }
    const DeviceProperties& d = gpu->properties;
    const Launch launch = launch_of(kernel, d);

    cudaOccDeviceProp properties;
    properties.computeMajor = d.major;
    properties.computeMinor = d.minor;
    properties.maxThreadsPerBlock = 1024;
    properties.maxThreadsPerMultiprocessor = d.threads_per_multiprocessor;
    properties.regsPerBlock = properties.regsPerMultiprocessor = d.registers_per_multiprocessor;
    properties.warpSize = 32;
    properties.sharedMemPerBlock = d.shared_per_block;
    properties.sharedMemPerMultiprocessor = d.shared_per_multiprocessor;
    properties.numSms = d.multiprocessors;
    properties.sharedMemPerBlockOptin = d.shared_per_block_optin;
    properties.reservedSharedMemPerBlock = d.major >= 8 ? 1024 : 0;
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = INT_MAX;
    function.numRegs = registers;
    function.sharedSizeBytes = shared;
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = launch.shared;
    function.numBlockBarriers = 1;
    const cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
        &result, &properties, &function, &state, launch.threads, launch.shared);
    if (error != CUDA_OCC_SUCCESS) {
      std::fprintf(stderr, "%s on sm_%d: cuda_occupancy.h says error %d\n", kernel, capability,
                   int(error));
      return 1;
    }
    std::printf("%s %d %d %lld %d %d\n", kernel, capability, launch.threads,
                static_cast<long long>(launch.shared),
                result.activeBlocksPerMultiprocessor * launch.threads / 32,
                d.threads_per_multiprocessor / 32);
  }
}
