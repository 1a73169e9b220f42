// What launch code, the planner and csrc/ops need of a device, without any CUDA header: plain C++.
#pragma once

#include <cstdint>

namespace seqkern::cuda {

using Stream = void*;  // cudaStream_t, for those who compile without CUDA's headers

// The fields of cudaDeviceProp that plans depend on.
struct DeviceProperties {
  int major, minor;  // compute capability
  int multiprocessors;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int registers_per_multiprocessor;
  int64_t shared_per_multiprocessor;  // bytes
  int64_t shared_per_block;           // bytes, without asking: 48 KB
  int64_t shared_per_block_optin;     // bytes, after allow_shared_memory (simt.h)
  int64_t l2_bytes;
  bool cooperative_launch;
};

// Asked of the runtime once per device. On the host: the modelled device, whatever the index.
const DeviceProperties& device_properties(int device);

}  // namespace seqkern::cuda
