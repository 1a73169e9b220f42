// Single steps of inference: what the devices' versions have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/layer_cpu.h"

namespace seqkern::ops {

struct StepResult {
  at::Tensor h;  // [B, H]
  at::Tensor c;  // [B, H], undefined without a cell state
};

// A state of zeros [B, H], for input [B, I].
at::Tensor zero_state(Cell cell, const at::Tensor& input, const at::Tensor& w_hh);

// One cell: input [B, I], h [B, H], c [B, H] or undefined, both biases or none (undefined). Runs as
// a layer of one step by forward_cpu or forward_cuda, in any layout and dtype that a layer takes.
StepResult step_of_layer(decltype(&forward_cpu) forward, Cell cell, const at::Tensor& input,
                         const at::Tensor& h, const at::Tensor& c, const at::Tensor& w_ih,
                         const at::Tensor& w_hh, const at::Tensor& b_ih, const at::Tensor& b_hh);

// A layer's weights, packed once for steps of a stream.
struct PackedWeights {
  at::Tensor w_ih, w_hh;
  int64_t vector_bytes;  // of the capability level whose layout they have; 0: unchanged copies
};

// w_ih [G*H, I] and w_hh [G*H, H] in float32 or float64, before they are packed.
void check_pack(Cell cell, const at::Tensor& w_ih, const at::Tensor& w_hh);

// The arguments of a stream's step but for the weights' sizes, which are the device's own matter:
// input [B, I], h, c and output [B, H], contiguous, with the dtype and device of w_ih. vector_bytes
// must be that of the kernels in use.
void check_stream_step(Cell cell, const at::Tensor& input, const at::Tensor& h, const at::Tensor& c,
                       const at::Tensor& w_ih, const at::Tensor& w_hh, const at::Tensor& b_ih,
                       const at::Tensor& b_hh, const at::Tensor& output, int64_t vector_bytes,
                       int64_t in_use);

}  // namespace seqkern::ops
