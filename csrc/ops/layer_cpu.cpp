#include "ops/layer_cpu.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "ops/chunks.h"
#include "ops/products_cpu.h"
#include "ops/step_cpu.h"

namespace seqkern::ops {

namespace {

using at::Tensor;

// A product with fewer rows than this loses more to its start than a larger chunk to the cache.
constexpr int64_t kForwardChunkRows = 512;
// Backward's products add to the weight gradients once a chunk: read and written each time.
constexpr int64_t kBackwardChunkRows = 512;

// Keeps ATen's functions on one thread in a forked child, as cpu::parallel keeps the kernels: the
// threads of the OpenMP runtime did not survive.
class ForkGuard {
 public:
  ForkGuard() : threads_(cpu::forked() ? at::get_num_threads() : 1) {
    if (threads_ > 1) at::set_num_threads(1);
  }
  ~ForkGuard() {
    if (threads_ > 1) at::set_num_threads(threads_);
  }
  ForkGuard(const ForkGuard&) = delete;

 private:
  int threads_;
};

// A tensor without values. Where it is large its memory is new in each call, and the first touch of
// each page is paid for: pages of 2 MiB, where the system gives them on request, cost less than 512
// small ones.
Tensor empty_pages(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor tensor = at::empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t kPage = 1 << 21;
  const auto data = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage,
                  end = (data + tensor.nbytes()) / kPage * kPage;
  // A hint: where it is refused nothing is lost.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

template <typename T>
const cpu::LayerKernels<T>& kernels_for(const cpu::KernelTable& table) {
  if constexpr (std::is_same_v<T, float>) {
    return table.f32;
  } else {
    return table.f64;
  }
}

// A tensor's elements from the first-th on; null for an undefined tensor.
template <typename T>
T* data(const Tensor& tensor, int64_t first = 0) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() + first : nullptr;
}

// The same for what belongs to the caller and is only read.
template <typename T>
const T* input_data(const Tensor& tensor, int64_t first = 0) {
  return tensor.defined() ? tensor.const_data_ptr<T>() + first : nullptr;
}

// What forward and backward have in common: the type of the arithmetic, the plan, the chunks.
template <typename T>
struct Run {
  const Layer& s;
  const cpu::LayerKernels<T>& kernels;
  at::TensorOptions storage, compute;
  cpu::Plan plan;
  Chunks chunks;
  Products<T> multiply;
  ForkGuard guard;

  Run(const Layer& layer, const at::TensorOptions& options, int width, int panel_units,
      int64_t min_chunk_rows)
      : s(layer),
        kernels(kernels_for<T>(cpu::kernels())),
        storage(options),
        compute(options.dtype(c10::CppTypeToScalarType<T>::value)),
        plan(cpu::make_plan({.B = s.B,
                             .H = s.H,
                             .K = s.K,
                             .gates = width,
                             .directions = static_cast<int>(s.D),
                             .ragged = s.ragged,
                             .panel_units = panel_units,
                             .element_size = sizeof(T),
                             .min_chunk_rows = min_chunk_rows},
                            at::get_num_threads())),
        chunks(s, plan.chunk_rows),
        multiply(kernels, compute) {}

  bool converts() const { return storage.dtype() != compute.dtype(); }
  Tensor empty(at::IntArrayRef sizes) const { return empty_pages(sizes, compute); }
  // In the arithmetic's type, contiguous; the tensor itself where it is so already.
  Tensor in_compute(const Tensor& tensor) const { return tensor.to(compute.dtype()).contiguous(); }

  cpu::Steps steps(const Chunk& c, int64_t d) const {
    return {s.offsets.data(), s.T, c.begin, c.end, d == 1};
  }

  // One parallel region: work(direction, worker) by every thread of the direction's team.
  template <typename F>
  void region(F&& work) {
    cpu::Barrier barriers[2];
    cpu::parallel(plan.threads, [&](int index, int count) {
      if (s.D == 2 && count >= 2) {
        const int d = index % 2, team = (count + 1 - d) / 2;
        work(d, cpu::Worker{index / 2, team, plan.split_rows, &barriers[d]});
      } else {
        for (int64_t d = 0; d < s.D; ++d) {
          work(d, cpu::Worker{index, count, plan.split_rows, &barriers[d]});
        }
      }
    });
  }
};

// Copies rows [0, n) of width elements.
template <typename T>
void copy_rows(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n,
               int64_t width) {
  for (int64_t r = 0; r < n; ++r)
    std::memcpy(to + r * to_stride, from + r * from_stride, width * sizeof(T));
}

// The rows that take their last step, in direction d's order of time, at step t: [begin, end).
struct Rows {
  int64_t begin, end;
};
Rows rows_ending(const Layer& s, int64_t d, int64_t t) {
  if (d == 1) return {0, t == 0 ? s.B : 0};
  return {t + 1 < s.T ? s.rows(t + 1) : 0, s.rows(t)};
}
Rows rows_starting(const Layer& s, int64_t d, int64_t t) { return rows_ending(s, 1 - d, t); }

// [G + 1, H]: what the kernels add outside the products, and in the last row what belongs inside
// the last gate's (the GRU's b_hn, which the reset gate multiplies).
template <typename T>
Tensor pack_bias(const Run<T>& run, const Direction& direction) {
  const Layer& s = run.s;
  const int64_t H = s.H, G = s.info.gates;
  Tensor packed = run.empty({G + 1, H});
  T* bias = data<T>(packed);
  std::fill_n(bias, (G + 1) * H, T(0));
  if (s.bias) {
    const Tensor b_ih = run.in_compute(direction.b_ih), b_hh = run.in_compute(direction.b_hh);
    const T *in = input_data<T>(b_ih), *rec = input_data<T>(b_hh);
    const int64_t outside = (s.info.recurrent_bias ? G - 1 : G) * H;
    for (int64_t i = 0; i < G * H; ++i) bias[i] = i < outside ? in[i] + rec[i] : in[i];
    for (int64_t i = outside; i < G * H; ++i) bias[i + H] = rec[i];
  }
  return packed;
}

template <typename T>
ForwardResult forward(const Layer& s, const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                      Save save) {
  const bool save_gates = save == Save::Gates;
  const auto& table = kernels_for<T>(cpu::kernels());
  const int cell = static_cast<int>(s.cell);
  const int64_t H = s.H, K = s.K, G = s.info.gates, S = s.info.saved;
  Run<T> run(s, input.options(), static_cast<int>(G), table.panel_units[cell], kForwardChunkRows);

  const Tensor x = run.in_compute(input).view({s.R, s.I});
  const Tensor h0 = run.in_compute(h_0);
  Tensor output = run.empty({s.R, s.D * K});
  Tensor h_n = run.empty({s.D, s.B, K});
  // The running cell state, which ends as c_n.
  Tensor c, cells, gates;
  if (s.info.has_cell_state) {
    c = run.empty({s.D, s.B, H});
    c.copy_(c_0);
    if (save != Save::None) cells = run.empty({s.D, s.R, H});
  }
  if (save_gates) gates = empty_pages({s.D, s.R, S * H}, run.storage);

  // Gates that need no conversion are computed where they are saved, input product included.
  const bool in_place = save_gates && S >= G && !run.converts();
  const int64_t width = save_gates ? std::max(G, S) * H : G * H;
  struct PerDirection {
    Factor from_x;
    Tensor w_hh, w_hr, packed_hh, packed_hr, bias, scratch, hidden, product;
  };
  std::vector<PerDirection> dirs(s.D);
  for (int64_t d = 0; d < s.D; ++d) {
    PerDirection& dir = dirs[d];
    dir.from_x.b = run.in_compute(s.directions[d].w_ih).t();
    dir.w_hh = run.in_compute(s.directions[d].w_hh);
    dir.bias = pack_bias(run, s.directions[d]);
    if (!in_place) dir.scratch = run.empty({run.chunks.max_rows(), width});
    if (s.T == 1) {
      // Packing would take longer than the product: let it be one of the large ones.
      dir.product = run.empty({s.B, G * H});
      run.multiply(dir.product, h0[d], dir.w_hh.t());
    } else {
      dir.packed_hh = run.empty({table.packed_gates_size(G, H, K)});
    }
    if (s.projection) {
      dir.w_hr = run.in_compute(s.directions[d].w_hr);
      dir.packed_hr = run.empty({table.packed_gates_size(1, K, H)});
      dir.hidden = run.empty({s.B, H});
    }
  }

  for (int64_t i = 0; i < run.chunks.size(); ++i) {
    cpu::ForwardArgs<T> args[2];
    for (int64_t d = 0; d < s.D; ++d) {
      PerDirection& dir = dirs[d];
      const auto chunk = run.chunks.at(i, d == 1);
      const Tensor base = in_place ? gates[d].narrow(0, chunk.row, chunk.rows)
                                   : dir.scratch.narrow(0, 0, chunk.rows);
      const Tensor product = base.narrow(1, 0, G * H), rows = x.narrow(0, chunk.row, chunk.rows);
      run.multiply(product, rows, dir.from_x);
      args[d] = {
          .steps = run.steps(chunk, d),
          .H = H,
          .K = K,
          .x = data<T>(base),
          .ldx = width,
          .product = data<T>(dir.product),
          .bias = data<T>(dir.bias),
          .w_hh = data<T>(dir.packed_hh),
          .w_hr = data<T>(dir.packed_hr),
          .h_0 = input_data<T>(h0, d * s.B * K),
          .output = data<T>(output, d * K),
          .ldo = s.D * K,
          .c = data<T>(c, d * s.B * H),
          .gates = save_gates && S > 0 ? data<T>(base) : nullptr,
          .cells = data<T>(cells, (d * s.R + chunk.row) * H),
          .hidden = data<T>(dir.hidden),
      };
    }
    run.region([&](int64_t d, const cpu::Worker& worker) {
      if (i == 0) {
        // Units are dealt to threads as the steps will read them; a team that splits the batch
        // reads all of them, so that it must wait for one another here.
        const PerDirection& dir = dirs[d];
        if (dir.packed_hh.defined()) {
          table.pack_gates(input_data<T>(dir.w_hh), K, G, H, K, data<T>(dir.packed_hh),
                           worker.index, worker.count);
        }
        if (s.projection) {
          table.pack_gates(input_data<T>(dir.w_hr), H, 1, K, H, data<T>(dir.packed_hr),
                           worker.index, worker.count);
        }
        worker.barrier->wait(worker.count);
      }
      table.forward[cell](args[d], worker);
    });
    if (save_gates && S > 0 && !in_place) {
      for (int64_t d = 0; d < s.D; ++d) {
        const auto chunk = run.chunks.at(i, d == 1);
        gates[d].narrow(0, chunk.row, chunk.rows).copy_(dirs[d].scratch.narrow(0, 0, chunk.rows));
      }
    }
  }

  for (int64_t d = 0; d < s.D; ++d) {
    for (int64_t t = 0; t < s.T; ++t) {
      const Rows rows = rows_ending(s, d, t);
      copy_rows(data<T>(h_n, (d * s.B + rows.begin) * K), K,
                data<T>(output, (s.offsets[t] + rows.begin) * s.D * K + d * K), s.D * K,
                rows.end - rows.begin, K);
    }
  }

  const auto stored = [&](const Tensor& t) { return t.to(run.storage.dtype()); };
  // Each absent result is a tensor of its own: outputs of an operator may not alias.
  return {stored(output).view(s.sequence_sizes(s.D * K)), stored(h_n),
          c.defined() ? stored(c) : at::empty({0}, run.storage),
          gates.defined() ? gates : at::empty({0}, run.storage),
          cells.defined() ? cells : at::empty({0}, run.compute)};
}

// out = a^T b or out += a^T b, a sum over all rows of a chunk. One running sum per element over so
// many terms rounds worse than torch.nn's sum of one product a step, so that a small result, which
// costs little to add to, is made of short sums. (A large one, read and written each time, would
// cost more.) With one column on either side ATen's sum is pairwise.
template <typename T>
void multiply_over_rows(Run<T>& run, const Tensor& out, const Tensor& a, const Tensor& b,
                        bool add) {
  if (a.size(1) == 1 || b.size(1) == 1) {
    const Tensor sum = at::sum(at::mul(a, b), 0).view(out.sizes());
    Tensor to = out;
    if (add) {
      to.add_(sum);
    } else {
      to.copy_(sum);
    }
    return;
  }
  constexpr int64_t kSmall = 1 << 15, kShort = 64;
  run.multiply(out, a.t(), b, add, out.numel() <= kSmall ? kShort : 0);
}

template <typename T>
BackwardResult backward(const Layer& s, const BackwardInputs& in) {
  const auto& table = kernels_for<T>(cpu::kernels());
  const int cell = static_cast<int>(s.cell);
  const CellInfo& info = s.info;
  const int64_t H = s.H, K = s.K, G = info.gates, S = info.saved;
  const int64_t width = info.grad_gates * H;
  const int64_t rotation = info.grad_rotation * H, head = G * H - rotation;
  // Plain panels hold as many units as those of a cell with one gate.
  const int panel_units = table.panel_units[static_cast<int>(Cell::RnnTanh)];
  Run<T> run(s, in.input.options(), info.grad_gates, panel_units, kBackwardChunkRows);
  const bool recompute = S > 0 && in.gates.dim() == 1;
  // Where each gate is a function of one sum, both products go into the gates' own place.
  const bool in_place = S == G && !info.recurrent_bias;

  const Tensor x = run.in_compute(in.input).view({s.R, s.I});
  const Tensor h0 = run.in_compute(in.h_0), grad_h_n = run.in_compute(in.grad_h_n);
  const Tensor output = run.in_compute(in.output), grad_output = run.in_compute(in.grad_output);
  const Tensor output_rows = output.view({s.R, s.D * K});
  Tensor c0, cells, grad_state, step_grad_h, step_grad_c;
  if (info.has_cell_state) {
    c0 = run.in_compute(in.c_0);
    cells = in.cells.contiguous();
    grad_state = run.empty({s.D, s.B, H});
    grad_state.copy_(in.grad_c_n);
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
    grad_x = s.D == 1 ? run.empty({s.R, s.I}) : at::zeros({s.R, s.I}, run.compute);
  }

  struct PerDirection {
    Tensor w_hh, w_hr, packed_hh, packed_hr;
    Factor to_x, from_x, from_h;  // what makes grad_x; what the gates are made from again
    Tensor gates;  // [rows, S*H]: made again, or converted from the type they are saved in
    Tensor x, product, bias;  // what gates are made of again, unless they are where they will be
    Tensor grad_gates;        // [rows, GG*H]
    Tensor next, first;       // [B, GG*H]: of the step after the chunk, of each row's first step
    Tensor grad_h, hidden, h_prev;
    Tensor grad_w_ih, grad_w_hh, grad_b, grad_w_hr;
  };
  std::vector<PerDirection> dirs(s.D);
  const int64_t most = run.chunks.max_rows();
  for (int64_t d = 0; d < s.D; ++d) {
    PerDirection& dir = dirs[d];
    dir.to_x.b = run.in_compute(s.directions[d].w_ih);
    dir.w_hh = run.in_compute(s.directions[d].w_hh);
    if (s.T > 1) dir.packed_hh = run.empty({table.packed_rows_size(G * H, K)});
    if (recompute) {
      dir.from_x.b = dir.to_x.b.t();
      dir.from_h.b = dir.w_hh.t();
      dir.bias = pack_bias(run, s.directions[d]);
      if (!in_place) {
        dir.x = run.empty({most, G * H});
        dir.product = run.empty({most, G * H});
      }
    }
    if (recompute || (run.converts() && S > 0)) dir.gates = run.empty({most, S * H});
    dir.grad_gates = run.empty({most, width});
    if (run.chunks.size() > 1) dir.next = run.empty({s.B, width});
    dir.first = run.empty({s.B, width});
    if (s.projection) {
      dir.w_hr = run.in_compute(s.directions[d].w_hr);
      dir.packed_hr = run.empty({table.packed_rows_size(K, H)});
      dir.grad_h = run.empty({most, K});
      dir.hidden = run.empty({most, H});
    }
    // Padded, the products read h_{t-1} where it lies, in the output.
    if (s.ragged && (recompute || in.needs_params_grad)) dir.h_prev = run.empty({most, K});
    if (in.needs_params_grad) {
      dir.grad_w_ih = run.empty({G * H, s.I});
      dir.grad_w_hh = run.empty({G * H, K});
      if (s.bias) dir.grad_b = at::zeros({width}, run.compute);
      if (s.projection) dir.grad_w_hr = run.empty({K, H});
    }
  }

  // Rows [row, row + n) of a chunk, whose steps begin with h.
  struct Beginning {
    int64_t row, n;
    Tensor h;  // [n, K]
  };
  const auto beginnings = [&](const Chunk& chunk, int64_t d) -> std::vector<Beginning> {
    if (s.ragged) return {{0, chunk.rows, dirs[d].h_prev.narrow(0, 0, chunk.rows)}};
    // The direction's first step begins with h_0, every other one with the step before it. The most
    // rows come first: a factor is packed for them, and the few find it so.
    std::vector<Beginning> found;
    const int64_t first = d == 0 ? 0 : s.T - 1;
    const bool begins = chunk.begin <= first && first < chunk.end;
    const int64_t from = chunk.begin + (begins && d == 0), n = chunk.end - chunk.begin - begins;
    if (n > 0) {
      const int64_t before = d == 0 ? from - 1 : from + 1;
      found.push_back({from * s.B - chunk.row, n * s.B,
                       output_rows.narrow(0, before * s.B, n * s.B).narrow(1, d * K, K)});
    }
    if (begins) found.push_back({first * s.B - chunk.row, s.B, h0[d]});
    return found;
  };

  for (int64_t i = 0; i < run.chunks.size(); ++i) {
    cpu::BackwardArgs<T> args[2];
    cpu::ActivateArgs<T> remade[2];
    for (int64_t d = 0; d < s.D; ++d) {
      PerDirection& dir = dirs[d];
      const auto chunk = run.chunks.at(i, d == 0);
      if (dir.h_prev.defined()) {
        // What each row's step began with, gathered: one product for the chunk, whatever starts in
        // it.
        T* h_prev = data<T>(dir.h_prev);
        for (int64_t t = chunk.begin; t < chunk.end; ++t) {
          const int64_t before = d == 0 ? t - 1 : t + 1;
          const int64_t n = s.rows(t);
          const int64_t old = before < 0 || before >= s.T ? 0 : std::min(n, s.rows(before));
          T* to = h_prev + (s.offsets[t] - chunk.row) * K;
          if (old > 0) {
            copy_rows(to, K, input_data<T>(output, s.offsets[before] * s.D * K + d * K), s.D * K,
                      old, K);
          }
          copy_rows(to + old * K, K, input_data<T>(h0, (d * s.B + old) * K), K, n - old, K);
        }
      }
      const T* gates = nullptr;
      if (recompute) {
        const Tensor& from_x = in_place ? dir.gates : dir.x;
        const Tensor& from_h = in_place ? dir.gates : dir.product;
        run.multiply(from_x.narrow(0, 0, chunk.rows), x.narrow(0, chunk.row, chunk.rows),
                     dir.from_x);
        for (const Beginning& rows : beginnings(chunk, d)) {
          run.multiply(from_h.narrow(0, rows.row, rows.n), rows.h, dir.from_h, in_place);
        }
        remade[d] = {H,
                     chunk.rows,
                     data<T>(from_x),
                     data<T>(dir.product),
                     data<T>(dir.bias),
                     data<T>(dir.gates)};
        gates = data<T>(dir.gates);
      } else if (S > 0) {
        const Tensor saved = in.gates[d].narrow(0, chunk.row, chunk.rows);
        if (run.converts()) dir.gates.narrow(0, 0, chunk.rows).copy_(saved);
        gates = run.converts() ? data<T>(dir.gates) : input_data<T>(saved);
      }
      args[d] = {
          .steps = run.steps(chunk, d),
          .H = H,
          .K = K,
          .grad_output = input_data<T>(grad_output, d * K),
          .output = input_data<T>(output, d * K),
          .ldo = s.D * K,
          .grad_h_n = input_data<T>(grad_h_n, d * s.B * K),
          .gates = gates,
          .cells = input_data<T>(cells, d * s.R * H),
          .h_0 = input_data<T>(h0, d * s.B * K),
          .c_0 = input_data<T>(c0, d * s.B * H),
          .w_hh = data<T>(dir.packed_hh),
          .w_hr = data<T>(dir.packed_hr),
          .grad_state = data<T>(grad_state, d * s.B * H),
          .grad_gates = data<T>(dir.grad_gates),
          .grad_gates_next = data<T>(dir.next),
          .grad_h = data<T>(dir.grad_h),
          .hidden = data<T>(dir.hidden),
          .step_grad_h = data<T>(step_grad_h, d * s.R * K),
          .step_grad_c = data<T>(step_grad_c, d * s.R * H),
      };
    }
    run.region([&](int64_t d, const cpu::Worker& worker) {
      if (i == 0) {
        const PerDirection& dir = dirs[d];
        if (dir.packed_hh.defined()) {
          table.pack_rows(input_data<T>(dir.w_hh), K, G * H, rotation, K, data<T>(dir.packed_hh),
                          worker.index, worker.count);
        }
        if (s.projection) {
          table.pack_rows(input_data<T>(dir.w_hr), H, K, 0, H, data<T>(dir.packed_hr), worker.index,
                          worker.count);
        }
      }
      if (recompute) table.activate[cell](remade[d], worker);
      if (i == 0 || recompute) worker.barrier->wait(worker.count);
      table.backward[cell](args[d], worker);
    });

    for (int64_t d = 0; d < s.D; ++d) {
      PerDirection& dir = dirs[d];
      const auto chunk = run.chunks.at(i, d == 0);
      const T* grad_gates = data<T>(dir.grad_gates);
      const auto rows_of = [&](int64_t t) {
        return grad_gates + (s.offsets[t] - chunk.row) * width;
      };
      if (dir.next.defined()) {
        const int64_t last = d == 0 ? chunk.begin : chunk.end - 1;
        copy_rows(data<T>(dir.next), width, rows_of(last), width, s.rows(last), width);
      }
      for (int64_t t = chunk.begin; t < chunk.end; ++t) {
        const Rows rows = rows_starting(s, d, t);
        copy_rows(data<T>(dir.first, rows.begin * width), width, rows_of(t) + rows.begin * width,
                  width, rows.end - rows.begin, width);
      }

      const Tensor grad = dir.grad_gates.narrow(0, 0, chunk.rows);
      const Tensor grad_in = grad.narrow(1, info.grad_input_offset * H, G * H);
      if (in.needs_input_grad) {
        run.multiply(grad_x.narrow(0, chunk.row, chunk.rows), grad_in, dir.to_x, s.D == 2);
      }
      if (in.needs_params_grad) {
        multiply_over_rows(run, dir.grad_w_ih, grad_in, x.narrow(0, chunk.row, chunk.rows), i > 0);
        // The recurrent columns lie rotated against W_hh's rows: where they do, in two products.
        const auto add_recurrent = [&](const Tensor& grad, const Tensor& h_prev, bool add) {
          const auto add_product = [&](int64_t row, int64_t column, int64_t n) {
            multiply_over_rows(run, dir.grad_w_hh.narrow(0, row, n), grad.narrow(1, column, n),
                               h_prev, add);
          };
          add_product(rotation, 0, head);
          if (rotation > 0) add_product(0, head, rotation);
        };
        bool add = i > 0;
        for (const Beginning& rows : beginnings(chunk, d)) {
          add_recurrent(grad.narrow(0, rows.row, rows.n), rows.h, add);
          add = true;
        }
        if (s.bias) dir.grad_b.add_(grad.sum(0));
        if (s.projection) {
          multiply_over_rows(run, dir.grad_w_hr, dir.grad_h.narrow(0, 0, chunk.rows),
                             dir.hidden.narrow(0, 0, chunk.rows), i > 0);
        }
      }
    }
  }

  const auto stored = [&](const Tensor& t) { return t.to(run.storage.dtype()); };
  const auto absent = [&] { return at::empty({0}, run.storage); };
  BackwardResult out;
  out.grad_input = in.needs_input_grad ? stored(grad_x).view(in.input.sizes()) : absent();
  // The gradients' columns and W_hh's rows agree up to a rotation: two products where there is one.
  Tensor grad_h_0 = run.empty({s.D, s.B, K});
  for (int64_t d = 0; d < s.D; ++d) {
    const PerDirection& dir = dirs[d];
    const Tensor to = grad_h_0[d];
    run.multiply(to, dir.first.narrow(1, 0, head), dir.w_hh.narrow(0, rotation, head));
    if (rotation > 0) {
      run.multiply(to, dir.first.narrow(1, head, rotation), dir.w_hh.narrow(0, 0, rotation), true);
    }
  }
  if (info.carries_grad_h) grad_h_0.add_(grad_state);
  out.grad_h_0 = stored(grad_h_0);
  out.grad_c_0 = info.has_cell_state ? stored(grad_state) : absent();
  if (in.needs_params_grad) {
    for (const PerDirection& dir : dirs) {
      out.grad_params.push_back(stored(dir.grad_w_ih));
      out.grad_params.push_back(stored(dir.grad_w_hh));
      if (s.bias) {
        const Tensor b_ih = dir.grad_b.narrow(0, info.grad_input_offset * H, G * H);
        // Separate tensors, also where the two are equal: each may be changed in place.
        Tensor grad_b_ih = at::empty({G * H}, run.storage), grad_b_hh = at::empty_like(grad_b_ih);
        grad_b_ih.copy_(b_ih);
        grad_b_hh.narrow(0, rotation, head).copy_(dir.grad_b.narrow(0, 0, head));
        if (rotation > 0) {
          grad_b_hh.narrow(0, 0, rotation).copy_(dir.grad_b.narrow(0, head, rotation));
        }
        out.grad_params.push_back(grad_b_ih);
        out.grad_params.push_back(grad_b_hh);
      }
      if (s.projection) out.grad_params.push_back(stored(dir.grad_w_hr));
    }
  }
  out.step_grad_h = in.step_grads ? stored(step_grad_h) : absent();
  out.step_grad_c = in.step_grads && info.has_cell_state ? stored(step_grad_c) : absent();
  return out;
}

}  // namespace

ForwardResult forward_cpu(const Layer& s, const Tensor& input, const Tensor& h_0,
                          const std::optional<Tensor>& c_0, Save save) {
  const Tensor c = c_0.value_or(Tensor());
  if (is_step(s, input)) return forward_step(s, input, h_0, c, save);
  if (input.scalar_type() == at::kDouble) return forward<double>(s, input, h_0, c, save);
  return forward<float>(s, input, h_0, c, save);
}

BackwardResult backward_cpu(const Layer& s, const BackwardInputs& in) {
  if (in.input.scalar_type() == at::kDouble) return backward<double>(s, in);
  return backward<float>(s, in);
}

}  // namespace seqkern::ops
