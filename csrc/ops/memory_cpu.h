// Memory of the CPU operators' tensors.
#pragma once

#include <ATen/core/Tensor.h>

namespace seqkern::ops {

// A tensor without values. Large ones take memory that an earlier one has left behind, where there
// is some: a training step asks for the same sizes again and again, and the first touch of new
// pages costs more than many a layer's arithmetic on them.
at::Tensor empty_cpu(at::IntArrayRef sizes, const at::TensorOptions& options);

// A thread's own memory for the buffers of one pass at a time. A small layer would take longer to
// have them from malloc, one by one, than to fill them.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;

  // Aligned to cache lines, for as long as this lives; null where there is no more.
  void* take(size_t bytes);

 private:
  bool mine_;  // not another pass's, within which this one runs
  size_t used_ = 0;
};

}  // namespace seqkern::ops
