#include "ops/left_over.h"

#include <ATen/Functions.h>

namespace seqkern::ops {

namespace {

using at::Tensor;

// The first n along dim, contiguous; absent tensors (undefined, or of shape [0]) stay.
Tensor first(const Tensor& tensor, int64_t dim, int64_t n) {
  if (!tensor.defined() || tensor.dim() <= dim) return tensor;
  return tensor.narrow(dim, 0, n).contiguous();
}

// Filled up with zeros to n along dim; absent tensors stay.
Tensor filled(const Tensor& tensor, int64_t dim, int64_t n) {
  if (tensor.dim() <= dim || tensor.size(dim) == n) return tensor;
  auto sizes = tensor.sizes().vec();
  sizes[dim] = n;
  Tensor full = at::empty(sizes, tensor.options());
  full.narrow(dim, 0, tensor.size(dim)).copy_(tensor);
  full.narrow(dim, tensor.size(dim), n - tensor.size(dim)).zero_();
  return full;
}

// Filled up along dim 1 with the rows of another tensor; absent tensors stay.
Tensor completed(const Tensor& tensor, const Tensor& other) {
  if (tensor.dim() == 1) return tensor;
  const int64_t n = tensor.size(1);
  return at::cat({tensor, other.narrow(1, n, other.size(1) - n)}, 1);
}

Tensor copy(const Tensor& tensor) { return tensor.clone(at::MemoryFormat::Contiguous); }

ForwardResult forward_without_rows(const Layer& s, const Tensor& input, const Tensor& h_0,
                                   const std::optional<Tensor>& c_0, Save save) {
  const auto cells =
      input.options().dtype(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const bool saves_cells = c_0 && save != Save::None;
  return {at::zeros(s.given_sizes(s.D * s.K), input.options()), copy(h_0),
          c_0 ? copy(*c_0) : at::empty({0}, input.options()),
          save == Save::Gates ? at::empty({s.D, s.given_rows, s.info.saved * s.H}, input.options())
                              : at::empty({0}, input.options()),
          saves_cells ? at::empty({s.D, s.given_rows, s.H}, cells) : at::empty({0}, cells)};
}

BackwardResult backward_without_rows(const Layer& s, const BackwardInputs& in) {
  const auto options = in.input.options();
  BackwardResult out;
  out.grad_input =
      in.needs_input_grad ? at::zeros(in.input.sizes(), options) : at::empty({0}, options);
  out.grad_h_0 = in.needs_h_0_grad ? copy(in.grad_h_n) : at::empty({0}, options);
  out.grad_c_0 = in.grad_c_n.defined() ? copy(in.grad_c_n) : at::empty({0}, options);
  if (in.needs_params_grad) {
    for (const Direction& d : s.directions) {
      for (const Tensor& p : {d.w_ih, d.w_hh, d.b_ih, d.b_hh, d.w_hr}) {
        if (p.defined()) out.grad_params.push_back(at::zeros(p.sizes(), options));
      }
    }
  }
  const auto steps = [&](bool wanted, int64_t width) {
    return wanted ? at::zeros({s.D, s.given_rows, width}, options) : at::empty({0}, options);
  };
  out.step_grad_h = steps(in.step_grads, s.K);
  out.step_grad_c = steps(in.step_grads && s.info.has_cell_state, s.H);
  return out;
}

}  // namespace

ForwardResult on_rows_in_use(decltype(&forward_cpu) forward, const Layer& s, const Tensor& input,
                             const Tensor& h_0, const std::optional<Tensor>& c_0, Save save) {
  if (!s.leaves_rows_over() && s.T > 0) return forward(s, input, h_0, c_0, save);
  if (s.T == 0) return forward_without_rows(s, input, h_0, c_0, save);
  std::optional<Tensor> c;
  if (c_0) c = first(*c_0, 1, s.B);
  ForwardResult r = forward(s, first(input, 0, s.R), first(h_0, 1, s.B), c, save);
  return {filled(r.output, 0, s.given_rows), completed(r.h_n, h_0),
          completed(r.c_n, c_0.value_or(Tensor())), filled(r.gates, 1, s.given_rows),
          filled(r.cells, 1, s.given_rows)};
}

BackwardResult on_rows_in_use(decltype(&backward_cpu) backward, const Layer& s,
                              const BackwardInputs& in) {
  if (!s.leaves_rows_over() && s.T > 0) return backward(s, in);
  if (s.T == 0) return backward_without_rows(s, in);
  BackwardInputs used = in;
  for (Tensor* t : {&used.grad_output, &used.input, &used.output}) *t = first(*t, 0, s.R);
  for (Tensor* t : {&used.grad_h_n, &used.grad_c_n, &used.h_0, &used.c_0}) *t = first(*t, 1, s.B);
  for (Tensor* t : {&used.gates, &used.cells}) *t = first(*t, 1, s.R);
  BackwardResult r = backward(s, used);
  if (in.needs_input_grad) r.grad_input = filled(r.grad_input, 0, s.given_rows);
  if (in.needs_h_0_grad) r.grad_h_0 = completed(r.grad_h_0, in.grad_h_n);
  r.grad_c_0 = completed(r.grad_c_0, in.grad_c_n);
  r.step_grad_h = filled(r.step_grad_h, 1, s.given_rows);
  r.step_grad_c = filled(r.step_grad_c, 1, s.given_rows);
  return r;
}

}  // namespace seqkern::ops
