// One time step on the CPU without packing, for the few rows of inference.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/layer_cpu.h"
#include "ops/step.h"

namespace seqkern::ops {

// Whether the layer is one that step_cpu does faster than the chunk loop.
bool is_step(const Layer& layer, const at::Tensor& input);

// forward_cpu's results for such a layer.
ForwardResult forward_step(const Layer& layer, const at::Tensor& input, const at::Tensor& h_0,
                           const at::Tensor& c_0, Save save);

// One cell: input [B, I], h [B, H], c [B, H] or undefined, both biases or none (undefined).
StepResult step_cpu(Cell cell, const at::Tensor& input, const at::Tensor& h, const at::Tensor& c,
                    const at::Tensor& w_ih, const at::Tensor& w_hh, const at::Tensor& b_ih,
                    const at::Tensor& b_hh);

// In the layout of the capability level in use.
PackedWeights pack_cpu(Cell cell, const at::Tensor& w_ih, const at::Tensor& w_hh);

// One cell on packed weights: h [B, H] and c [B, H] (undefined without a cell state) move on by a
// step, and output [B, H] gets the new h too.
void stream_step_cpu(Cell cell, const at::Tensor& input, const at::Tensor& h, const at::Tensor& c,
                     const at::Tensor& w_ih, const at::Tensor& w_hh, const at::Tensor& b_ih,
                     const at::Tensor& b_hh, const at::Tensor& output, int64_t vector_bytes);

}  // namespace seqkern::ops
