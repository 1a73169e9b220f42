// Layers, one step of a cell, and the rows of padded batches for plain eager mode: as nodes of
// autograd, what seqkern/autograd.py's Layer is where more is at work; and without a gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "ops/layer.h"
#include "ops/step.h"

namespace seqkern::ops {

struct LayerResult {
  at::Tensor output;  // [T, B, D*K] or [R, D*K]
  at::Tensor h_n;     // [L*D, B, K]
  at::Tensor c_n;     // [L*D, B, H], or [0] without a cell state
};

// `count` = L layers, each on what the one before returned, with dropout of that probability
// between them. Arguments as of the operators NAME_forward; states and params are those of all
// layers, in so many directions. Without states a padded input's are zeros. A layer is a node where
// one of its arguments wants a gradient.
LayerResult layers(Cell cell, const at::Tensor& input, const std::optional<at::Tensor>& batch_sizes,
                   const std::optional<at::Tensor>& h_0, const std::optional<at::Tensor>& c_0,
                   at::TensorList params, int64_t count, int64_t directions, double dropout,
                   std::string_view save);

// Arguments as of the operators NAME_step. What it returns is no view and may be changed in place.
StepResult differentiable_step(Cell cell, const at::Tensor& input,
                               const std::optional<at::Tensor>& h,
                               const std::optional<at::Tensor>& c, const at::Tensor& w_ih,
                               const at::Tensor& w_hh, const std::optional<at::Tensor>& b_ih,
                               const std::optional<at::Tensor>& b_hh);

// The same below autograd: the operator, without Python's reading of its arguments.
StepResult plain_step(Cell cell, const at::Tensor& input, const std::optional<at::Tensor>& h,
                      const std::optional<at::Tensor>& c, const at::Tensor& w_ih,
                      const at::Tensor& w_hh, const std::optional<at::Tensor>& b_ih,
                      const std::optional<at::Tensor>& b_hh);

// Whether a transform of torch.func, or vmap as autograd itself uses it, has wrapped a tensor.
bool wrapped(const at::Tensor& tensor);

// Rows of a padded batch [first, second, W] with a length for each sequence, by lengths_cpu.h's
// indices, taken out as [R, W] and put back among zeros; as nodes where a gradient is wanted.
at::Tensor take_rows(const at::Tensor& padded, const at::Tensor& source, const at::Tensor& padding);
at::Tensor put_rows(const at::Tensor& rows, const at::Tensor& source, const at::Tensor& padding,
                    int64_t first, int64_t second);

// A backward pass with a derivative of its own, which is Python's; batch_sizes may be undefined.
// Called where a backward pass runs with grad mode on. Not through an operator: those that are made
// of others know no transforms of torch.func, which may be at work by then.
using LayerGrad = BackwardResult (*)(Cell cell, const at::Tensor& batch_sizes,
                                     const BackwardInputs& inputs, at::TensorList params);
void set_layer_grad(LayerGrad layer_grad);

}  // namespace seqkern::ops
