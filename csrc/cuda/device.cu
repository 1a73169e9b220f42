#include "cuda/device.h"

#include <vector>

#include "cuda/simt.h"

namespace seqkern::cuda {

namespace {

DeviceProperties query(int device) {
  const auto get = [device](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "device properties");
    return value;
  };
  return {.major = get(cudaDevAttrComputeCapabilityMajor),
          .minor = get(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = get(cudaDevAttrMultiProcessorCount),
          .threads_per_multiprocessor = get(cudaDevAttrMaxThreadsPerMultiProcessor),
          .blocks_per_multiprocessor = get(cudaDevAttrMaxBlocksPerMultiprocessor),
          .registers_per_multiprocessor = get(cudaDevAttrMaxRegistersPerMultiprocessor),
          .shared_per_multiprocessor = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          .shared_per_block = get(cudaDevAttrMaxSharedMemoryPerBlock),
          .shared_per_block_optin = get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .l2_bytes = get(cudaDevAttrL2CacheSize),
          .cooperative_launch = get(cudaDevAttrCooperativeLaunch) != 0};
}

}  // namespace

const DeviceProperties& device_properties(int device) {
  static const std::vector<DeviceProperties> all = [] {
    int count = 0;
    check(cudaGetDeviceCount(&count), "device count");
    std::vector<DeviceProperties> found;
    for (int i = 0; i < count; ++i) found.push_back(query(i));
    return found;
  }();
  return all.at(device);
}

}  // namespace seqkern::cuda
