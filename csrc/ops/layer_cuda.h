// One layer on the GPU: allocation, large matrix products, and the chunk loop around the kernels.
#pragma once

#include "ops/layer.h"

namespace seqkern::ops {

ForwardResult forward_cuda(const Layer& layer, const at::Tensor& input, const at::Tensor& h_0,
                           const std::optional<at::Tensor>& c_0, Save save);

BackwardResult backward_cuda(const Layer& layer, const BackwardInputs& in);

}  // namespace seqkern::ops
