#include "ops/layer_cuda.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "ops/run_cuda.h"

namespace seqkern::ops {

namespace {

using namespace gpu;

// What a direction's products take and give.
struct ForwardTensors {
  Tensor w_ih, w_hh, w_hr;  // transposed
  Tensor from_x, product, h, hidden;
};

void forward_stepwise(const Run& run, const Chunk (&chunks)[2], cuda::StepForward& args,
                      const std::vector<ForwardTensors>& dirs, const Tensor& output) {
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
      product(part(dirs[d].product, 0, 0, n), part(dirs[d].h, 0, 0, n), dirs[d].w_hh);
    }
    cuda::launch_step_forward(s.cell, run.type, args, run.stream);
    if (!s.projection) continue;
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t n = args.step[d].rows;
      if (n == 0) continue;
      const Tensor projected = part(dirs[d].h, 0, 0, n);
      product(projected, part(dirs[d].hidden, 0, 0, n), dirs[d].w_hr);
      output.narrow(0, args.step[d].row, n).narrow(1, d * s.K, s.K).copy_(projected);
    }
  }
}

}  // namespace

ForwardResult forward_cuda(const Layer& s, const Tensor& input, const Tensor& h_0,
                           const std::optional<Tensor>& c_0, Save save) {
  const Run run(s, input, /*backward=*/false);
  const int64_t H = s.H, K = s.K, G = s.info.gates, S = s.info.saved;
  const bool has_c = s.info.has_cell_state;

  const Tensor x = input.contiguous().view({s.R, s.I});
  const Tensor h0 = h_0.contiguous(), c0 = has_c ? c_0->contiguous() : Tensor();
  const Tensor output = run.empty_stored({s.R, s.D * K});
  // The running h, which ends as h_n. The running c does so where it has the same type.
  const Tensor h = run.empty_stored({s.D, s.B, K});
  Tensor c_n, cells, gates;
  if (has_c) {
    c_n = run.empty_stored({s.D, s.B, H});
    if (save != Save::None) cells = run.empty({s.D, s.R, H});
  }
  if (save == Save::Gates) gates = run.empty_stored({s.D, s.R, S * H});

  if (s.B > 0) {
    Scratch scratch(run);
    const Bias bias(run, scratch);
    const Exchange exchange(run, /*backward=*/false, scratch);
    const auto running_c =
        scratch.reserve(has_c && run.converts() ? s.D * s.B * H : 0, Element::Math);
    scratch.allocate();
    const auto c_at = [&](int64_t d) {
      return run.converts() ? scratch.at(running_c, d * s.B * H) : data(c_n, d);
    };

    cuda::Prepare prepare{};
    add(prepare.fills, {.a = input_data(h0), .to = data(h), .count = h.numel()});
    if (has_c) {
      add(prepare.fills,
          {.a = input_data(c0), .to = c_at(0), .count = c_n.numel(), .type = Element::Math});
    }
    bias.fill(prepare.fills);
    exchange.fill(prepare.fills);
    cuda::launch_prepare(run.type, prepare, run.stream);

    const bool stepwise = run.plan.tier == cuda::Tier::Stepwise;
    std::vector<ForwardTensors> dirs(s.D);
    for (int64_t d = 0; d < s.D; ++d) {
      const Direction& params = run.directions[d];
      ForwardTensors& dir = dirs[d];
      dir.w_ih = params.w_ih.t();
      dir.from_x = run.empty({run.chunks.max_rows(), G * H});
      if (stepwise) {
        dir.w_hh = params.w_hh.t();
        dir.product = run.empty({s.B, G * H});
        dir.h = h[d];
      }
      if (s.projection) {
        dir.w_hr = params.w_hr.t();
        dir.hidden = run.empty_stored({s.B, H});
      }
    }
    for (int64_t i = 0; i < run.chunks.size(); ++i) {
      Chunk chunks[2];
      cuda::StepForward args{};
      args.count = static_cast<int>(s.D);
      for (int64_t d = 0; d < s.D; ++d) {
        const ForwardTensors& dir = dirs[d];
        const auto chunk = chunks[d] = run.chunks.at(i, d == 1);
        product(part(dir.from_x, 0, 0, chunk.rows), part(x, 0, chunk.row, chunk.rows), dir.w_ih);
        args.product[d] = input_data(dir.product);
        args.direction[d] = {
            .steps = run.steps(chunk, d),
            .H = H,
            .K = K,
            .x = input_data(dir.from_x),
            .bias = bias.of(d),
            .w_hh = input_data(run.directions[d].w_hh),
            .h_0 = input_data(h0, d),
            .h = data(h, d),
            .c = has_c ? c_at(d) : nullptr,
            .c_n = run.converts() ? data(c_n, d) : nullptr,
            .output = data(output, 0, d * K),
            .ldo = s.D * K,
            .gates = data(gates, d),
            .cells = data(cells, d),
            .hidden = data(dir.hidden),
        };
      }
      if (stepwise) {
        forward_stepwise(run, chunks, args, dirs, output);
      } else if (run.plan.tier == cuda::Tier::Block) {
        cuda::launch_block_forward(s.cell, run.type, run.plan.block, args, run.stream);
      } else if (run.plan.tier == cuda::Tier::Grid) {
        cuda::launch_grid_forward(s.cell, run.type, run.plan.grid, args, exchange.of_grid(i),
                                  run.stream);
      } else {
        cuda::launch_mma_forward(s.cell, run.type, run.plan.mma, args, exchange.of_mma(i),
                                 run.stream);
      }
    }
  }

  return {output.view(s.sequence_sizes(s.D * K)), h, has_c ? c_n : run.absent(),
          gates.defined() ? gates : run.absent(),
          cells.defined() ? cells : at::empty({0}, run.math)};
}

}  // namespace seqkern::ops
