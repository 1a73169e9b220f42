#include "ops/layer_cpu.h"
#include "ops/run_cpu.h"
#include "ops/zero_state.h"

namespace seqkern::ops {

namespace {

// Backward's products add to the weight gradients once a chunk: read and written each time.
constexpr int64_t kBackwardChunkRows = 512;

// Where gates are made again, for memory's sake, chunks are smaller if a chunk's gates would take
// more than so many bytes and the sequences have fewer rows than so many times the units: there the
// weights leave little to save on.
constexpr int64_t kRecomputedChunkRows = 320, kRecomputedBytes = 2 << 20, kRowsOfUnits = 8;

// A sum of n products whose error grows with log n.
template <typename T>
Arithmetic<T> pairwise_dot(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t n) {
  if (n > 8) {
    const int64_t half = n / 2;
    return pairwise_dot(a, a_stride, b, b_stride, half) +
           pairwise_dot(a + half * a_stride, a_stride, b + half * b_stride, b_stride, n - half);
  }
  Arithmetic<T> sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += value(a[i * a_stride]) * value(b[i * b_stride]);
  return sum;
}

// A product over all rows of a chunk. One running sum per element over so many terms rounds worse
// than torch.nn's sum of one product a step, so that a small result, which costs little to add to,
// is made of short sums. (A large one, read and written each time, would cost more.)
template <typename T>
typename Team<T>::Product over_rows(Matrix<Arithmetic<T>> c, Factor<T>& b, bool add) {
  constexpr int64_t kSmall = 1 << 15, kShort = 64;
  return {c, &b, add, c.rows * c.columns <= kSmall ? kShort : 0};
}

// c = a^T b or c += a^T b for each product. With one column on either side torch's own sum rounds
// better still.
template <typename T>
void multiply_over_rows(const Team<T>& team, Matrix<const T> a,
                        std::initializer_list<typename Team<T>::Product> products) {
  const auto single = [&](const auto& product) { return a.columns == 1 || product.c.columns == 1; };
  if (std::none_of(products.begin(), products.end(), single)) {
    team.multiply(a.transposed(), products);
    return;
  }
  for (const auto& product : products) {
    if (!single(product)) {
      team.multiply(a.transposed(), {product});
      continue;
    }
    const Matrix<Arithmetic<T>>& c = product.c;
    const Matrix<const T>& b = product.b->b;
    team.each(c.rows * c.columns, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t i = n / c.columns, j = n % c.columns;
        Arithmetic<T>& to = c.data[i * c.row_stride + j];
        const Arithmetic<T> sum = pairwise_dot(a.data + i * a.column_stride, a.row_stride,
                                               b.data + j * b.column_stride, b.row_stride, a.rows);
        to = product.add ? to + sum : sum;
      }
    });
  }
}

template <typename T>
BackwardResult backward(const cpu::LayerKernels<T>& table, const Layer& s,
                        const BackwardInputs& in) {
  using A = Arithmetic<T>;
  const int cell = static_cast<int>(s.cell);
  const CellInfo& info = s.info;
  const int64_t H = s.H, K = s.K, G = info.gates, S = info.saved;
  const int64_t width = info.grad_gates * H;
  const int64_t rotation = info.grad_rotation * H, head = G * H - rotation;
  const bool recompute = S > 0 && in.gates.dim() == 1;
  // Where each gate is a function of one sum, both products go into the gates' own place.
  const bool in_place = S == G && !info.recurrent_bias && std::is_same_v<T, A>;
  const bool small_chunks = recompute && in_place && s.R < kRowsOfUnits * H &&
                            kBackwardChunkRows * S * H * int64_t(sizeof(A)) > kRecomputedBytes;
  // Plain panels hold as many units as those of a cell with one gate.
  const int panel_units = table.panel_units[static_cast<int>(Cell::RnnTanh)];
  Run<T> run(table, s, in.input.options(), info.grad_gates, panel_units, 4,
             small_chunks ? kRecomputedChunkRows : kBackwardChunkRows, Groups::kOfChunk);
  const bool params = in.needs_params_grad, wants_h_0 = in.needs_h_0_grad;

  const Matrix<const T> x{run.template read<T>(in.input), s.R, s.I, s.I};
  const cpu::PlacedRows<T> grad_output = run.place(in.grad_output);
  const Matrix<const T> output{run.template read<T>(in.output), s.R, s.D * K, s.D * K};
  const T* const h0 = run.template read<T>(in.h_0);
  const bool from_zero = is_zero(h0, s.D * s.B * K);
  const A* const grad_h_n = run.template read<A>(in.grad_h_n);
  const A *c0 = nullptr, *cells = nullptr;
  Tensor grad_state, step_grad_h, step_grad_c;
  if (info.has_cell_state) {
    c0 = run.template read<A>(in.c_0);
    cells = run.template read<A>(in.cells);
    grad_state = run.empty({s.D, s.B, H});
    std::copy_n(run.template read<A>(in.grad_c_n), grad_state.numel(), data<A>(grad_state));
  } else if (info.carries_grad_h) {
    grad_state = at::zeros({s.D, s.B, H}, run.compute);
  }
  if (in.step_grads) {
    step_grad_h = run.empty({s.D, s.R, K});
    if (info.has_cell_state) step_grad_c = run.empty({s.D, s.R, H});
  }
  // Both directions add to the gradient of their common input.
  Tensor grad_x;
  if (in.needs_input_grad) {
    grad_x = run.empty(in.input.sizes());
    if (s.D > 1) grad_x.zero_();
  }
  Tensor grad_h_0;
  if (wants_h_0) grad_h_0 = run.empty({s.D, s.B, K});

  struct PerDirection {
    const T *w_hh, *w_hr = nullptr;
    T *packed_hh = nullptr, *packed_hr = nullptr;
    Factor<T> to_x, from_x, from_h;  // what makes grad_x; what the gates are made from again
    Factor<T> to_h_0[2];             // what makes grad_h_0: W_hh's rows before and after rotation
    Tensor gates;                    // [rows, S*H]: made again, or converted
    A *x, *product, *bias;  // what gates are made of again, unless they are where they will be
    T* grad_gates;          // [rows, GG*H]
    // [B, GG*H]: of the step after the chunk, of each row's first step
    T *next = nullptr, *first = nullptr;
    T *grad_h = nullptr, *hidden = nullptr, *h_prev = nullptr;
    // A chunk's, as right factors; null where they are read as they lie.
    T *packed_x = nullptr, *packed_h = nullptr, *packed_hidden = nullptr;
    A* grad_b;
    Tensor grad_w_ih, grad_w_hh, grad_w_hr;
  };
  std::vector<PerDirection> dirs(s.D);
  const int64_t most = run.chunks.max_rows();
  for (int64_t d = 0; d < s.D; ++d) {
    PerDirection& dir = dirs[d];
    const Direction& weights = s.directions[d];
    const Matrix<const T> w_ih{run.template read<T>(weights.w_ih), G * H, s.I, s.I};
    dir.w_hh = run.template read<T>(weights.w_hh);
    const Matrix<const T> w_hh{dir.w_hh, G * H, K, K};
    if (in.needs_input_grad) dir.to_x = run.factor(w_ih, most, run.chunks.size());
    if (wants_h_0) {
      dir.to_h_0[0] = run.factor(w_hh.from_row(rotation, head), s.B, 1);
      if (rotation > 0) dir.to_h_0[1] = run.factor(w_hh.from_row(0, rotation), s.B, 1);
      dir.first = run.template scratch<T>(s.B * width);
    }
    if (s.T > 1) dir.packed_hh = run.template scratch<T>(table.packed_rows_size(G * H, K));
    if (recompute) {
      dir.from_x = run.factor(w_ih.transposed(), most, run.chunks.size());
      dir.from_h = run.factor(w_hh.transposed(), most, run.chunks.size());
      dir.bias = pack_bias(run, weights);
    }
    if (recompute || (run.converts() && S > 0)) dir.gates = run.template empty<T>({most, S * H});
    const bool beside = recompute && !in_place;
    dir.x = beside ? run.template scratch<A>(most * G * H) : data<A>(dir.gates);
    dir.product = beside ? run.template scratch<A>(most * G * H) : nullptr;
    // Each gradient takes the place of a gate, which nobody reads again, unless the gates are kept.
    const bool replaced = dir.gates.defined() && S == info.grad_gates;
    dir.grad_gates = replaced ? data<T>(dir.gates) : run.template scratch<T>(most * width);
    if (run.chunks.size() > 1) dir.next = run.template scratch<T>(s.B * width);
    if (s.projection) {
      dir.w_hr = run.template read<T>(weights.w_hr);
      dir.packed_hr = run.template scratch<T>(table.packed_rows_size(K, H));
      dir.grad_h = run.template scratch<T>(most * K);
      dir.hidden = run.template scratch<T>(most * H);
    }
    // Padded, the products read h_{t-1} where it lies, in the output.
    if (s.ragged && (recompute || params)) dir.h_prev = run.template scratch<T>(most * K);
    if (params) {
      if (!table.gemm_in_place(s.I, 1, most, s.I)) {
        dir.packed_x = run.template scratch<T>(table.gemm_packed_size(most, s.I));
      }
      if (!table.gemm_in_place(s.ragged ? K : s.D * K, 1, most, K)) {
        // Of two parts, each of whole operands.
        dir.packed_h = run.template scratch<T>(table.gemm_packed_size(most + 2, K));
      }
      dir.grad_w_ih = run.empty({G * H, s.I});
      // The only step from a state of zeros adds nothing.
      dir.grad_w_hh =
          s.T == 1 && from_zero ? at::zeros({G * H, K}, run.compute) : run.empty({G * H, K});
      if (s.bias) {
        dir.grad_b = run.template scratch<A>(width);
        std::fill_n(dir.grad_b, width, A(0));
      }
      if (s.projection) {
        if (!table.gemm_in_place(H, 1, most, H)) {
          dir.packed_hidden = run.template scratch<T>(table.gemm_packed_size(most, H));
        }
        dir.grad_w_hr = run.empty({K, H});
      }
    }
  }

  // Rows [row, row + h.rows) of a chunk, whose steps begin with h.
  struct Beginning {
    int64_t row;
    Matrix<const T> h;  // [n, K]
  };
  struct Beginnings {
    Beginning found[2];
    int count;
    int nonzero;  // of these, the first ones: the others' part of W_hh's gradient is zero
  };
  const auto beginnings = [&](const Chunk& chunk, int64_t d) -> Beginnings {
    if (s.ragged) return {{{0, {dirs[d].h_prev, chunk.rows, K, K}}}, 1, s.T > 1 || !from_zero};
    // The direction's first step begins with h_0, every other one with the step before it.
    Beginnings all{};
    const int64_t first = d == 0 ? 0 : s.T - 1;
    const bool begins = chunk.begin <= first && first < chunk.end;
    const int64_t from = chunk.begin + (begins && d == 0), n = chunk.end - chunk.begin - begins;
    if (n > 0) {
      const int64_t before = d == 0 ? from - 1 : from + 1;
      all.found[all.count++] = {from * s.B - chunk.row,
                                output.from_row(before * s.B, n * s.B).from_column(d * K, K)};
    }
    all.nonzero = all.count;
    if (begins) {
      all.found[all.count++] = {first * s.B - chunk.row, {h0 + d * s.B * K, s.B, K, K}};
      if (!from_zero) ++all.nonzero;
    }
    return all;
  };
  // What each row's step began with, gathered: one product for the chunk, whatever starts in it.
  const auto gather_h_prev = [&](int64_t d, const Chunk& chunk, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t before = d == 0 ? t - 1 : t + 1;
      const int64_t n = s.rows(t);
      const int64_t old = before < 0 || before >= s.T ? 0 : std::min(n, s.rows(before));
      T* const to = dirs[d].h_prev + (s.offsets[t] - chunk.row) * K;
      if (old > 0) {
        copy_rows(to, K, output.data + s.offsets[before] * s.D * K + d * K, s.D * K, old, K);
      }
      copy_rows(to + old * K, K, h0 + (d * s.B + old) * K, K, n - old, K);
    }
  };

  run.execute([&](const Team<T>& team) {
    run.directions(team, nullptr, [&](int64_t d, const cpu::Worker& worker) {
      const PerDirection& dir = dirs[d];
      if (dir.packed_hh) {
        table.pack_rows(dir.w_hh, K, G * H, rotation, K, dir.packed_hh, worker.index, worker.count);
      }
      if (s.projection) {
        table.pack_rows(dir.w_hr, H, K, 0, H, dir.packed_hr, worker.index, worker.count);
      }
    });
    for (PerDirection& dir : dirs) {
      if (in.needs_input_grad) team.pack(dir.to_x);
      if (wants_h_0) {
        team.pack(dir.to_h_0[0]);
        if (rotation > 0) team.pack(dir.to_h_0[1]);
      }
      if (recompute) {
        team.pack(dir.from_x);
        team.pack(dir.from_h);
      }
    }
    team.wait();

    for (int64_t i = 0; i < run.chunks.size(); ++i) {
      Chunk chunk[2];
      Beginnings begin[2];
      for (int64_t d = 0; d < s.D; ++d) {
        chunk[d] = run.chunks.at(i, d == 0);
        begin[d] = beginnings(chunk[d], d);
        if (dirs[d].h_prev) {
          team.each(chunk[d].end - chunk[d].begin, [&](int64_t first, int64_t last) {
            gather_h_prev(d, chunk[d], chunk[d].begin + first, chunk[d].begin + last);
          });
        }
      }
      if (recompute) {
        if (s.ragged) team.wait();
        for (int64_t d = 0; d < s.D; ++d) {
          team.multiply({dirs[d].x, chunk[d].rows, G * H, G * H},
                        x.from_row(chunk[d].row, chunk[d].rows), dirs[d].from_x);
        }
        // Added to what other threads may have made: these products have other rows.
        if (in_place) team.wait();
        for (int64_t d = 0; d < s.D; ++d) {
          A* const to = in_place ? dirs[d].x : dirs[d].product;
          for (int n = 0; n < begin[d].count; ++n) {
            const Beginning& rows = begin[d].found[n];
            team.multiply({to + rows.row * G * H, rows.h.rows, G * H, G * H}, rows.h,
                          dirs[d].from_h, in_place);
          }
        }
        team.wait();
      }

      cpu::BackwardArgs<T> args[2];
      cpu::ActivateArgs<T> remade[2];
      for (int64_t d = 0; d < s.D; ++d) {
        PerDirection& dir = dirs[d];
        const T* gates = data<T>(dir.gates);
        if (recompute) {
          remade[d] = {H, chunk[d].rows, dir.x, dir.product, dir.bias, data<T>(dir.gates)};
        } else if (S > 0 && run.converts()) {
          dir.gates.narrow(0, 0, chunk[d].rows)
              .copy_(in.gates[d].narrow(0, chunk[d].row, chunk[d].rows));
        } else if (S > 0) {
          gates = input_data<T>(in.gates, (d * s.R + chunk[d].row) * S * H);
        }
        args[d] = {
            .steps = run.steps(chunk[d], d),
            .H = H,
            .K = K,
            .grad_output = {grad_output.data + d * K, grad_output.step, grad_output.row},
            .output = output.data + d * K,
            .ldo = s.D * K,
            .grad_h_n = grad_h_n + d * s.B * K,
            .gates = gates,
            .cells = cells ? cells + d * s.R * H : nullptr,
            .h_0 = h0 + d * s.B * K,
            .c_0 = c0 ? c0 + d * s.B * H : nullptr,
            .w_hh = dir.packed_hh,
            .w_hr = dir.packed_hr,
            .grad_state = data<A>(grad_state, d * s.B * H),
            .grad_gates = dir.grad_gates,
            .grad_gates_next = dir.next,
            .grad_h = dir.grad_h,
            .hidden = dir.hidden,
            .step_grad_h = data<A>(step_grad_h, d * s.R * K),
            .step_grad_c = data<A>(step_grad_c, d * s.R * H),
        };
      }
      run.directions(team, chunk, [&](int64_t d, const cpu::Worker& worker) {
        if (recompute) {
          table.activate[cell](remade[d], worker);
          worker.barrier->wait(worker.index, worker.count);
        }
        table.backward[cell](args[d], worker);
      });
      team.wait();

      // What the products need, and what outlives the chunk.
      Factor<T> from_x[2], from_h[2][2], from_hidden[2];
      for (int64_t d = 0; d < s.D; ++d) {
        PerDirection& dir = dirs[d];
        if (params) {
          const auto factor = [&](const Matrix<const T>& b, T* packed) {
            Factor<T> factor{b, packed, packed == nullptr};
            team.pack(factor);
            return factor;
          };
          from_x[d] = factor(x.from_row(chunk[d].row, chunk[d].rows), dir.packed_x);
          T* to = dir.packed_h;
          for (int n = 0; n < begin[d].nonzero; ++n) {
            const Matrix<const T>& h = begin[d].found[n].h;
            from_h[d][n] = factor(h, to);
            if (to) to += table.gemm_packed_size(h.rows, K);
          }
          if (s.projection) {
            from_hidden[d] = factor({dir.hidden, chunk[d].rows, H, H}, dir.packed_hidden);
          }
        }
        const auto rows_of = [&](int64_t t) {
          return dir.grad_gates + (s.offsets[t] - chunk[d].row) * width;
        };
        if (dir.next) {
          const int64_t last = d == 0 ? chunk[d].begin : chunk[d].end - 1;
          team.each(s.rows(last) * width, [&](int64_t first, int64_t end) {
            std::copy(rows_of(last) + first, rows_of(last) + end, dir.next + first);
          });
        }
        if (!wants_h_0) continue;
        team.each(chunk[d].end - chunk[d].begin, [&](int64_t first, int64_t last) {
          for (int64_t t = chunk[d].begin + first; t < chunk[d].begin + last; ++t) {
            const Rows rows = rows_starting(s, d, t);
            copy_rows(dir.first + rows.begin * width, width, rows_of(t) + rows.begin * width, width,
                      rows.end - rows.begin, width);
          }
        });
      }
      team.wait();

      for (int64_t d = 0; d < s.D; ++d) {
        PerDirection& dir = dirs[d];
        const Matrix<const T> grad{dir.grad_gates, chunk[d].rows, width, width};
        const Matrix<const T> grad_in = grad.from_column(info.grad_input_offset * H, G * H);
        if (in.needs_input_grad) {
          team.multiply({data<A>(grad_x, chunk[d].row * s.I), chunk[d].rows, s.I, s.I}, grad_in,
                        dir.to_x, s.D == 2, run.step_rows(chunk[d]));
        }
        if (!params) continue;
        // Of the gate gradients' columns the first belong to W_hh alone, the last as many to W_ih
        // alone, and those between to both; W_hh's rows lie rotated against them.
        const int64_t apart = info.grad_input_offset * H, both = G * H - apart;
        const Matrix<A> to_x{data<A>(dir.grad_w_ih), G * H, s.I, s.I},
            to_h{data<A>(dir.grad_w_hh), G * H, K, K};
        const Matrix<A> both_to_x = to_x.from_row(0, both),
                        both_to_h = to_h.from_row((apart + rotation) % (G * H), both);
        // Together where both have a row for each of the chunk's, and stay in the second-level
        // cache.
        const bool together =
            begin[d].nonzero == 1 && begin[d].found[0].h.rows == chunk[d].rows &&
            chunk[d].rows * (s.I + K) * int64_t(sizeof(T)) <= cpu::cache_bytes() / 2;
        const auto product_x = over_rows(both_to_x, from_x[d], i > 0);
        if (together) {
          multiply_over_rows(team, grad.from_column(apart, both),
                             {product_x, over_rows(both_to_h, from_h[d][0], i > 0)});
        } else {
          multiply_over_rows(team, grad.from_column(apart, both), {product_x});
        }
        if (apart > 0) {
          multiply_over_rows(team, grad.from_column(G * H, apart),
                             {over_rows(to_x.from_row(both, apart), from_x[d], i > 0)});
        }
        for (int n = 0; n < begin[d].nonzero; ++n) {
          const Beginning& rows = begin[d].found[n];
          const Matrix<const T> grad_rows = grad.from_row(rows.row, rows.h.rows);
          const bool add = i > 0 || n > 0;
          if (!together) {
            multiply_over_rows(team, grad_rows.from_column(apart, both),
                               {over_rows(both_to_h, from_h[d][n], add)});
          }
          if (apart > 0) {
            multiply_over_rows(team, grad_rows.from_column(0, apart),
                               {over_rows(to_h.from_row(rotation, apart), from_h[d][n], add)});
          }
        }
        if (s.bias) {
          team.each(width, [&](int64_t first, int64_t end) {
            table.add_columns(grad.data + first, width, chunk[d].rows, end - first,
                              dir.grad_b + first);
          });
        }
        if (s.projection) {
          multiply_over_rows(team, {dir.grad_h, chunk[d].rows, K, K},
                             {over_rows({data<A>(dir.grad_w_hr), K, H, H}, from_hidden[d], i > 0)});
        }
      }
      // Without it the next chunk's gradients would be made where others still read this one's.
      if (i + 1 < run.chunks.size()) team.wait();
    }

    for (int64_t d = 0; wants_h_0 && d < s.D; ++d) {
      const Matrix<A> to{data<A>(grad_h_0, d * s.B * K), s.B, K, K};
      const Matrix<const T> first{dirs[d].first, s.B, width, width};
      team.multiply(to, first.from_column(0, head), dirs[d].to_h_0[0]);
      if (rotation > 0) {
        team.multiply(to, first.from_column(head, rotation), dirs[d].to_h_0[1], true);
      }
    }
  });

  BackwardResult out;
  out.grad_input = in.needs_input_grad ? run.stored(grad_x) : run.absent();
  if (wants_h_0 && info.carries_grad_h) grad_h_0.add_(grad_state);
  out.grad_h_0 = wants_h_0 ? run.stored(grad_h_0) : run.absent();
  out.grad_c_0 = info.has_cell_state ? run.stored(grad_state) : run.absent();
  if (params) {
    for (const PerDirection& dir : dirs) {
      out.grad_params.push_back(run.stored(dir.grad_w_ih));
      out.grad_params.push_back(run.stored(dir.grad_w_hh));
      if (s.bias) {
        // Separate tensors, also where the two are equal: each may be changed in place.
        Tensor grad_b_ih = run.empty({G * H}), grad_b_hh = run.empty({G * H});
        std::copy_n(dir.grad_b + info.grad_input_offset * H, G * H, data<A>(grad_b_ih));
        std::copy_n(dir.grad_b, head, data<A>(grad_b_hh, rotation));
        std::copy_n(dir.grad_b + head, rotation, data<A>(grad_b_hh));
        out.grad_params.push_back(run.stored(grad_b_ih));
        out.grad_params.push_back(run.stored(grad_b_hh));
      }
      if (s.projection) out.grad_params.push_back(run.stored(dir.grad_w_hr));
    }
  }
  out.step_grad_h = in.step_grads ? run.stored(step_grad_h) : run.absent();
  out.step_grad_c = in.step_grads && info.has_cell_state ? run.stored(step_grad_c) : run.absent();
  return out;
}

}  // namespace

BackwardResult backward_cpu(const Layer& s, const BackwardInputs& in) {
  if (const auto* bf16 = bf16_kernels(s, in.input)) return backward(*bf16, s, in);
  const cpu::KernelTable& table = cpu::kernels();
  if (in.input.scalar_type() == at::kDouble) return backward(table.f64, s, in);
  return backward(table.f32, s, in);
}

}  // namespace seqkern::ops
