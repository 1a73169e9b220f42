#include "ops/layer_cuda.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "ops/run_cuda.h"

namespace seqkern::ops {

namespace {

using namespace gpu;

struct BackwardTensors {
  Tensor w_hh;  // as the recurrent columns of the gate gradients have its rows
  Tensor gates, grad_gates, projected, grad_projected_h, hidden, h_prev, grad_h;
  Tensor from_x, from_h;  // what the gates are made from again
  Tensor grad_w_ih, grad_w_hh, grad_w_hr;
};

void backward_stepwise(const Run& run, const Chunk (&chunks)[2], cuda::StepBackward& args,
                       const std::vector<BackwardTensors>& dirs) {
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
      return part(chunk, 0, args.step[d].row - chunks[d].row, args.step[d].rows);
    };
    if (s.projection) {
      cuda::launch_step_project(run.type, args, run.stream);
      for (int64_t d = 0; d < s.D; ++d) {
        const int64_t n = args.step[d].rows;
        if (n == 0) continue;
        product(part(dirs[d].projected, 0, 0, n), rows_of(dirs[d].grad_projected_h, d),
                run.directions[d].w_hr);
      }
    }
    cuda::launch_step_backward(s.cell, run.type, args, run.stream);
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t n = args.step[d].rows;
      if (n == 0) continue;
      product(part(dirs[d].grad_h, 0, 0, n),
              part(rows_of(dirs[d].grad_gates, d), 1, 0, s.info.gates * s.H), dirs[d].w_hh);
    }
  }
}

// The gradients of the biases: each chunk's sums over runs of rows, and in the end theirs. Where
// all rows are one run, its sum is all there is to do.
class BiasGrads {
 public:
  BiasGrads(const Run& run, Scratch& scratch)
      : run_(run),
        scratch_(scratch),
        width_(run.s.info.grad_gates * run.s.H),
        one_run_(run.chunks.size() == 1 && run.s.R <= cuda::kSumRows) {
    for (int64_t i = 0; !one_run_ && i < run.chunks.size(); ++i) {
      runs_ += cuda::sum_runs(run.chunks.at(i, false).rows);
    }
    sums_ = scratch.reserve(run.s.D * runs_ * width_, Element::Math);
  }

  void add_chunk(const Chunk (&chunks)[2], const std::vector<BackwardTensors>& dirs) {
    if (one_run_) return;
    cuda::Both<cuda::RunSums> args{};
    args.count = static_cast<int>(run_.s.D);
    for (int64_t d = 0; d < run_.s.D; ++d) {
      args.direction[d] = {.of = rows(dirs[d], chunks[d].rows), .sums = sums(d, done_[d])};
      done_[d] += cuda::sum_runs(chunks[d].rows);
    }
    cuda::launch_run_sums(run_.type, args, run_.stream);
  }

  // b_ih's and b_hh's gradients, which the launch of finish makes.
  std::array<Tensor, 2> finish(cuda::Finish& finish, int64_t d, const BackwardTensors& dir) const {
    const Layer& s = run_.s;
    const int64_t outputs = s.info.gates * s.H;
    // Separate tensors, also where the two are equal: each may be changed in place.
    const Tensor b_ih = run_.empty_stored({outputs}), b_hh = run_.empty_stored({outputs});
    finish.bias.direction[finish.bias.count++] = {
        .of = one_run_ ? rows(dir, s.R) : cuda::Rows{sums(d, 0), runs_, width_, Element::Math},
        .outputs = outputs,
        .input_offset = s.info.grad_input_offset * s.H,
        .rotation = s.info.grad_rotation * s.H,
        .b_ih = data(b_ih),
        .b_hh = data(b_hh),
    };
    return {b_ih, b_hh};
  }

 private:
  cuda::Rows rows(const BackwardTensors& dir, int64_t n) const {
    return {input_data(dir.grad_gates), n, width_, Element::Store};
  }
  void* sums(int64_t d, int64_t run) const {
    return scratch_.at(sums_, (d * runs_ + run) * width_);
  }

  const Run& run_;
  const Scratch& scratch_;
  int64_t width_;
  bool one_run_;
  int64_t runs_ = 0, done_[2] = {};
  Scratch::Piece sums_;
};

}  // namespace

BackwardResult backward_cuda(const Layer& s, const BackwardInputs& in) {
  const Run run(s, in.input, /*backward=*/true);
  const CellInfo& info = s.info;
  const int64_t H = s.H, K = s.K, G = info.gates, S = info.saved;
  const int64_t width = info.grad_gates * H;
  const int64_t rotation = info.grad_rotation * H, head = G * H - rotation;
  const bool recompute = S > 0 && in.gates.dim() == 1;
  const Tensor saved_gates = recompute ? Tensor() : in.gates.contiguous();

  const Tensor x = in.input.contiguous().view({s.R, s.I});
  const Tensor h0 = in.h_0.contiguous();
  const Tensor output = in.output.contiguous().view({s.R, s.D * K});
  const Tensor grad_output = in.grad_output.contiguous().view({s.R, s.D * K});
  const Tensor grad_h_n = in.grad_h_n.contiguous();
  // Runs through the steps and ends as the gradient of h_0.
  const Tensor grad_h = run.empty({s.D, s.B, K});
  Tensor c0, cells, grad_c_n, grad_state, step_grad_h, step_grad_c;
  if (info.has_cell_state) {
    c0 = in.c_0.contiguous();
    cells = in.cells.contiguous();
    grad_c_n = in.grad_c_n.contiguous();
  }
  if (info.has_cell_state || info.carries_grad_h) grad_state = run.empty({s.D, s.B, H});
  if (in.step_grads) {
    step_grad_h = run.empty({s.D, s.R, K});
    if (info.has_cell_state) step_grad_c = run.empty({s.D, s.R, H});
  }
  // Both directions add to the gradient of their common input.
  Tensor grad_x;
  if (in.needs_input_grad) grad_x = at::empty({s.R, s.I}, s.D == 1 ? run.storage : run.math);

  Scratch scratch(run);
  const Bias bias(run, scratch);
  const Exchange exchange(run, /*backward=*/true, scratch);
  std::optional<BiasGrads> bias_grads;
  if (s.bias && in.needs_params_grad) bias_grads.emplace(run, scratch);
  scratch.allocate();

  cuda::Prepare prepare{};
  const auto begin_with = [&](const Tensor& to, const Tensor& from) {
    add(prepare.fills,
        {.a = input_data(from), .to = data(to), .count = to.numel(), .type = Element::Math});
  };
  begin_with(grad_h, grad_h_n);
  if (grad_state.defined()) begin_with(grad_state, grad_c_n);
  if (recompute) bias.fill(prepare.fills);
  exchange.fill(prepare.fills);

  const int64_t most = run.chunks.max_rows();
  std::vector<BackwardTensors> dirs(s.D);
  for (int64_t d = 0; d < s.D; ++d) {
    BackwardTensors& dir = dirs[d];
    const Tensor& w_hh = run.directions[d].w_hh;
    if (rotation == 0) {
      dir.w_hh = w_hh;
    } else {
      dir.w_hh = run.empty_stored({G * H, K});
      add(prepare.fills,
          {.a = input_data(w_hh, rotation), .to = data(dir.w_hh), .count = head * K});
      add(prepare.fills,
          {.a = input_data(w_hh), .to = data(dir.w_hh, head), .count = rotation * K});
    }
    if (recompute) {
      dir.from_x = run.empty({most, G * H});
      dir.from_h = run.empty({most, G * H});
      dir.gates = run.empty_stored({most, S * H});
    }
    dir.grad_gates = run.empty_stored({most, width});
    if (run.plan.tier == cuda::Tier::Stepwise) dir.grad_h = grad_h[d];
    if (s.projection) {
      dir.projected = run.empty({s.B, H});
      dir.grad_projected_h = run.empty_stored({most, K});
      dir.hidden = run.empty_stored({most, H});
    }
    if (in.needs_params_grad || recompute) {
      dir.h_prev = s.T == 1 ? h0[d] : run.empty_stored({most, K});
    }
    if (in.needs_params_grad) {
      dir.grad_w_ih = run.empty({G * H, s.I});
      dir.grad_w_hh = run.empty({G * H, K});
      if (s.projection) dir.grad_w_hr = run.empty({K, H});
    }
  }

  for (int64_t i = 0; i < run.chunks.size(); ++i) {
    Chunk chunks[2];
    cuda::StepBackward args{};
    args.count = static_cast<int>(s.D);
    for (int64_t d = 0; d < s.D; ++d) {
      const auto chunk = chunks[d] = run.chunks.at(i, d == 0);
      if (!dirs[d].h_prev.defined() || s.T == 1) continue;
      prepare.gather[d] = {.steps = run.steps(chunk, d),
                           .K = K,
                           .row = chunk.row,
                           .rows = chunk.rows,
                           .output = input_data(output, 0, d * K),
                           .ldo = s.D * K,
                           .h_0 = input_data(h0, d),
                           .h_prev = data(dirs[d].h_prev)};
    }
    cuda::launch_prepare(run.type, prepare, run.stream);
    prepare.fills.count = 0;
    for (int64_t d = 0; d < s.D; ++d) {
      const BackwardTensors& dir = dirs[d];
      const Chunk& chunk = chunks[d];
      const void* gates = nullptr;
      if (recompute) {
        product(part(dir.from_x, 0, 0, chunk.rows), part(x, 0, chunk.row, chunk.rows),
                run.directions[d].w_ih.t());
        product(part(dir.from_h, 0, 0, chunk.rows), part(dir.h_prev, 0, 0, chunk.rows),
                run.directions[d].w_hh.t());
        cuda::launch_activate(s.cell, run.type,
                              {.H = H,
                               .rows = chunk.rows,
                               .x = input_data(dir.from_x),
                               .product = input_data(dir.from_h),
                               .bias = bias.of(d),
                               .gates = data(dir.gates)},
                              run.stream);
        gates = input_data(dir.gates);
      } else if (S > 0) {
        gates = input_data(saved_gates, d, chunk.row * S * H);
      }
      args.direction[d] = {
          .steps = run.steps(chunk, d),
          .H = H,
          .K = K,
          .grad_output = input_data(grad_output, 0, d * K),
          .output = input_data(output, 0, d * K),
          .ldo = s.D * K,
          .gates = gates,
          .cells = input_data(cells, d),
          .h_0 = input_data(h0, d),
          .c_0 = input_data(c0, d),
          .w_hh = input_data(dir.w_hh),
          .grad_h = data(grad_h, d),
          .projected = input_data(dir.projected),
          .grad_state = data(grad_state, d),
          .grad_gates = data(dir.grad_gates),
          .grad_projected_h = data(dir.grad_projected_h),
          .hidden = data(dir.hidden),
          .step_grad_h = data(step_grad_h, d),
          .step_grad_c = data(step_grad_c, d),
      };
    }

    if (s.B == 0) {
      // Nothing but the zero sums below.
    } else if (run.plan.tier == cuda::Tier::Stepwise) {
      backward_stepwise(run, chunks, args, dirs);
    } else if (run.plan.tier == cuda::Tier::Block) {
      cuda::launch_block_backward(s.cell, run.type, run.plan.block, args, run.stream);
    } else if (run.plan.tier == cuda::Tier::Grid) {
      cuda::launch_grid_backward(s.cell, run.type, run.plan.grid, args, exchange.of_grid(i),
                                 run.stream);
    } else {
      cuda::launch_mma_backward(s.cell, run.type, run.plan.mma, args, exchange.of_mma(i),
                                run.stream);
    }

    if (bias_grads) bias_grads->add_chunk(chunks, dirs);
    for (int64_t d = 0; d < s.D; ++d) {
      const BackwardTensors& dir = dirs[d];
      const Chunk& chunk = chunks[d];
      const Tensor of_x = part(x, 0, chunk.row, chunk.rows);
      const Tensor grad = part(dir.grad_gates, 0, 0, chunk.rows);
      const Tensor grad_in = part(grad, 1, info.grad_input_offset * H, G * H);
      if (in.needs_input_grad) {
        // The directions come from opposite ends: the second to reach a chunk adds.
        const int64_t other = run.chunks.size() - 1 - i;  // when the other direction has this chunk
        const bool add = s.D == 2 && (d == 0 ? other < i : other <= i);
        product(part(grad_x, 0, chunk.row, chunk.rows), grad_in, run.directions[d].w_ih, add);
      }
      if (in.needs_params_grad) {
        const Tensor h_prev = part(dir.h_prev, 0, 0, chunk.rows);
        product(dir.grad_w_ih, grad_in.t(), of_x, i > 0);
        product(dir.grad_w_hh, part(grad, 1, 0, G * H).t(), h_prev, i > 0);
        if (s.projection) {
          product(dir.grad_w_hr, part(dir.grad_projected_h, 0, 0, chunk.rows).t(),
                  part(dir.hidden, 0, 0, chunk.rows), i > 0);
        }
      }
    }
  }

  cuda::Finish finish{};
  // Elements of `to`, in the storage type, from those of a, or of a + b.
  const auto finish_with = [&](void* to, const void* a, const void* b, int64_t count) {
    add(finish.fills, {.a = a, .b = b, .to = to, .count = count, .from = Element::Math});
  };
  const auto stored = [&](const Tensor& t) {
    if (t.scalar_type() == in.input.scalar_type()) return t;
    const Tensor to = run.empty_stored(t.sizes());
    finish_with(data(to), input_data(t), nullptr, t.numel());
    return to;
  };
  const auto rotated_back = [&](const Tensor& w) {
    if (rotation == 0) return stored(w);
    const Tensor to = run.empty_stored(w.sizes());
    finish_with(data(to), input_data(w, head), nullptr, rotation * K);
    finish_with(data(to, rotation), input_data(w), nullptr, head * K);
    return to;
  };
  BackwardResult out;
  out.grad_input = in.needs_input_grad ? stored(grad_x).view(in.input.sizes()) : run.absent();
  if (!in.needs_h_0_grad) {
    out.grad_h_0 = run.absent();
  } else if (info.carries_grad_h) {
    out.grad_h_0 = run.empty_stored({s.D, s.B, K});
    finish_with(data(out.grad_h_0), input_data(grad_h), input_data(grad_state), grad_h.numel());
  } else {
    out.grad_h_0 = stored(grad_h);
  }
  out.grad_c_0 = info.has_cell_state ? stored(grad_state) : run.absent();
  for (int64_t d = 0; in.needs_params_grad && d < s.D; ++d) {
    out.grad_params.push_back(stored(dirs[d].grad_w_ih));
    out.grad_params.push_back(rotated_back(dirs[d].grad_w_hh));
    if (s.bias) {
      for (const Tensor& grad : bias_grads->finish(finish, d, dirs[d])) {
        out.grad_params.push_back(grad);
      }
    }
    if (s.projection) out.grad_params.push_back(stored(dirs[d].grad_w_hr));
  }
  out.step_grad_h = in.step_grads ? stored(step_grad_h) : run.absent();
  out.step_grad_c = in.step_grads && info.has_cell_state ? stored(step_grad_c) : run.absent();
  cuda::launch_finish(run.type, finish, run.stream);
  return out;
}

}  // namespace seqkern::ops
