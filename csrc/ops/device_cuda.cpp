#include "ops/device_cuda.h"

#include <c10/cuda/CUDAStream.h>

namespace seqkern::ops {

cuda::Stream current_stream(c10::Device device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

const cuda::DeviceProperties& properties(c10::Device device) {
  return cuda::device_properties(device.index());
}

}  // namespace seqkern::ops
