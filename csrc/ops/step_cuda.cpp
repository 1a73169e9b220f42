#include "ops/step_cuda.h"

#include <ATen/Functions.h>

#include <vector>

#include "ops/layer_cuda.h"

namespace seqkern::ops {

using at::Tensor;

StepResult step_cuda(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                     const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                     const Tensor& b_hh) {
  return step_of_layer(forward_cuda, cell, input, h, c, w_ih, w_hh, b_ih, b_hh);
}

PackedWeights pack_cuda(Cell cell, const Tensor& w_ih, const Tensor& w_hh) {
  check_pack(cell, w_ih, w_hh);
  const auto copy = [](const Tensor& w) { return w.clone(at::MemoryFormat::Contiguous); };
  return {copy(w_ih), copy(w_hh), /*vector_bytes=*/0};
}

void stream_step_cuda(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                      const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                      const Tensor& b_hh, const Tensor& output, int64_t vector_bytes) {
  check_stream_step(cell, input, h, c, w_ih, w_hh, b_ih, b_hh, output, vector_bytes, 0);
  const StepResult r = step_cuda(cell, input, h, c, w_ih, w_hh, b_ih, b_hh);
  std::vector<Tensor> to{h, output}, from{r.h, r.h};
  if (c.defined()) {
    to.push_back(c);
    from.push_back(r.c);
  }
  at::_foreach_copy_(to, from);  // one launch
}

}  // namespace seqkern::ops
