// Single steps on the GPU, each a layer of one step.
#pragma once

#include "ops/step.h"

namespace seqkern::ops {

StepResult step_cuda(Cell cell, const at::Tensor& input, const at::Tensor& h, const at::Tensor& c,
                     const at::Tensor& w_ih, const at::Tensor& w_hh, const at::Tensor& b_ih,
                     const at::Tensor& b_hh);

// Contiguous copies: the kernels take the weights as they are.
PackedWeights pack_cuda(Cell cell, const at::Tensor& w_ih, const at::Tensor& w_hh);

// h [B, H] and c [B, H] (undefined without a cell state) move on by a step, and output [B, H] gets
// the new h too.
void stream_step_cuda(Cell cell, const at::Tensor& input, const at::Tensor& h, const at::Tensor& c,
                      const at::Tensor& w_ih, const at::Tensor& w_hh, const at::Tensor& b_ih,
                      const at::Tensor& b_hh, const at::Tensor& output, int64_t vector_bytes);

}  // namespace seqkern::ops
