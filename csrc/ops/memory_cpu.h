// Memory of the CPU operators' tensors.
#pragma once

#include <ATen/core/Tensor.h>

namespace seqkern::ops {

// A tensor without values. Large ones take memory that an earlier one has left behind, where there
// is some: a training step asks for the same sizes again and again, and the first touch of new
// pages costs more than many a layer's arithmetic on them.
at::Tensor empty_cpu(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace seqkern::ops
