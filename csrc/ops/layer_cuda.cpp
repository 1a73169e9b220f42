#include "ops/layer_cuda.h"

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cstring>

#include "cuda/kernels.h"
#include "cuda/plan.h"
#include "ops/chunks.h"
#include "ops/device_cuda.h"

namespace seqkern::ops {

namespace {

using at::Tensor;

cuda::Type type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return cuda::Type::F64;
    case at::kBFloat16:
      return cuda::Type::BF16;
    case at::kHalf:
      return cuda::Type::F16;
    default:
      return cuda::Type::F32;
  }
}

// Element (first, 0, ...) of a contiguous tensor or of one with contiguous rows; null where
// undefined.
void* data(const Tensor& tensor, int64_t first = 0) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  auto* p = static_cast<char*>(tensor.mutable_data_ptr());
  return p + first * tensor.stride(0) * tensor.element_size();
}
const void* input_data(const Tensor& tensor, int64_t first = 0) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  auto* p = static_cast<const char*>(tensor.const_data_ptr());
  return p + first * tensor.stride(0) * tensor.element_size();
}

// out = a b or out += a b. out may have the arithmetic's type where a and b are in a shorter one.
// float32 products are TF32 only where torch's own switch asks for it.
void product(Tensor out, const Tensor& a, const Tensor& b, bool add = false) {
  if (out.scalar_type() == a.scalar_type()) {
    at::addmm_out(out, out, a, b, add ? 1 : 0);
  } else if (!a.is_cuda()) {
    // Only CUDA has products with a wider result.
    at::addmm_out(out, out, a.to(out.scalar_type()), b.to(out.scalar_type()), add ? 1 : 0);
  } else if (add) {
    out.add_(at::mm(a, b, out.scalar_type()));
  } else {
    at::mm_outf(a, b, out.scalar_type(), out);
  }
}

// What forward and backward have in common: types, plan, chunks.
struct Run {
  const Layer& s;
  c10::DeviceGuard guard;
  at::TensorOptions storage, math;
  cuda::Type type;
  cuda::Stream stream;
  cuda::Plan plan;
  Chunks chunks;
  Tensor offsets;  // on the device, where rows are ragged

  Run(const Layer& layer, const Tensor& input, bool backward)
      : s(layer),
        guard(input.device()),
        storage(input.options()),
        math(storage.dtype(at::toOpMathType(input.scalar_type()))),
        type(type_of(input.scalar_type())),
        stream(current_stream(input.device())),
        plan(cuda::plan_for({.cell = s.cell,
                             .type = type,
                             .B = s.B,
                             .H = s.H,
                             .K = s.K,
                             .directions = static_cast<int>(s.D),
                             .projection = s.projection,
                             .backward = backward},
                            properties(input.device()))),
        chunks(s, plan.chunk_rows) {
    if (s.ragged) {
      // From pinned memory, so that the host does not wait for the copy.
      const auto on_host = at::dtype(at::kLong).pinned_memory(input.is_cuda());
      Tensor host = at::empty({s.T + 1}, on_host);
      std::memcpy(host.mutable_data_ptr(), s.offsets.data(), (s.T + 1) * sizeof(int64_t));
      offsets = host.to(input.device(), /*non_blocking=*/true);
    }
  }

  Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, math); }
  Tensor empty_stored(at::IntArrayRef sizes) const { return at::empty(sizes, storage); }
  Tensor stored(const Tensor& t) const { return t.to(storage.dtype()); }
  // Outputs of an operator may not alias: each absent one is a tensor of its own.
  Tensor absent() const { return empty_stored({0}); }

  // For kernels; or with offsets that the host can read.
  cuda::Steps steps(const Chunk& c, int64_t d) const {
    return {static_cast<const int64_t*>(input_data(offsets)), s.B, s.T, c.begin, c.end, d == 1};
  }
  cuda::Step step(int64_t t, int64_t d) const {
    return cuda::step_at({s.offsets.data(), s.B, s.T, 0, s.T, d == 1}, t);
  }
};

// [D, G + 1, H], as cuda::Forward has it: the biases that are added outside any product, and in the
// last row what lies inside the last gate's (the GRU's b_hn, which the reset gate multiplies).
Tensor pack_bias(const Run& run) {
  const Layer& s = run.s;
  const int64_t G = s.info.gates, outside = s.info.recurrent_bias ? G - 1 : G;
  if (!s.bias) return at::zeros({s.D, G + 1, s.H}, run.math);
  Tensor packed = run.empty({s.D, G + 1, s.H});
  for (int64_t d = 0; d < s.D; ++d) {
    const Direction& dir = s.directions[d];
    const Tensor b_ih = dir.b_ih.to(run.math.dtype()).view({G, s.H});
    const Tensor b_hh = dir.b_hh.to(run.math.dtype()).view({G, s.H});
    packed[d].narrow(0, 0, G).copy_(b_ih);
    packed[d].narrow(0, 0, outside).add_(b_hh.narrow(0, 0, outside));
    if (outside < G) {
      packed[d][G].copy_(b_hh[outside]);
    } else {
      packed[d][G].zero_();
    }
  }
  return packed;
}

// What blocks that wait for each other need: counters, and room for what they exchange.
struct Exchange {
  Tensor counters, memory;

  Exchange(const Run& run, bool backward) {
    const cuda::Plan& plan = run.plan;
    const bool grid = plan.tier == cuda::Tier::Grid, mma = plan.tier == cuda::Tier::Mma;
    const int64_t of_direction = grid ? 1 : mma ? plan.mma.row_tiles : 0;
    counters = at::empty({run.s.D * of_direction}, run.storage.dtype(at::kInt));
    if (mma) memory = at::zeros({plan.mma.exchange}, run.storage);
    if (grid && backward) memory = run.empty({plan.grid.partials});
  }
  uint32_t* zeroed_counters() const {
    counters.zero_();
    return static_cast<uint32_t*>(data(counters));
  }
};

// ---- forward ----

void forward_stepwise(const Run& run, const Chunk (&chunks)[2], cuda::StepForward& args,
                      const std::vector<Tensor>& w_hh, const std::vector<Tensor>& w_hr,
                      const Tensor& h, const Tensor& hidden, const Tensor& output,
                      const Tensor& products) {
  const Layer& s = run.s;
  const int64_t steps = chunks[0].end - chunks[0].begin;
  // Directions take chunks from opposite ends; these need not have as many steps.
  const int64_t most = s.D == 1 ? steps : std::max(steps, chunks[1].end - chunks[1].begin);
  for (int64_t i = 0; i < most; ++i) {
    for (int64_t d = 0; d < s.D; ++d) {
      const Chunk& c = chunks[d];
      args.step[d] = {};
      if (i >= c.end - c.begin) continue;
      const int64_t t = d == 0 ? c.begin + i : c.end - 1 - i;
      args.step[d] = run.step(t, d);
      const int64_t n = args.step[d].rows;
      product(products[d].narrow(0, 0, n), h[d].narrow(0, 0, n), w_hh[d]);
    }
    cuda::launch_step_forward(s.cell, run.type, args, run.stream);
    if (!s.projection) continue;
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t n = args.step[d].rows;
      if (n == 0) continue;
      Tensor projected = h[d].narrow(0, 0, n);
      product(projected, hidden[d].narrow(0, 0, n), w_hr[d]);
      output.narrow(0, args.step[d].row, n).narrow(1, d * s.K, s.K).copy_(projected);
    }
  }
}

}  // namespace

ForwardResult forward_cuda(const Layer& s, const Tensor& input, const Tensor& h_0,
                           const std::optional<Tensor>& c_0, Save save) {
  const Run run(s, input, /*backward=*/false);
  const int64_t H = s.H, K = s.K, G = s.info.gates, S = s.info.saved;

  const Tensor x = input.contiguous().view({s.R, s.I});
  const Tensor output = run.empty_stored({s.R, s.D * K});
  // The running states, which end as h_n and c_n.
  const Tensor h0 = h_0.contiguous(), h = run.empty_stored({s.D, s.B, K});
  h.copy_(h0);
  Tensor c, cells, gates;
  if (s.info.has_cell_state) {
    c = run.empty({s.D, s.B, H});
    c.copy_(*c_0);
    if (save != Save::None) cells = run.empty({s.D, s.R, H});
  }
  if (save == Save::Gates) gates = run.empty_stored({s.D, s.R, S * H});

  if (s.B > 0) {
    const bool stepwise = run.plan.tier == cuda::Tier::Stepwise;
    const Tensor bias = pack_bias(run);
    const Tensor from_x = run.empty({s.D, run.chunks.max_rows(), G * H});
    Tensor products, hidden;
    if (stepwise) products = run.empty({s.D, s.B, G * H});
    if (s.projection) hidden = run.empty_stored({s.D, s.B, H});
    const Exchange exchange(run, /*backward=*/false);
    std::vector<Tensor> w_ih, w_hh, w_hr;
    for (const Direction& dir : s.directions) {
      w_ih.push_back(dir.w_ih.contiguous().t());
      w_hh.push_back(dir.w_hh.contiguous().t());
      if (s.projection) w_hr.push_back(dir.w_hr.contiguous().t());
    }
    for (int64_t i = 0; i < run.chunks.size(); ++i) {
      Chunk chunks[2];
      cuda::StepForward args{};
      args.count = static_cast<int>(s.D);
      for (int64_t d = 0; d < s.D; ++d) {
        const auto chunk = chunks[d] = run.chunks.at(i, d == 1);
        product(from_x[d].narrow(0, 0, chunk.rows), x.narrow(0, chunk.row, chunk.rows), w_ih[d]);
        if (stepwise) args.product[d] = input_data(products[d]);
        args.direction[d] = {
            .steps = run.steps(chunk, d),
            .H = H,
            .K = K,
            .x = input_data(from_x[d]),
            .bias = input_data(bias[d]),
            .w_hh = input_data(w_hh[d].t()),
            .h_0 = input_data(h0[d]),
            .h = data(h[d]),
            .c = c.defined() ? data(c[d]) : nullptr,
            .output = data(output.narrow(1, d * K, K)),
            .ldo = s.D * K,
            .gates = gates.defined() ? data(gates[d]) : nullptr,
            .cells = cells.defined() ? data(cells[d]) : nullptr,
            .hidden = s.projection ? data(hidden[d]) : nullptr,
        };
      }
      if (stepwise) {
        forward_stepwise(run, chunks, args, w_hh, w_hr, h, hidden, output, products);
      } else if (run.plan.tier == cuda::Tier::Block) {
        cuda::launch_block_forward(s.cell, run.type, run.plan.block, args, run.stream);
      } else if (run.plan.tier == cuda::Tier::Grid) {
        cuda::launch_grid_forward(s.cell, run.type, run.plan.grid, args,
                                  {exchange.zeroed_counters(), nullptr, 0, 0, 0}, run.stream);
      } else {
        cuda::launch_mma_forward(s.cell, run.type, run.plan.mma, args,
                                 {exchange.zeroed_counters(), data(exchange.memory), 0, 0, 0},
                                 run.stream);
      }
    }
  }

  return {output.view(s.sequence_sizes(s.D * K)), h, c.defined() ? run.stored(c) : run.absent(),
          gates.defined() ? gates : run.absent(),
          cells.defined() ? cells : at::empty({0}, run.math)};
}

// ---- backward ----

namespace {

struct PerDirection {
  Tensor w_ih, w_hh, w_hr;
  Tensor gates, grad_gates, projected, grad_projected_h, hidden, h_prev;
  Tensor from_x, from_h;  // what the gates are made from again
  Tensor grad_w_ih, grad_w_hh, grad_b, grad_w_hr;
};

void backward_stepwise(const Run& run, const Chunk (&chunks)[2], cuda::StepBackward& args,
                       const std::vector<PerDirection>& dirs, const Tensor& grad_h) {
  const Layer& s = run.s;
  int64_t steps = 0;
  for (int64_t d = 0; d < s.D; ++d) steps = std::max(steps, chunks[d].end - chunks[d].begin);
  for (int64_t j = 0; j < steps; ++j) {
    // Against the direction's own time.
    for (int64_t d = 0; d < s.D; ++d) {
      const Chunk& c = chunks[d];
      args.step[d] = {};
      if (j < c.end - c.begin) args.step[d] = run.step(d == 0 ? c.end - 1 - j : c.begin + j, d);
    }
    const auto rows_of = [&](const Tensor& chunk, int64_t d) {
      return chunk.narrow(0, args.step[d].row - chunks[d].row, args.step[d].rows);
    };
    if (s.projection) {
      cuda::launch_step_project(run.type, args, run.stream);
      for (int64_t d = 0; d < s.D; ++d) {
        const int64_t n = args.step[d].rows;
        if (n == 0) continue;
        product(dirs[d].projected.narrow(0, 0, n), rows_of(dirs[d].grad_projected_h, d),
                dirs[d].w_hr);
      }
    }
    cuda::launch_step_backward(s.cell, run.type, args, run.stream);
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t n = args.step[d].rows;
      if (n == 0) continue;
      product(grad_h[d].narrow(0, 0, n),
              rows_of(dirs[d].grad_gates, d).narrow(1, 0, s.info.gates * s.H), dirs[d].w_hh);
    }
  }
}

}  // namespace

BackwardResult backward_cuda(const Layer& s, const BackwardInputs& in) {
  const Run run(s, in.input, /*backward=*/true);
  const CellInfo& info = s.info;
  const int64_t H = s.H, K = s.K, G = info.gates, S = info.saved;
  const int64_t width = info.grad_gates * H;
  const int64_t rotation = info.grad_rotation * H, head = G * H - rotation;
  const bool recompute = S > 0 && in.gates.dim() == 1;

  const Tensor x = in.input.contiguous().view({s.R, s.I});
  const Tensor h0 = in.h_0.contiguous();
  const Tensor output = in.output.contiguous().view({s.R, s.D * K});
  const Tensor grad_output = in.grad_output.contiguous().view({s.R, s.D * K});
  // Runs through the steps and ends as the gradient of h_0.
  const Tensor grad_h = run.empty({s.D, s.B, K});
  grad_h.copy_(in.grad_h_n);
  Tensor c0, cells, grad_state, step_grad_h, step_grad_c;
  if (info.has_cell_state) {
    c0 = in.c_0.contiguous();
    cells = in.cells.contiguous();
    grad_state = run.empty({s.D, s.B, H});
    grad_state.copy_(in.grad_c_n);
  } else if (info.carries_grad_h) {
    grad_state = at::zeros({s.D, s.B, H}, run.math);
  }
  if (in.step_grads) {
    step_grad_h = run.empty({s.D, s.R, K});
    if (info.has_cell_state) step_grad_c = run.empty({s.D, s.R, H});
  }
  // Both directions add to the gradient of their common input.
  Tensor grad_x;
  if (in.needs_input_grad) grad_x = at::empty({s.R, s.I}, s.D == 1 ? run.storage : run.math);

  // W_hh's rows as the recurrent columns of the gate gradients have them.
  const auto rotated = [&](const Tensor& w) {
    const Tensor rows = w.contiguous();
    if (rotation == 0) return rows;
    return at::cat({rows.narrow(0, rotation, head), rows.narrow(0, 0, rotation)});
  };
  const auto rotated_back = [&](const Tensor& w) {
    return rotation == 0 ? w : at::cat({w.narrow(0, head, rotation), w.narrow(0, 0, head)});
  };
  const int64_t most = run.chunks.max_rows();
  const Exchange exchange(run, /*backward=*/true);
  const Tensor bias = recompute ? pack_bias(run) : Tensor();
  std::vector<PerDirection> dirs(s.D);
  for (int64_t d = 0; d < s.D; ++d) {
    PerDirection& dir = dirs[d];
    dir.w_ih = s.directions[d].w_ih.contiguous();
    dir.w_hh = rotated(s.directions[d].w_hh);
    if (recompute) {
      dir.from_x = run.empty({most, G * H});
      dir.from_h = run.empty({most, G * H});
      dir.gates = run.empty_stored({most, S * H});
    }
    dir.grad_gates = run.empty_stored({most, width});
    if (s.projection) {
      dir.w_hr = s.directions[d].w_hr.contiguous();
      dir.projected = run.empty({s.B, H});
      dir.grad_projected_h = run.empty_stored({most, K});
      dir.hidden = run.empty_stored({most, H});
    }
    if (in.needs_params_grad || recompute) dir.h_prev = run.empty_stored({most, K});
    if (in.needs_params_grad) {
      dir.grad_w_ih = run.empty({G * H, s.I});
      dir.grad_w_hh = run.empty({G * H, K});
      if (s.bias) dir.grad_b = at::zeros({width}, run.math);
      if (s.projection) dir.grad_w_hr = run.empty({K, H});
    }
  }

  for (int64_t i = 0; i < run.chunks.size(); ++i) {
    Chunk chunks[2];
    cuda::StepBackward args{};
    args.count = static_cast<int>(s.D);
    for (int64_t d = 0; d < s.D; ++d) {
      PerDirection& dir = dirs[d];
      const auto chunk = chunks[d] = run.chunks.at(i, d == 0);
      if (dir.h_prev.defined()) {
        cuda::launch_gather(run.type,
                            {.steps = run.steps(chunk, d),
                             .K = K,
                             .row = chunk.row,
                             .rows = chunk.rows,
                             .output = input_data(output.narrow(1, d * K, K)),
                             .ldo = s.D * K,
                             .h_0 = input_data(h0[d]),
                             .h_prev = data(dir.h_prev)},
                            run.stream);
      }
      Tensor gates = dir.gates;
      if (recompute) {
        product(dir.from_x.narrow(0, 0, chunk.rows), x.narrow(0, chunk.row, chunk.rows),
                dir.w_ih.t());
        product(dir.from_h.narrow(0, 0, chunk.rows), dir.h_prev.narrow(0, 0, chunk.rows),
                s.directions[d].w_hh.t());
        cuda::launch_activate(s.cell, run.type,
                              {.H = H,
                               .rows = chunk.rows,
                               .x = input_data(dir.from_x),
                               .product = input_data(dir.from_h),
                               .bias = input_data(bias[d]),
                               .gates = data(gates)},
                              run.stream);
      } else if (S > 0) {
        gates = in.gates[d].narrow(0, chunk.row, chunk.rows);
      }
      args.direction[d] = {
          .steps = run.steps(chunk, d),
          .H = H,
          .K = K,
          .grad_output = input_data(grad_output.narrow(1, d * K, K)),
          .output = input_data(output.narrow(1, d * K, K)),
          .ldo = s.D * K,
          .gates = input_data(gates),
          .cells = cells.defined() ? input_data(cells[d]) : nullptr,
          .h_0 = input_data(h0[d]),
          .c_0 = c0.defined() ? input_data(c0[d]) : nullptr,
          .w_hh = input_data(dir.w_hh),
          .grad_h = data(grad_h[d]),
          .projected = input_data(dir.projected),
          .grad_state = grad_state.defined() ? data(grad_state[d]) : nullptr,
          .grad_gates = data(dir.grad_gates),
          .grad_projected_h = data(dir.grad_projected_h),
          .hidden = data(dir.hidden),
          .step_grad_h = step_grad_h.defined() ? data(step_grad_h[d]) : nullptr,
          .step_grad_c = step_grad_c.defined() ? data(step_grad_c[d]) : nullptr,
      };
    }

    if (s.B == 0) {
      // Nothing but the zero sums below.
    } else if (run.plan.tier == cuda::Tier::Stepwise) {
      backward_stepwise(run, chunks, args, dirs, grad_h);
    } else if (run.plan.tier == cuda::Tier::Block) {
      cuda::launch_block_backward(s.cell, run.type, run.plan.block, args, run.stream);
    } else if (run.plan.tier == cuda::Tier::Grid) {
      cuda::launch_grid_backward(s.cell, run.type, run.plan.grid, args,
                                 {exchange.zeroed_counters(), data(exchange.memory), 0, 0, 0},
                                 run.stream);
    } else {
      cuda::launch_mma_backward(s.cell, run.type, run.plan.mma, args,
                                {exchange.zeroed_counters(), data(exchange.memory), 0, 0, 0},
                                run.stream);
    }

    for (int64_t d = 0; d < s.D; ++d) {
      PerDirection& dir = dirs[d];
      const auto& chunk = chunks[d];
      const Tensor grad = dir.grad_gates.narrow(0, 0, chunk.rows);
      const Tensor grad_in = grad.narrow(1, info.grad_input_offset * H, G * H);
      const Tensor grad_rec = grad.narrow(1, 0, G * H);
      if (in.needs_input_grad) {
        // The directions come from opposite ends: the second to reach a chunk adds.
        const int64_t other = run.chunks.size() - 1 - i;  // when the other direction has this chunk
        const bool add = s.D == 2 && (d == 0 ? other < i : other <= i);
        product(grad_x.narrow(0, chunk.row, chunk.rows), grad_in, dir.w_ih, add);
      }
      if (in.needs_params_grad) {
        const Tensor h_prev = dir.h_prev.narrow(0, 0, chunk.rows);
        product(dir.grad_w_ih, grad_in.t(), x.narrow(0, chunk.row, chunk.rows), i > 0);
        product(dir.grad_w_hh, grad_rec.t(), h_prev, i > 0);
        if (s.bias) dir.grad_b.add_(at::sum(grad, {0}, false, run.math.dtype().toScalarType()));
        if (s.projection) {
          product(dir.grad_w_hr, dir.grad_projected_h.narrow(0, 0, chunk.rows).t(),
                  dir.hidden.narrow(0, 0, chunk.rows), i > 0);
        }
      }
    }
  }

  BackwardResult out;
  out.grad_input = in.needs_input_grad ? run.stored(grad_x).view(in.input.sizes()) : run.absent();
  if (in.needs_h_0_grad && info.carries_grad_h) grad_h.add_(grad_state);
  out.grad_h_0 = in.needs_h_0_grad ? run.stored(grad_h) : run.absent();
  out.grad_c_0 = info.has_cell_state ? run.stored(grad_state) : run.absent();
  if (in.needs_params_grad) {
    for (const PerDirection& dir : dirs) {
      out.grad_params.push_back(run.stored(dir.grad_w_ih));
      out.grad_params.push_back(run.stored(rotated_back(dir.grad_w_hh)));
      if (s.bias) {
        const Tensor grad_b_ih = dir.grad_b.narrow(0, info.grad_input_offset * H, G * H);
        const Tensor grad_b_hh = rotated_back(dir.grad_b.narrow(0, 0, G * H));
        // Separate tensors, also where the two are equal: each may be changed in place.
        out.grad_params.push_back(run.empty_stored({G * H}).copy_(grad_b_ih));
        out.grad_params.push_back(run.empty_stored({G * H}).copy_(grad_b_hh));
      }
      if (s.projection) out.grad_params.push_back(run.stored(dir.grad_w_hr));
    }
  }
  out.step_grad_h = in.step_grads ? run.stored(step_grad_h) : run.absent();
  out.step_grad_c = in.step_grads && info.has_cell_state ? run.stored(step_grad_c) : run.absent();
  return out;
}

}  // namespace seqkern::ops
