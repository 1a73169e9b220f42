// Theoretical occupancy, by NVIDIA's cuda_occupancy.h, which needs no GPU. Reads lines
//   kernel capability registers static_shared
// and prints for each
//   kernel capability threads dynamic_shared warps_per_multiprocessor most_warps
// with the launch shapes that csrc/cuda chooses. Block and grid kernels take the shared memory of
// the largest hidden size, a multiple of 16, that the device has room for with 16 rows.
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
  if (!block && kernel.find("_grid_") == std::string::npos) return {};
  Problem p{Cell::Lstm, Type::F32, 16, 16, 16, 1, false};
  for (int i = 0; i < seqkern::kNumCells; ++i) {
    if (kernel.find(kCells[i]) != std::string::npos) p.cell = Cell(i);
  }
  for (int i = 0; i < kNumTypes; ++i) {
    if (kernel.ends_with(std::string("_") + kTypes[i])) p.type = Type(i);
  }
  const bool forward = kernel.find("forward") != std::string::npos;
  while (supports(block ? Tier::Block : Tier::Grid, p, d)) p.H = p.K = p.H + 16;
  p.H = p.K = p.H - 16;
  if (block) {
    const BlockShape shape = block_shape(p.cell, p.type, p.H);
    return {shape.threads, forward ? shape.shared_forward : shape.shared_backward};
  }
  const GridShape shape = grid_shape(p, d);
  return {shape.threads, forward ? shape.shared_forward : shape.shared_backward};
}

}  // namespace

int main() {
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
