// Padded batches with a length for each sequence: where their rows go, and the way there and back.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace seqkern::ops {

// Of lengths [B], int64, on the CPU, for T = steps:
//   batch_sizes [T + 1]   sequences that have a step t; the last is 0
//   source [R]            where in the padded batch, flattened, each row of the ragged one lies
//   padding [T*B - R]     the other rows of the padded batch
//   order [B]             sequences, longest first, and
//   place [B]             of each sequence in it.
// ValueError for a length beyond 0 and T.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> layout(
    const at::Tensor& lengths, int64_t steps, bool batch_first);

// padded [N, W], source [R] -> [R, W]
at::Tensor gather_rows(const at::Tensor& padded, const at::Tensor& source);

// rows [R, W] -> [R + padding.numel(), W]: each at its source, zeros at the padding.
at::Tensor scatter_rows(const at::Tensor& rows, const at::Tensor& source,
                        const at::Tensor& padding);

}  // namespace seqkern::ops
