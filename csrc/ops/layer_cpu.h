// One layer on the CPU: allocation, large matrix products, and the chunk loop around the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "ops/layer.h"

namespace seqkern::ops {

// What forward keeps for backward beside the output: every gate and c_t; c_t alone, so that
// backward computes the gates again; nothing, where there will be no backward.
enum class Save { Gates, States, None };

struct ForwardResult {
  at::Tensor output;  // [T, B, D*K] or [R, D*K]
  at::Tensor h_n;     // [D, B, K]
  at::Tensor c_n;     // [D, B, H] or [0]
  at::Tensor gates;   // [D, R, S*H] or [0]
  at::Tensor cells;   // [D, R, H] or [0]
};

ForwardResult forward_cpu(const Layer& layer, const at::Tensor& input, const at::Tensor& h_0,
                          const std::optional<at::Tensor>& c_0, Save save);

struct BackwardInputs {
  at::Tensor grad_output, grad_h_n, grad_c_n;  // grad_c_n undefined without a cell state
  at::Tensor input, h_0, c_0;                  // c_0 undefined without a cell state
  at::Tensor output, gates, cells;             // gates [0] where forward saved the states alone
  bool needs_input_grad, needs_params_grad, step_grads;
};

struct BackwardResult {
  at::Tensor grad_input;  // as input, or [0]
  at::Tensor grad_h_0;    // [D, B, K]
  at::Tensor grad_c_0;    // [D, B, H] or [0]
  std::vector<at::Tensor> grad_params;
  at::Tensor step_grad_h;  // [D, R, K] or [0]
  at::Tensor step_grad_c;  // [D, R, H] or [0]
};

BackwardResult backward_cpu(const Layer& layer, const BackwardInputs& in);

}  // namespace seqkern::ops
