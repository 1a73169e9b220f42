#include "ops/step.h"

#include <ATen/Functions.h>

namespace seqkern::ops {

using at::Tensor;

Tensor zero_state(Cell cell, const Tensor& input, const Tensor& w_hh) {
  TORCH_CHECK(input.dim() == 2 && w_hh.dim() == 2, "seqkern::", cell_info(cell).name,
              "_step: input must be [B, I] and w_hh [G*H, H], got ", input.sizes(), " and ",
              w_hh.sizes());
  return at::zeros({input.size(0), w_hh.size(1)}, input.options());
}

StepResult step_of_layer(decltype(&forward_cpu) forward, Cell cell, const Tensor& input,
                         const Tensor& h, const Tensor& c, const Tensor& w_ih, const Tensor& w_hh,
                         const Tensor& b_ih, const Tensor& b_hh) {
  TORCH_CHECK(b_ih.defined() == b_hh.defined(), "seqkern::", cell_info(cell).name,
              "_step: expected both biases or none, got b_", b_ih.defined() ? "ih" : "hh",
              " alone");
  std::vector<Tensor> params{w_ih, w_hh};
  if (b_ih.defined()) params.insert(params.end(), {b_ih, b_hh});
  const Tensor x = input.unsqueeze(0), h_0 = h.unsqueeze(0);
  const auto c_0 = c.defined() ? std::optional(c.unsqueeze(0)) : std::nullopt;
  const Layer layer = check_layer(cell, x, std::nullopt, h_0, c_0, params);
  const ForwardResult r = forward(layer, x, h_0, c_0, Save::None);
  return {r.h_n.squeeze(0), c.defined() ? r.c_n.squeeze(0) : Tensor()};
}

void check_pack(Cell cell, const Tensor& w_ih, const Tensor& w_hh) {
  const CellInfo& info = cell_info(cell);
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_ih.size(0) == w_hh.size(0) &&
                  w_hh.size(0) == info.gates * w_hh.size(1),
              "seqkern::", info.name,
              "_pack: w_ih must be [G*H, I] and w_hh [G*H, H] with G = ", info.gates, ", got ",
              w_ih.sizes(), " and ", w_hh.sizes());
  TORCH_CHECK(w_ih.scalar_type() == w_hh.scalar_type() &&
                  (w_ih.scalar_type() == at::kFloat || w_ih.scalar_type() == at::kDouble),
              "seqkern::", info.name, "_pack: w_ih and w_hh must be float32 or float64, got ",
              w_ih.scalar_type(), " and ", w_hh.scalar_type());
  TORCH_CHECK(w_ih.device() == w_hh.device(), "seqkern::", info.name,
              "_pack: w_ih and w_hh must be on one device, got ", w_ih.device(), " and ",
              w_hh.device());
}

void check_stream_step(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                       const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                       const Tensor& b_hh, const Tensor& output, int64_t vector_bytes,
                       int64_t in_use) {
  const CellInfo& info = cell_info(cell);
  const auto check = [&](const char* name, const Tensor& t, at::IntArrayRef sizes) {
    TORCH_CHECK(t.scalar_type() == w_ih.scalar_type() && t.device() == w_ih.device() &&
                    t.is_contiguous() && t.sizes() == sizes,
                "seqkern::", info.name, "_stream_step: ", name, " must be a contiguous ", sizes,
                " ", w_ih.scalar_type(), " on ", w_ih.device(), ", as w_ih is, got ", t.sizes(),
                " ", t.scalar_type(), " on ", t.device());
  };
  TORCH_CHECK(h.dim() == 2 && input.dim() == 2, "seqkern::", info.name,
              "_stream_step: input must be [B, I] and h [B, H], got ", input.sizes(), " and ",
              h.sizes());
  const int64_t B = h.size(0), H = h.size(1);
  check("input", input, {B, input.size(1)});
  check("h", h, {B, H});
  check("output", output, {B, H});
  check("w_ih", w_ih, w_ih.sizes());
  check("w_hh", w_hh, w_hh.sizes());
  TORCH_CHECK(c.defined() == info.has_cell_state && b_ih.defined() == b_hh.defined(),
              "seqkern::", info.name, "_stream_step: c must be ",
              info.has_cell_state ? "given" : "None", ", and the biases both or neither");
  if (c.defined()) check("c", c, {B, H});
  if (b_ih.defined()) {
    check("b_ih", b_ih, {info.gates * H});
    check("b_hh", b_hh, {info.gates * H});
  }
  TORCH_CHECK(vector_bytes == in_use, "seqkern::", info.name,
              "_stream_step: the weights were packed for vectors of ", vector_bytes,
              " bytes, and the kernels in use have ", in_use, ": pack them again");
}

}  // namespace seqkern::ops
