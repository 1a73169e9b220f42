#include "ops/step_cpu.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "ops/memory_cpu.h"
#include "ops/zero_state.h"

namespace seqkern::ops {

namespace {

using at::Tensor;

template <typename T>
const cpu::LayerKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return cpu::kernels().f32;
  } else {
    return cpu::kernels().f64;
  }
}

// Rows up to which the step kernel is the faster way; 0 where there is none.
int64_t max_rows(at::ScalarType dtype) {
  return dtype == at::kFloat    ? kernels<float>().step_rows
         : dtype == at::kDouble ? kernels<double>().step_rows
                                : 0;
}

template <typename T>
void run(Cell cell, cpu::StepArgs<T> args, bool packed = false) {
  const int i = static_cast<int>(cell), gates = cell_info(cell).gates;
  const auto kernel = packed ? kernels<T>().packed_step[i] : kernels<T>().step[i];
  const int64_t terms = args.from_zero ? args.I : args.I + args.H;
  const int64_t weight_bytes = gates * args.H * terms * int64_t(sizeof(T));
  args.streams = cpu::plain_rows() == cpu::PlainRows::Single;
  const int threads = cpu::step_threads(args.B, weight_bytes, at::get_num_threads());
  // Most likely the step after one with the same weights. Not for many rows on weights as they lie,
  // which are fetched ahead from the first to the last.
  constexpr int64_t kFewRows = 8;
  if ((packed || args.B <= kFewRows) && cpu::kept_weights_pay(args.B) &&
      cpu::alternates(weight_bytes / threads, cpu::cache_bytes())) {
    static thread_local bool back = false;
    args.back = back = !back;
  }
  cpu::parallel(threads, [&](int index, int count) { kernel(args, index, count); });
}

template <typename T>
const T* read(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
T* write(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// A contiguous cell: c and both biases may be undefined. Its output, its new c and its gates are
// for the caller to name.
template <typename T>
cpu::StepArgs<T> cell_args(const Tensor& input, const Tensor& h, const Tensor& c,
                           const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                           const Tensor& b_hh) {
  const int64_t H = h.size(1);
  return {.B = input.size(0),
          .I = input.size(1),
          .H = H,
          .x = read<T>(input),
          .h = read<T>(h),
          .c = read<T>(c),
          .w_ih = read<T>(w_ih),
          .w_hh = read<T>(w_hh),
          .b_ih = read<T>(b_ih),
          .b_hh = read<T>(b_hh),
          .output = nullptr,
          .ldo = H,
          .c_n = nullptr,
          .gates = nullptr};
}

template <typename T>
ForwardResult forward_step(const Layer& s, const Tensor& input, const Tensor& h_0,
                           const Tensor& c_0, Save save) {
  const Tensor x = input.contiguous(), h0 = h_0.contiguous();
  const auto empty = [&](at::IntArrayRef sizes) { return empty_cpu(sizes, input.options()); };
  const int64_t B = s.B, H = s.H;
  const bool has_c = s.info.has_cell_state, save_gates = save == Save::Gates && s.info.saved > 0;
  Tensor output = empty(s.sequence_sizes(s.D * H)), h_n = empty({s.D, B, H});
  Tensor gates =
      empty(save == Save::Gates ? at::IntArrayRef{s.D, s.R, s.info.saved * H} : at::IntArrayRef{0});
  Tensor c_n = has_c ? empty({s.D, B, H}) : empty({0});
  const Tensor c0 = has_c ? c_0.contiguous() : Tensor();
  for (int64_t d = 0; d < s.D; ++d) {
    const Direction& dir = s.directions[d];
    const Tensor w_ih = dir.w_ih.contiguous(), w_hh = dir.w_hh.contiguous();
    const Tensor b_ih = s.bias ? dir.b_ih.contiguous() : Tensor(),
                 b_hh = s.bias ? dir.b_hh.contiguous() : Tensor();
    run<T>(s.cell, {.B = B,
                    .I = s.I,
                    .H = H,
                    .x = read<T>(x),
                    .h = read<T>(h0) + d * B * H,
                    .c = has_c ? read<T>(c0) + d * B * H : nullptr,
                    .w_ih = read<T>(w_ih),
                    .w_hh = read<T>(w_hh),
                    .b_ih = read<T>(b_ih),
                    .b_hh = read<T>(b_hh),
                    .output = write<T>(output) + d * H,
                    .ldo = s.D * H,
                    .c_n = has_c ? write<T>(c_n) + d * B * H : nullptr,
                    .gates = save_gates ? write<T>(gates) + d * B * s.info.saved * H : nullptr,
                    .from_zero = is_zero(read<T>(h0) + d * B * H, B * H)});
  }
  for (int64_t d = 0; d < s.D; ++d) {
    for (int64_t b = 0; b < B; ++b) {
      std::memcpy(write<T>(h_n) + (d * B + b) * H, read<T>(output) + (b * s.D + d) * H,
                  H * sizeof(T));
    }
  }
  // Every c_t of one step is c_n; outputs of an operator may not alias.
  Tensor cells = has_c && save != Save::None ? c_n.clone() : empty({0});
  return {output, h_n, c_n, gates, cells};
}

template <typename T>
StepResult step(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh) {
  const auto empty = [&] { return empty_cpu({h.size(0), h.size(1)}, input.options()); };
  StepResult r{.h = empty(), .c = c.defined() ? empty() : Tensor()};
  auto args = cell_args<T>(input, h, c, w_ih, w_hh, b_ih, b_hh);
  args.output = write<T>(r.h);
  args.c_n = write<T>(r.c);
  args.from_zero = is_zero(args.h, h.numel());
  run<T>(cell, args);
  return r;
}

template <typename T>
PackedWeights pack(Cell cell, const Tensor& w_ih, const Tensor& w_hh) {
  const int gates = cell_info(cell).gates;
  const int64_t H = w_hh.size(1), I = w_ih.size(1);
  const auto packed = [&](const Tensor& w, int64_t k) {
    Tensor to = at::empty({kernels<T>().packed_gates_size(gates, H, k)}, w.options());
    const Tensor from = w.contiguous();
    kernels<T>().pack_gates(read<T>(from), k, gates, H, k, write<T>(to), 0, 1);
    return to;
  };
  return {packed(w_ih, I), packed(w_hh, H), cpu::kernels().vector_bytes};
}

template <typename T>
void stream_step(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                 const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
                 const Tensor& output) {
  const int64_t H = h.size(1), I = input.size(1);
  const int gates = cell_info(cell).gates;
  TORCH_CHECK(w_ih.dim() == 1 && w_hh.dim() == 1 &&
                  w_ih.numel() == kernels<T>().packed_gates_size(gates, H, I) &&
                  w_hh.numel() == kernels<T>().packed_gates_size(gates, H, H),
              "seqkern::", cell_info(cell).name,
              "_stream_step: w_ih and w_hh must be packed for input size ", I, " and hidden size ",
              H, ", got ", w_ih.numel(), " and ", w_hh.numel(), " elements");
  auto args = cell_args<T>(input, h, c, w_ih, w_hh, b_ih, b_hh);
  args.output = write<T>(output);
  args.c_n = write<T>(c);
  run<T>(cell, args, true);
  // Not in the kernel: other threads may still read h there.
  std::memcpy(write<T>(h), read<T>(output), h.numel() * sizeof(T));
}

}  // namespace

bool is_step(const Layer& s, const Tensor& input) {
  return s.T == 1 && s.B > 0 && s.B <= max_rows(input.scalar_type()) && !s.projection;
}

ForwardResult forward_step(const Layer& s, const Tensor& input, const Tensor& h_0,
                           const Tensor& c_0, Save save) {
  if (input.scalar_type() == at::kDouble) return forward_step<double>(s, input, h_0, c_0, save);
  return forward_step<float>(s, input, h_0, c_0, save);
}

StepResult step_cpu(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                    const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                    const Tensor& b_hh) {
  // Plain arguments, as nearly all are, go straight to the kernel; the layer checks the others,
  // names what is wrong and takes what is only unusual.
  const CellInfo& info = cell_info(cell);
  const auto dtype = input.scalar_type();
  const auto plain = [&](const Tensor& t, int64_t rows, int64_t columns) {
    return t.dim() == 2 && t.size(0) == rows && t.size(1) == columns && t.scalar_type() == dtype &&
           t.is_cpu() && t.is_contiguous();
  };
  const auto plain_bias = [&](const Tensor& t, int64_t size) {
    return t.dim() == 1 && t.size(0) == size && t.scalar_type() == dtype && t.is_cpu() &&
           t.is_contiguous();
  };
  if (const int64_t most = max_rows(dtype); most > 0 && input.dim() == 2 && h.dim() == 2) {
    const int64_t B = input.size(0), I = input.size(1), H = h.size(1), width = info.gates * H;
    if (B > 0 && B <= most && H > 0 && plain(input, B, I) && plain(h, B, H) &&
        plain(w_ih, width, I) && plain(w_hh, width, H) && c.defined() == info.has_cell_state &&
        (!c.defined() || plain(c, B, H)) && b_ih.defined() == b_hh.defined() &&
        (!b_ih.defined() || (plain_bias(b_ih, width) && plain_bias(b_hh, width)))) {
      if (dtype == at::kDouble) {
        return step<double>(cell, input, h, c, w_ih, w_hh, b_ih, b_hh);
      }
      return step<float>(cell, input, h, c, w_ih, w_hh, b_ih, b_hh);
    }
  }
  return step_of_layer(forward_cpu, cell, input, h, c, w_ih, w_hh, b_ih, b_hh);
}

PackedWeights pack_cpu(Cell cell, const Tensor& w_ih, const Tensor& w_hh) {
  check_pack(cell, w_ih, w_hh);
  if (w_ih.scalar_type() == at::kDouble) return pack<double>(cell, w_ih, w_hh);
  return pack<float>(cell, w_ih, w_hh);
}

void stream_step_cpu(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c,
                     const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
                     const Tensor& output, int64_t vector_bytes) {
  check_stream_step(cell, input, h, c, w_ih, w_hh, b_ih, b_hh, output, vector_bytes,
                    cpu::kernels().vector_bytes);
  if (w_ih.scalar_type() == at::kDouble) {
    stream_step<double>(cell, input, h, c, w_ih, w_hh, b_ih, b_hh, output);
  } else {
    stream_step<float>(cell, input, h, c, w_ih, w_hh, b_ih, b_hh, output);
  }
}

}  // namespace seqkern::ops
