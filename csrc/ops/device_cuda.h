// What takes a torch device apart. csrc/ops/device_cuda.cpp does so for a GPU; the test build that
// executes the kernels on the CPU has its own.
#pragma once

#include <c10/core/Device.h>

#include "cuda/device.h"

namespace seqkern::ops {

cuda::Stream current_stream(c10::Device device);
const cuda::DeviceProperties& properties(c10::Device device);

}  // namespace seqkern::ops
