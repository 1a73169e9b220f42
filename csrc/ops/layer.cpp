#include "ops/layer.h"

#include <c10/util/Exception.h>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace seqkern::ops {

namespace {

template <class C>
constexpr CellInfo info_of(const char* name) {
  return {name,
          C::kGates,
          C::kSaved,
          C::kGradGates,
          C::kGradInputOffset,
          C::kGradRotation,
          C::kHasCellState,
          C::kCarriesGradH,
          C::kRecurrentBias};
}

constexpr CellInfo kCells[kNumCells] = {info_of<Lstm>("lstm"), info_of<Gru>("gru"),
                                        info_of<RnnTanh>("rnn_tanh"), info_of<RnnRelu>("rnn_relu")};

void check_sizes(const char* cell, const char* name, const at::Tensor& tensor, const char* shape,
                 at::IntArrayRef sizes) {
  TORCH_CHECK(tensor.sizes() == sizes, "seqkern::", cell, ": ", name, " must be ", shape, " = ",
              sizes, ", got ", tensor.sizes());
}

void check_like(const char* cell, const char* name, const at::Tensor& tensor,
                const at::Tensor& like) {
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "seqkern::", cell, ": ", name,
              " must have the input's dtype ", like.scalar_type(), ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == like.device(), "seqkern::", cell, ": ", name,
              " must be on the input's device ", like.device(), ", got ", tensor.device());
}

// Of the steps that have rows. A last step without rows says that input may have rows left over.
std::vector<int64_t> read_offsets(const char* cell, const at::Tensor& batch_sizes, int64_t rows,
                                  const at::Tensor& h_0) {
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == at::kLong &&
                  batch_sizes.device().is_cpu(),
              "seqkern::", cell, ": batch_sizes must be a 1-D int64 CPU tensor, got ",
              batch_sizes.sizes(), " ", batch_sizes.scalar_type(), " on ", batch_sizes.device());
  const at::Tensor sizes = batch_sizes.contiguous();
  const int64_t* p = sizes.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets{0};
  offsets.reserve(sizes.numel() + 1);
  const int64_t T = sizes.numel();
  for (int64_t t = 0; t < T; ++t) {
    TORCH_CHECK(p[t] >= 0 && (t == 0 || p[t] <= p[t - 1]), "seqkern::", cell,
                ": batch_sizes must not be negative and must not increase, got ", p[t], " at step ",
                t, t > 0 ? " after " + std::to_string(p[t - 1]) : std::string());
    if (p[t] > 0) offsets.push_back(offsets.back() + p[t]);
  }
  const int64_t first = T > 0 ? p[0] : 0;
  if (T > 0 && p[T - 1] == 0) {
    TORCH_CHECK(offsets.back() <= rows, "seqkern::", cell, ": batch_sizes must add up to at most ",
                rows, ", the rows of input, got a sum of ", offsets.back());
    TORCH_CHECK(first <= h_0.size(1), "seqkern::", cell,
                ": h_0 must have at least the first step's ", first, " rows, got ", h_0.sizes());
  } else {
    TORCH_CHECK(offsets.back() == rows, "seqkern::", cell, ": batch_sizes must add up to the ",
                rows, " rows of input, got a sum of ", offsets.back());
    TORCH_CHECK(T == 0 || first == h_0.size(1), "seqkern::", cell,
                ": h_0 must have the first step's ", first, " rows, got ", h_0.sizes());
  }
  return offsets;
}

}  // namespace

const CellInfo& cell_info(Cell cell) { return kCells[static_cast<int>(cell)]; }

std::vector<int64_t> Layer::sequence_sizes(int64_t width) const {
  if (ragged) return {R, width};
  return {T, B, width};
}

std::vector<int64_t> Layer::given_sizes(int64_t width) const {
  if (ragged) return {given_rows, width};
  return {T, B, width};
}

void check_tensor(const Layer& layer, const char* name, const at::Tensor& tensor, const char* shape,
                  at::IntArrayRef sizes, const at::Tensor& like) {
  check_sizes(layer.info.name, name, tensor, shape, sizes);
  check_like(layer.info.name, name, tensor, like);
}

Layer check_layer(Cell cell, const at::Tensor& input, const std::optional<at::Tensor>& batch_sizes,
                  const at::Tensor& h_0, const std::optional<at::Tensor>& c_0,
                  at::TensorList params) {
  Layer s{.cell = cell, .info = cell_info(cell)};
  const char* name = s.info.name;
  s.ragged = batch_sizes.has_value();
  TORCH_CHECK(input.dim() == (s.ragged ? 2 : 3), "seqkern::", name, ": input must be ",
              s.ragged ? "[R, I] with batch_sizes" : "[T, B, I]", ", got ", input.sizes());
  const auto dtype = input.scalar_type();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      "seqkern::", name, ": input must be float32, float64, bfloat16 or float16, got ", dtype);
  TORCH_CHECK(h_0.dim() == 3 && (h_0.size(0) == 1 || h_0.size(0) == 2), "seqkern::", name,
              ": h_0 must be [D, B, K] with D = 1 or 2 directions, got ", h_0.sizes());
  s.D = h_0.size(0);
  const int64_t per_direction = static_cast<int64_t>(params.size()) / s.D;
  const int64_t most = s.info.has_cell_state ? 5 : 4;
  TORCH_CHECK(static_cast<int64_t>(params.size()) == per_direction * s.D && per_direction >= 2 &&
                  per_direction <= most && (s.info.has_cell_state || per_direction != 3),
              "seqkern::", name, ": params must hold w_ih, w_hh[, b_ih, b_hh]",
              s.info.has_cell_state ? "[, w_hr]" : "", " for each of ", s.D, " directions, got ",
              params.size(), " tensors");
  s.bias = per_direction >= 4;
  s.projection = per_direction == 3 || per_direction == 5;
  s.I = input.size(-1);
  s.B = h_0.size(1);
  s.K = h_0.size(2);
  const int64_t gates = s.info.gates;
  TORCH_CHECK(params[0].dim() == 2 && params[0].size(0) % gates == 0 && params[0].size(0) > 0,
              "seqkern::", name, ": w_ih must be [G*H, I] with G = ", gates, ", got ",
              params[0].sizes());
  s.H = params[0].size(0) / gates;
  const int64_t width = gates * s.H;
  for (int64_t d = 0; d < s.D; ++d) {
    const auto param = [&](int64_t i) { return params[d * per_direction + i]; };
    Direction dir{.w_ih = param(0), .w_hh = param(1)};
    if (s.bias) {
      dir.b_ih = param(2);
      dir.b_hh = param(3);
    }
    if (s.projection) dir.w_hr = param(per_direction - 1);
    s.directions.push_back(std::move(dir));
  }
  s.given_batch = s.B;
  int64_t steps = 0;
  if (s.ragged) {
    s.given_rows = input.size(0);
    s.offsets = read_offsets(name, *batch_sizes, s.given_rows, h_0);
    s.T = static_cast<int64_t>(s.offsets.size()) - 1;
    s.R = s.offsets.back();
    s.B = s.T > 0 ? s.rows(0) : 0;
    steps = batch_sizes->numel();
  } else {
    s.T = steps = input.size(0);
    s.R = s.given_rows = s.T * s.B;
    check_sizes(name, "h_0", h_0, "[D, B, K]", {s.D, input.size(1), s.K});
    s.offsets.resize(s.T + 1);
    for (int64_t t = 0; t <= s.T; ++t) s.offsets[t] = t * s.B;
  }
  TORCH_CHECK(steps > 0, "seqkern::", name, ": input must have at least one time step, got ",
              input.sizes());
  TORCH_CHECK(s.projection || s.K == s.H, "seqkern::", name,
              ": h_0 must be [D, B, H] with H = ", s.H, ", got ", h_0.sizes());
  check_like(name, "h_0", h_0, input);
  for (const Direction& d : s.directions) {
    check_tensor(s, "w_ih", d.w_ih, "[G*H, I]", {width, s.I}, input);
    check_tensor(s, "w_hh", d.w_hh, s.projection ? "[G*H, P]" : "[G*H, H]", {width, s.K}, input);
    if (s.bias) {
      check_tensor(s, "b_ih", d.b_ih, "[G*H]", {width}, input);
      check_tensor(s, "b_hh", d.b_hh, "[G*H]", {width}, input);
    }
    if (s.projection) check_tensor(s, "w_hr", d.w_hr, "[P, H]", {s.K, s.H}, input);
  }
  TORCH_CHECK(c_0.has_value() == s.info.has_cell_state, "seqkern::", name, ": c_0 must be ",
              s.info.has_cell_state ? "given" : "None");
  if (c_0) check_tensor(s, "c_0", *c_0, "[D, B, H]", {s.D, s.given_batch, s.H}, input);
  return s;
}

}  // namespace seqkern::ops
