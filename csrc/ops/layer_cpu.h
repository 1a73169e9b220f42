// One layer on the CPU: allocation, large matrix products, and the chunk loop around the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/layer.h"

namespace seqkern::ops {

ForwardResult forward_cpu(const Layer& layer, const at::Tensor& input, const at::Tensor& h_0,
                          const std::optional<at::Tensor>& c_0, Save save);

BackwardResult backward_cpu(const Layer& layer, const BackwardInputs& in);

}  // namespace seqkern::ops
