// Ragged layers with rows left over: batch_sizes that end in 0 may add up to fewer rows than input
// has, and begin with fewer rows than the states have. So the tensors' sizes need not depend on
// what batch_sizes hold, as under torch.compile. No device's code knows of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/layer.h"
#include "ops/layer_cpu.h"

namespace seqkern::ops {

// Calls `forward` on the rows in use. The output's other rows are zero, those of gates and cells
// undefined; states of no step stay as they were.
ForwardResult on_rows_in_use(decltype(&forward_cpu) forward, const Layer& layer,
                             const at::Tensor& input,               // [R, I] or [T, B, I]
                             const at::Tensor& h_0,                 // [D, B, K]
                             const std::optional<at::Tensor>& c_0,  // [D, B, H]
                             Save save);

// Calls `backward` on the rows in use. The gradients of other rows of input are zero; what comes in
// for states of no step goes out for h_0 and c_0.
BackwardResult on_rows_in_use(decltype(&backward_cpu) backward, const Layer& layer,
                              const BackwardInputs& in);

}  // namespace seqkern::ops
