// The dispatcher's view of seqkern: one forward and one backward operator per cell, all with the
// same schema. The fake kernels and the vmap rules are in seqkern/ops.py, the derivative in
// seqkern/autograd.py.
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>

#include "ops/layer.h"
#include "ops/layer_cpu.h"
#if defined(SEQKERN_WITH_CUDA)
#include "ops/layer_cuda.h"
#endif

namespace seqkern::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

constexpr const char* kForwardSchema =
    "_forward(Tensor input, Tensor? batch_sizes, Tensor h_0, Tensor? c_0, Tensor[] params, "
    "str save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)";

constexpr const char* kBackwardSchema =
    "_backward(Tensor grad_output, Tensor grad_h_n, Tensor? grad_c_n, Tensor input, "
    "Tensor? batch_sizes, Tensor h_0, Tensor? c_0, Tensor[] params, Tensor output, Tensor gates, "
    "Tensor cells, bool needs_input_grad, bool needs_params_grad, bool step_grads) -> "
    "(Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_params, "
    "Tensor step_grad_h, Tensor step_grad_c)";

// run: forward_cpu or forward_cuda
template <Cell cell, auto run>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& input,
                                                           const Optional& batch_sizes,
                                                           const Tensor& h_0, const Optional& c_0,
                                                           at::TensorList params,
                                                           c10::string_view save) {
  const Layer layer = check_layer(cell, input, batch_sizes, h_0, c_0, params);
  TORCH_CHECK(save == "gates" || save == "states" || save == "none", "seqkern::", layer.info.name,
              ": save must be 'gates', 'states' or 'none', got '", std::string(save), "'");
  ForwardResult r = run(layer, input, h_0, c_0,
                        save == "gates"    ? Save::Gates
                        : save == "states" ? Save::States
                                           : Save::None);
  return {r.output, r.h_n, r.c_n, r.gates, r.cells};
}

template <Cell cell, auto run>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& grad_h_n, const Optional& grad_c_n,
    const Tensor& input, const Optional& batch_sizes, const Tensor& h_0, const Optional& c_0,
    at::TensorList params, const Tensor& output, const Tensor& gates, const Tensor& cells,
    bool needs_input_grad, bool needs_params_grad, bool step_grads) {
  const Layer s = check_layer(cell, input, batch_sizes, h_0, c_0, params);
  check_tensor(s, "grad_output", grad_output, "output's sizes", s.sequence_sizes(s.D * s.K), input);
  check_tensor(s, "output", output, s.ragged ? "[R, D*K]" : "[T, B, D*K]",
               s.sequence_sizes(s.D * s.K), input);
  check_tensor(s, "grad_h_n", grad_h_n, "[D, B, K]", {s.D, s.B, s.K}, input);
  // [0] after save="states": the gates are computed again.
  if (gates.dim() != 1 || gates.numel() != 0) {
    check_tensor(s, "gates", gates, "[D, R, S*H], or [0] where forward saved the states",
                 {s.D, s.R, s.info.saved * s.H}, input);
  }
  TORCH_CHECK(grad_c_n.has_value() == s.info.has_cell_state, "seqkern::", s.info.name,
              ": grad_c_n must be ", s.info.has_cell_state ? "given" : "None");
  if (s.info.has_cell_state) {
    check_tensor(s, "grad_c_n", *grad_c_n, "[D, B, H]", {s.D, s.B, s.H}, input);
    const auto cell_type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    TORCH_CHECK(cells.sizes() == at::IntArrayRef({s.D, s.R, s.H}) &&
                    cells.scalar_type() == cell_type && cells.device() == input.device(),
                "seqkern::", s.info.name, ": cells must be forward's [D, R, H] ", cell_type,
                ", got ", cells.sizes(), " ", cells.scalar_type());
  }
  BackwardResult r = run(
      s, {grad_output, grad_h_n, grad_c_n.value_or(Tensor()), input, h_0, c_0.value_or(Tensor()),
          output, gates.contiguous(), cells, needs_input_grad, needs_params_grad, step_grads});
  return {r.grad_input, r.grad_h_0, r.grad_c_0, r.grad_params, r.step_grad_h, r.step_grad_c};
}

template <typename F>
void for_each_cell(F&& f) {
  f(std::integral_constant<Cell, Cell::Lstm>());
  f(std::integral_constant<Cell, Cell::Gru>());
  f(std::integral_constant<Cell, Cell::RnnTanh>());
  f(std::integral_constant<Cell, Cell::RnnRelu>());
}

std::string op(Cell cell, const char* rest) { return std::string(cell_info(cell).name) + rest; }

}  // namespace

TORCH_LIBRARY(seqkern, m) {
  for_each_cell([&](auto cell) {
    m.def(op(cell, kForwardSchema).c_str());
    m.def(op(cell, kBackwardSchema).c_str());
  });
}

template <auto run_forward, auto run_backward>
void implement(torch::Library& m) {
  for_each_cell([&](auto cell) {
    m.impl(op(cell, "_forward").c_str(), &forward<cell.value, run_forward>);
    m.impl(op(cell, "_backward").c_str(), &backward<cell.value, run_backward>);
  });
}

#if defined(SEQKERN_CUDA_HOST)
// A test build: the CUDA kernels, executed on the CPU.
TORCH_LIBRARY_IMPL(seqkern, CPU, m) { implement<forward_cuda, backward_cuda>(m); }
#else
TORCH_LIBRARY_IMPL(seqkern, CPU, m) { implement<forward_cpu, backward_cpu>(m); }
#if defined(SEQKERN_WITH_CUDA)
TORCH_LIBRARY_IMPL(seqkern, CUDA, m) { implement<forward_cuda, backward_cuda>(m); }
#endif
#endif

// Derivatives live in Python, around these operators. Called directly on tensors that require
// grad, they say so in backward instead of returning no gradient.
TORCH_LIBRARY_IMPL(seqkern, Autograd, m) {
  for_each_cell([&](auto cell) {
    m.impl(op(cell, "_forward").c_str(), torch::autograd::autogradNotImplementedFallback());
    m.impl(op(cell, "_backward").c_str(), torch::autograd::autogradNotImplementedFallback());
  });
}

}  // namespace seqkern::ops
