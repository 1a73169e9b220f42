// What the tests set and ask of the modelled device, as torch.ops.seqkern_cuda_host.*, and what
// csrc/ops asks of a GPU.
#include <torch/library.h>

#include <cstdlib>
#include <string>
#include <tuple>

#include "cuda_host/runtime.h"
#include "ops/device_cuda.h"

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

}  // namespace

TORCH_LIBRARY(seqkern_cuda_host, m) {
  m.def("set_schedule", &set_schedule);
  m.def("set_device", &set_device);
  m.def("take_counts", &take_counts);
}

}  // namespace seqkern::ops
