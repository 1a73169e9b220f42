// Arguments of the layer operators, checked and taken apart.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "cells/cell.h"

namespace seqkern::ops {

// What ops must know of a cell without its maths; from csrc/cells by cell_info().
struct CellInfo {
  const char* name;
  int gates, saved, grad_gates, grad_input_offset, grad_rotation;
  bool has_cell_state, carries_grad_h, recurrent_bias;
};
const CellInfo& cell_info(Cell cell);

struct Direction {
  at::Tensor w_ih;  // [G*H, I]
  at::Tensor w_hh;  // [G*H, K]
  at::Tensor b_ih;  // [G*H] or undefined
  at::Tensor b_hh;  // [G*H] or undefined
  at::Tensor w_hr;  // [P, H] or undefined
};

struct Layer {
  Cell cell;
  const CellInfo& info;
  int64_t T, B, R, I, H, K, D;  // T steps that have rows, B rows in the first one
  // Rows of input, [T*B] or [R], and of h_0, [B]: more than that where batch_sizes end in 0.
  int64_t given_rows, given_batch;
  bool ragged, bias, projection;
  std::vector<int64_t> offsets;  // [T + 1]
  std::vector<Direction> directions;

  int64_t rows(int64_t t) const { return offsets[t + 1] - offsets[t]; }
  bool leaves_rows_over() const { return given_rows > R || given_batch > B; }
  // [T, B, width] or, ragged, [R, width]
  std::vector<int64_t> sequence_sizes(int64_t width) const;
  // The same with all rows that were given.
  std::vector<int64_t> given_sizes(int64_t width) const;
};

// Throws, naming the argument, what was expected and what came.
Layer check_layer(Cell cell, const at::Tensor& input, const std::optional<at::Tensor>& batch_sizes,
                  const at::Tensor& h_0, const std::optional<at::Tensor>& c_0,
                  at::TensorList params);

// `tensor` must have `sizes`, whose meaning is `shape`, and the dtype and device of `like`.
void check_tensor(const Layer& layer, const char* name, const at::Tensor& tensor, const char* shape,
                  at::IntArrayRef sizes, const at::Tensor& like);

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

struct BackwardInputs {
  at::Tensor grad_output, grad_h_n, grad_c_n;  // grad_c_n undefined without a cell state
  at::Tensor input, h_0, c_0;                  // c_0 undefined without a cell state
  at::Tensor output, gates, cells;             // gates [0] where forward saved the states alone
  bool needs_input_grad, needs_h_0_grad, needs_params_grad, step_grads;
};

struct BackwardResult {
  at::Tensor grad_input;  // as input, or [0]
  at::Tensor grad_h_0;    // [D, B, K], or [0]
  at::Tensor grad_c_0;    // [D, B, H] or [0]
  std::vector<at::Tensor> grad_params;
  at::Tensor step_grad_h;  // [D, R, K] or [0]
  at::Tensor step_grad_c;  // [D, R, H] or [0]
};

}  // namespace seqkern::ops
