// What a layer's forward and backward pass on the CPU have in common.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "ops/chunks.h"
#include "ops/memory_cpu.h"
#include "ops/team_cpu.h"

namespace seqkern::ops {

using at::Tensor;

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

using cpu::Arithmetic;
using cpu::Bf16;

template <typename T>
inline constexpr at::ScalarType kTypeOf = c10::CppTypeToScalarType<T>::value;
template <>
inline constexpr at::ScalarType kTypeOf<Bf16> = at::kBFloat16;

template <typename T>
Arithmetic<T> value(T x) {
  return x;
}
inline float value(Bf16 x) { return c10::detail::f32_from_bits(x.bits); }

// A tensor's elements from the first-th on; null for an undefined tensor.
template <typename T>
T* data(const Tensor& tensor, int64_t first = 0) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) + first : nullptr;
}

// The same for what belongs to the caller and is only read.
template <typename T>
const T* input_data(const Tensor& tensor, int64_t first = 0) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) + first : nullptr;
}

// Copies rows [0, n) of width elements.
template <typename T>
void copy_rows(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n,
               int64_t width) {
  for (int64_t r = 0; r < n; ++r)
    std::memcpy(to + r * to_stride, from + r * from_stride, width * sizeof(T));
}

// Rows or steps [begin, end).
struct Rows {
  int64_t begin, end;
};

// What forward and backward have in common: the types, the plan, the chunks, the team of threads. T
// is the type of the kernels, A that of their sums; the caller's tensors may have a third
// (storage). The pass makes so many flops for each row and weight.
template <typename T>
struct Run {
  using A = Arithmetic<T>;

  const Layer& s;
  const cpu::LayerKernels<T>& kernels;
  at::TensorOptions storage, compute;
  cpu::Plan plan;
  Chunks chunks;
  ForkGuard guard;

  Run(const cpu::LayerKernels<T>& table, const Layer& layer, const at::TensorOptions& options,
      int width, int panel_units, int64_t flops, int64_t min_chunk_rows, Groups groups)
      : s(layer),
        kernels(table),
        storage(options),
        compute(options.dtype(kTypeOf<A>)),
        plan(cpu::make_plan({.B = s.B,
                             .H = s.H,
                             .K = s.K,
                             .gates = width,
                             .directions = static_cast<int>(s.D),
                             .panel_units = panel_units,
                             .element_size = sizeof(A),
                             .pass_flops = flops * s.R * s.D * width * s.H * (s.I + s.K),
                             .min_chunk_rows = min_chunk_rows,
                             .cache_bytes = cpu::cache_bytes()},
                            at::get_num_threads())),
        chunks(s, plan.chunk_rows, plan.split_rows ? plan.threads / plan.teams : 0,
               plan.teams > 1 || converts() ? Groups::kOfChunk : groups) {
    plan.alternate = plan.alternate && cpu::kept_weights_pay(s.B);
  }

  bool converts() const { return c10::typeMetaToScalarType(storage.dtype()) != kTypeOf<T>; }

  Tensor stored(const Tensor& tensor) const {
    if (tensor.dtype() == storage.dtype()) return tensor;
    return empty_cpu(tensor.sizes(), storage).copy_(tensor);
  }
  // Without values.
  template <typename U = A>
  Tensor empty(at::IntArrayRef sizes) const {
    return empty_cpu(sizes, storage.dtype(kTypeOf<U>));
  }
  Tensor absent() const { return empty_cpu({0}, storage); }
  // Memory for n elements that lives as long as the run.
  template <typename U>
  U* scratch(int64_t n) {
    if (void* const own = arena_.take(n * sizeof(U))) return static_cast<U*>(own);
    held_.push_back(empty<U>({n}));
    return data<U>(held_.back());
  }
  // The elements of a tensor of the caller's in this type, contiguous: where they lie if they are
  // so already.
  template <typename U>
  const U* read(const Tensor& tensor) {
    const U* const there = input_data<U>(tensor);
    // Kernels of bfloat16 read pairs.
    if (tensor.scalar_type() == kTypeOf<U> && tensor.is_contiguous() &&
        reinterpret_cast<uintptr_t>(there) % sizeof(A) == 0) {
      return there;
    }
    held_.push_back(empty<U>(tensor.sizes()).copy_(tensor));
    return input_data<U>(held_.back());
  }
  // The rows of a layer's input or of its output's gradient in this type, where they lie if each is
  // contiguous.
  cpu::PlacedRows<T> place(const Tensor& tensor) {
    const int64_t last = tensor.dim() - 1, width = tensor.size(last);
    if (tensor.is_contiguous() || tensor.stride(last) != 1 || tensor.scalar_type() != kTypeOf<T>) {
      return {read<T>(tensor), s.ragged ? -1 : s.B * width, width};
    }
    return {input_data<T>(tensor), s.ragged ? -1 : tensor.stride(0), tensor.stride(last - 1)};
  }
  // Whether all rows of input follow one another.
  bool dense(const cpu::PlacedRows<T>& input) const {
    return input.row == s.I && (input.step < 0 || input.step == s.B * s.I);
  }
  // A chunk's rows of input one after the other. Each thread of a team copies the rows of its
  // groups, where it alone multiplies them; without groups those of some steps, and a wait has to
  // follow.
  void gather(const Team<T>& team, const cpu::PlacedRows<T>& input, const Chunk& chunk,
              const cpu::RowGroups& groups, T* to) const {
    const int threads =
        cpu::product_threads(chunk.rows, s.info.gates * s.H, s.I, at::get_num_threads());
    team.all(threads, [&](int index, int count) {
      const int64_t n = chunk.end - chunk.begin;
      const Rows steps = groups ? Rows{0, n} : Rows{n * index / count, n * (index + 1) / count};
      for (int64_t t = chunk.begin + steps.begin; t < chunk.begin + steps.end; ++t) {
        Rows rows{0, s.rows(t)};
        if (groups) {
          rows = {groups.begin(index, count, s.rows(t)), groups.begin(index + 1, count, s.rows(t))};
        }
        copy_rows(to + (s.offsets[t] - chunk.row + rows.begin) * s.I, s.I,
                  input.of_step(t, s.offsets[t]) + rows.begin * input.row, input.row,
                  rows.end - rows.begin, s.I);
      }
    });
  }
  // A right factor of so many products, each with a left factor of `rows` rows. Where it is not
  // packed, they take whole pairs.
  Factor<T> factor(Matrix<const T> b, int64_t rows, int64_t products) {
    const bool pack =
        rows > Factor<T>::kFewRows || products > 2 || b.rows % (sizeof(A) / sizeof(T)) != 0;
    return {b, pack ? scratch<T>(kernels.gemm_packed_size(b.rows, b.columns)) : nullptr};
  }

  cpu::Steps steps(const Chunk& c, int64_t d) const {
    return {s.offsets.data(), s.T, c.begin, c.end, d == 1};
  }

  // For the products that all threads make of a chunk's rows, where they make its steps too.
  StepRows step_rows(const Chunk& c) const {
    if (plan.teams > 1) return {};
    return {&s.offsets[c.begin], chunks.first_rows(c), c.end - c.begin, chunks.groups(c)};
  }

  // work(direction, worker) by every thread of each direction's team, in a chunk of its own.
  template <typename F>
  void directions(const Team<T>& team, const Chunk* chunk, F&& work) {
    // Without a region for the pass each call has one, of a number of threads of its own.
    cpu::Barrier own[2];
    cpu::Barrier* const barriers = team.in_region() ? barriers_ : own;
    const auto worker = [&](int index, int count, int64_t d) {
      const cpu::RowGroups groups = chunk ? chunks.groups(chunk[d]) : cpu::RowGroups{};
      return cpu::Worker{index, count, groups, plan.alternate, &barriers[d]};
    };
    team.all(plan.threads, [&](int index, int count) {
      count = std::min(count, plan.threads);
      if (index >= count) return;
      if (plan.teams == 2 && count >= 2) {
        const int d = index % 2, members = (count + 1 - d) / 2;
        work(d, worker(index / 2, members, d));
      } else {
        for (int64_t d = 0; d < s.D; ++d) {
          work(d, worker(index, count, d));
        }
      }
    });
  }

  // pass(team), in one parallel region for all of it: one for each phase of a chunk, a dozen, took
  // a tenth of a small layer's time. With a region for each phase where the time loop has one
  // thread, or fewer than the products want, as the others would spin meanwhile; and where values
  // are converted, which ATen does with threads of its own.
  template <typename F>
  void execute(F&& pass) {
    const int available = at::get_num_threads();
    T* const scratches = scratch<T>(available * kernels.gemm_scratch_size());
    const int wanted =
        cpu::product_threads(chunks.max_rows(), s.info.gates * s.H, std::max(s.I, s.K), available);
    if (converts() || plan.threads == 1 || plan.threads < wanted) {
      pass(Team<T>(kernels, scratches));
      return;
    }
    cpu::Barrier barrier;
    cpu::parallel(plan.threads, [&](int index, int count) {
      pass(Team<T>(kernels, scratches, index, count, &barrier));
    });
  }

 private:
  Arena arena_;
  std::vector<Tensor> held_;
  cpu::Barrier barriers_[2];
};

// The rows that take their last step, in direction d's order of time, at step t.
inline Rows rows_ending(const Layer& s, int64_t d, int64_t t) {
  if (d == 1) return {0, t == 0 ? s.B : 0};
  return {t + 1 < s.T ? s.rows(t + 1) : 0, s.rows(t)};
}
inline Rows rows_starting(const Layer& s, int64_t d, int64_t t) { return rows_ending(s, 1 - d, t); }

// [G + 1, H]: what the kernels add outside the products, and in the last row what belongs inside
// the last gate's (the GRU's b_hn, which the reset gate multiplies).
template <typename T>
Arithmetic<T>* pack_bias(Run<T>& run, const Direction& direction) {
  using A = Arithmetic<T>;
  const Layer& s = run.s;
  const int64_t H = s.H, G = s.info.gates;
  A* const bias = run.template scratch<A>((G + 1) * H);
  std::fill_n(bias, (G + 1) * H, A(0));
  if (s.bias) {
    const A *in = run.template read<A>(direction.b_ih), *rec = run.template read<A>(direction.b_hh);
    const int64_t outside = (s.info.recurrent_bias ? G - 1 : G) * H;
    for (int64_t i = 0; i < G * H; ++i) bias[i] = i < outside ? in[i] + rec[i] : in[i];
    for (int64_t i = outside; i < G * H; ++i) bias[i + H] = rec[i];
  }
  return bias;
}

// Kernels for the layer's bfloat16, which multiply pairs; null where it is converted.
inline const cpu::LayerKernels<Bf16>* bf16_kernels(const Layer& s, const Tensor& input) {
  if (input.scalar_type() != at::kBFloat16 || s.H % 2 != 0 || s.K % 2 != 0) return nullptr;
  const bool pay = !cpu::bf16_is_slow() || cpu::slow_pairs_pay(s.B, s.R, s.info.gates * s.H * s.K);
  return pay ? cpu::bf16_kernels() : nullptr;
}

}  // namespace seqkern::ops
