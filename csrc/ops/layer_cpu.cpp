#include "ops/layer_cpu.h"

#include <utility>

#include "ops/run_cpu.h"
#include "ops/step_cpu.h"
#include "ops/zero_state.h"

namespace seqkern::ops {

namespace {

// A product with fewer rows than this loses more to its start than a larger chunk to the cache.
constexpr int64_t kForwardChunkRows = 512;

template <typename T>
ForwardResult forward(const cpu::LayerKernels<T>& table, const Layer& s, const Tensor& input,
                      const Tensor& h_0, const Tensor& c_0, Save save) {
  using A = Arithmetic<T>;
  const bool save_gates = save == Save::Gates;
  const int cell = static_cast<int>(s.cell);
  const int64_t H = s.H, K = s.K, G = s.info.gates, S = s.info.saved;
  // Gates in the arithmetic's type are computed where they are saved, input product included. Those
  // that the kernels save in another one need a place of their own.
  constexpr bool same = std::is_same_v<T, A>;
  const bool in_place = save_gates && S >= G && same && input.scalar_type() == kTypeOf<T>;
  Run<T> run(table, s, input.options(), static_cast<int>(G), table.panel_units[cell], 2,
             kForwardChunkRows, in_place ? Groups::kOfAll : Groups::kOfAllSpaced);

  const cpu::PlacedRows<T> x = run.place(input);
  const T* const h0 = run.template read<T>(h_0);
  const bool from_zero = is_zero(h0, s.D * s.B * K);
  Tensor output = run.template empty<T>(s.sequence_sizes(s.D * K));
  Tensor h_n = run.template empty<T>({s.D, s.B, K});
  // The running cell state, which ends as c_n.
  Tensor c, cells, gates;
  // The running h of a cell that adds to it, which in bfloat16 has more bits than output.
  Tensor h;
  if (s.info.carries_grad_h && !std::is_same_v<T, A>) {
    h = run.empty({s.D, s.B, H});
    std::copy_n(run.template read<A>(h_0), h.numel(), data<A>(h));
  }
  if (s.info.has_cell_state) {
    c = run.empty({s.D, s.B, H});
    std::copy_n(run.template read<A>(c_0), c.numel(), data<A>(c));
    if (save != Save::None) cells = run.empty({s.D, s.R, H});
  }
  if (save_gates) gates = empty_cpu({s.D, s.R, S * H}, run.storage);

  const int64_t width = save_gates && same ? std::max(G, S) * H : G * H;
  const int64_t most = run.chunks.max_rows();
  struct PerDirection {
    Factor<T> from_x, from_h;
    const T *w_hh, *w_hr = nullptr;
    T *packed_hh = nullptr, *packed_hr = nullptr, *hidden = nullptr;
    A *bias, *product = nullptr;
    T* input = nullptr;  // a chunk's rows, where all of them do not follow one another
    A* chunk = nullptr;  // a chunk's activations, where they are not in place
    Tensor scratch;      // the same as a tensor, where they are converted
  };
  const bool plain =
      s.T > 1 && table.dot_steps(static_cast<int>(G), s.T, s.R, K, cpu::plain_rows());
  std::vector<PerDirection> dirs(s.D);
  for (int64_t d = 0; d < s.D; ++d) {
    PerDirection& dir = dirs[d];
    const Direction& params = s.directions[d];
    const Matrix<const T> w_ih{run.template read<T>(params.w_ih), G * H, s.I, s.I};
    dir.from_x = run.factor(w_ih.transposed(), most, run.chunks.size());
    dir.w_hh = run.template read<T>(params.w_hh);
    dir.bias = pack_bias(run, params);
    if (!run.dense(x)) dir.input = run.template scratch<T>(most * s.I);
    if (!in_place) {
      if (run.converts()) dir.scratch = run.empty({most, width});
      dir.chunk = run.converts() ? data<A>(dir.scratch) : run.template scratch<A>(most * width);
    }
    if (s.T == 1 && !from_zero) {
      // Packing would take longer than the product: let it be one of the large ones.
      dir.product = run.template scratch<A>(s.B * G * H);
      dir.from_h = run.factor(Matrix<const T>{dir.w_hh, G * H, K, K}.transposed(), s.B, 1);
    } else if (s.T > 1 && !plain) {
      dir.packed_hh = run.template scratch<T>(table.packed_gates_size(G, H, K));
    }
    if (s.projection) {
      dir.w_hr = run.template read<T>(params.w_hr);
      dir.packed_hr = run.template scratch<T>(table.packed_gates_size(1, K, H));
      dir.hidden = run.template scratch<T>(s.B * H);
    }
  }
  // The first row of a chunk's activations.
  const auto base = [&](int64_t d, const Chunk& chunk) {
    return in_place ? data<A>(gates, (d * s.R + chunk.row) * width) : dirs[d].chunk;
  };
  const auto saved = [&](int64_t d, const Chunk& chunk) -> T* {
    if (!save_gates || S == 0) return nullptr;
    if constexpr (same) {
      return base(d, chunk);
    } else {
      return data<T>(gates, (d * s.R + chunk.row) * S * H);
    }
  };

  run.execute([&](const Team<T>& team) {
    // Units are dealt to threads as the steps will read them.
    run.directions(team, nullptr, [&](int64_t d, const cpu::Worker& worker) {
      const PerDirection& dir = dirs[d];
      if (dir.packed_hh) {
        table.pack_gates(dir.w_hh, K, G, H, K, dir.packed_hh, worker.index, worker.count);
      }
      if (s.projection) {
        table.pack_gates(dir.w_hr, H, 1, K, H, dir.packed_hr, worker.index, worker.count);
      }
    });
    for (PerDirection& dir : dirs) {
      team.pack(dir.from_x);
      if (dir.product) team.pack(dir.from_h);
    }
    team.wait();
    bool apart = false;
    for (int64_t i = 0; i < run.chunks.size(); ++i) {
      Chunk chunks[2];
      struct FromX {
        typename Team<T>::Product product;
        Matrix<const T> rows;
        StepRows steps;
        bool dealt;
      } from_x[2];
      // Whether each thread's steps read what it made itself, so that nobody waits for another.
      const bool was_apart = std::exchange(apart, s.T > 1);
      for (int64_t d = 0; d < s.D; ++d) {
        const Chunk chunk = chunks[d] = run.chunks.at(i, d == 1);
        FromX& f = from_x[d];
        f = {{{base(d, chunk), chunk.rows, G * H, width}, &dirs[d].from_x},
             {dirs[d].input ? dirs[d].input : x.data + chunk.row * s.I, chunk.rows, s.I, s.I},
             run.step_rows(chunk)};
        f.dealt = team.deals(f.product, f.rows, f.steps);
        apart = apart && f.dealt;
      }
      // The products go where the chunk before had its own.
      if (i > 0 && !(apart && was_apart)) team.wait();
      bool shared = false;
      for (int64_t d = 0; d < s.D; ++d) {
        if (!dirs[d].input) continue;
        const FromX& f = from_x[d];
        run.gather(team, x, chunks[d], f.dealt ? f.steps.groups : cpu::RowGroups{}, dirs[d].input);
        shared = shared || !f.dealt;
      }
      if (shared) team.wait();
      cpu::ForwardArgs<T> args[2];
      for (int64_t d = 0; d < s.D; ++d) {
        PerDirection& dir = dirs[d];
        const Chunk& chunk = chunks[d];
        const FromX& f = from_x[d];
        team.multiply(f.rows, {f.product}, f.steps);
        if (dir.product) {
          team.multiply({dir.product, s.B, G * H, G * H}, {h0 + d * s.B * K, s.B, K, K},
                        dir.from_h);
        }
        args[d] = {
            .steps = run.steps(chunk, d),
            .H = H,
            .K = K,
            .x = f.product.c.data,
            .ldx = width,
            .x_rows = f.dealt ? f.steps.to : nullptr,
            .product = dir.product,
            .bias = dir.bias,
            .w_hh = dir.packed_hh ? dir.packed_hh : dir.w_hh,
            .w_hr = dir.packed_hr,
            .h_0 = h0 + d * s.B * K,
            .output = data<T>(output, d * K),
            .ldo = s.D * K,
            .c = data<A>(c, d * s.B * H),
            .gates = saved(d, chunk),
            .cells = data<A>(cells, (d * s.R + chunk.row) * H),
            .hidden = dir.hidden,
            .h = data<A>(h, d * s.B * H),
            .plain_w_hh = plain,
            .from_zero = from_zero,
        };
      }
      if (!apart) team.wait();
      run.directions(team, chunks, [&](int64_t d, const cpu::Worker& worker) {
        table.forward[cell](args[d], worker);
      });
      if (save_gates && S > 0 && run.converts()) {
        for (int64_t d = 0; d < s.D; ++d) {
          gates[d]
              .narrow(0, chunks[d].row, chunks[d].rows)
              .copy_(dirs[d].scratch.narrow(0, 0, chunks[d].rows));
        }
      }
    }
  });

  for (int64_t d = 0; d < s.D; ++d) {
    for (int64_t t = 0; t < s.T; ++t) {
      const Rows rows = rows_ending(s, d, t);
      copy_rows(data<T>(h_n, (d * s.B + rows.begin) * K), K,
                data<T>(output, (s.offsets[t] + rows.begin) * s.D * K + d * K), s.D * K,
                rows.end - rows.begin, K);
    }
  }

  // Each absent result is a tensor of its own: outputs of an operator may not alias.
  return {run.stored(output), run.stored(h_n), c.defined() ? run.stored(c) : run.absent(),
          gates.defined() ? gates : run.absent(), cells.defined() ? cells : run.empty({0})};
}

}  // namespace

ForwardResult forward_cpu(const Layer& s, const Tensor& input, const Tensor& h_0,
                          const std::optional<Tensor>& c_0, Save save) {
  const Tensor c = c_0.value_or(Tensor());
  if (is_step(s, input)) return forward_step(s, input, h_0, c, save);
  if (const auto* bf16 = bf16_kernels(s, input)) return forward(*bf16, s, input, h_0, c, save);
  const cpu::KernelTable& table = cpu::kernels();
  if (input.scalar_type() == at::kDouble) return forward(table.f64, s, input, h_0, c, save);
  return forward(table.f32, s, input, h_0, c, save);
}

}  // namespace seqkern::ops
