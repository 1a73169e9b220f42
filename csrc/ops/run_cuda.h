// What a layer's forward and backward pass on the GPU have in common.
#pragma once

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <c10/core/DeviceGuard.h>

#include <cstring>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/plan.h"
#include "ops/chunks.h"
#include "ops/device_cuda.h"
#include "ops/layer.h"

// The CPU has a Run of its own, in the namespace around it.
namespace seqkern::ops::gpu {

using at::Tensor;
using cuda::Element;

inline cuda::Type type_of(at::ScalarType dtype) {
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

// Element (row, ..., column) of a contiguous tensor or of one with contiguous rows; null where
// there is none.
inline void* data(const Tensor& tensor, int64_t row = 0, int64_t column = 0) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  auto* p = static_cast<char*>(tensor.mutable_data_ptr());
  return p + (row * tensor.stride(0) + column) * tensor.element_size();
}
inline const void* input_data(const Tensor& tensor, int64_t row = 0, int64_t column = 0) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  auto* p = static_cast<const char*>(tensor.const_data_ptr());
  return p + (row * tensor.stride(0) + column) * tensor.element_size();
}

// n along dim, without the price of a view where these are all.
inline Tensor part(const Tensor& tensor, int64_t dim, int64_t first, int64_t n) {
  return n == tensor.size(dim) ? tensor : tensor.narrow(dim, first, n);
}

// out = a b or out += a b. out may have the arithmetic's type where a and b are in a shorter one.
// float32 products are TF32 only where torch's own switch asks for it.
inline void product(Tensor out, const Tensor& a, const Tensor& b, bool add = false) {
  if (out.scalar_type() != a.scalar_type()) {
    if (!a.is_cuda()) {
      // Only CUDA has products with a wider result.
      product(out, a.to(out.scalar_type()), b.to(out.scalar_type()), add);
    } else if (add) {
      out.add_(at::mm(a, b, out.scalar_type()));
    } else {
      at::mm_outf(a, b, out.scalar_type(), out);
    }
  } else if (add) {
    at::addmm_out(out, out, a, b);
  } else {
    at::mm_out(out, a, b);
  }
}

inline std::vector<Direction> contiguous(std::vector<Direction> directions) {
  for (Direction& d : directions) {
    for (Tensor* t : {&d.w_ih, &d.w_hh, &d.b_ih, &d.b_hh, &d.w_hr}) {
      if (t->defined()) *t = t->contiguous();
    }
  }
  return directions;
}

// What forward and backward have in common: types, plan, chunks.
struct Run {
  const Layer& s;
  c10::DeviceGuard guard;
  std::vector<Direction> directions;  // with contiguous tensors
  at::TensorOptions storage, math;
  cuda::Type type;
  cuda::Stream stream;
  cuda::Plan plan;
  Chunks chunks;
  Tensor offsets;  // on the device, where rows are ragged

  Run(const Layer& layer, const Tensor& input, bool backward)
      : s(layer),
        guard(input.device()),
        directions(contiguous(s.directions)),
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
  // Whether the arithmetic has a type of its own.
  bool converts() const { return math.dtype() != storage.dtype(); }
  int64_t bytes(Element type) const {
    return type == Element::Word ? sizeof(uint32_t)
                                 : (type == Element::Math ? math : storage).dtype().itemsize();
  }
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

// Memory that nothing but kernels sees, in one allocation: all pieces are reserved before it.
class Scratch {
 public:
  explicit Scratch(const Run& run) : run_(run) {}

  struct Piece {
    int64_t offset, count;
    Element type;
  };
  Piece reserve(int64_t count, Element type) {
    const int64_t offset = bytes_;
    bytes_ += (count * run_.bytes(type) + kAlignment - 1) / kAlignment * kAlignment;
    return {offset, count, type};
  }
  void allocate() { memory_ = at::empty({bytes_}, run_.storage.dtype(at::kByte)); }
  void* at(const Piece& piece, int64_t element = 0) const {
    if (piece.count == 0) return nullptr;
    return data(memory_, piece.offset + element * run_.bytes(piece.type));
  }

 private:
  static constexpr int64_t kAlignment = 256;
  const Run& run_;
  int64_t bytes_ = 0;
  Tensor memory_;
};

inline void add(cuda::Fills& fills, const cuda::Fill& fill) {
  if (fill.count == 0) return;
  TORCH_INTERNAL_ASSERT(fills.count < cuda::kMostFills);
  fills.fill[fills.count++] = fill;
}
inline void add_zeros(cuda::Fills& fills, const Scratch& scratch, const Scratch::Piece& piece) {
  add(fills, {.to = scratch.at(piece), .count = piece.count, .type = piece.type});
}

// [D, G + 1, H], as cuda::Forward has it: the biases that are added outside any product, and in the
// last row what lies inside the last gate's (the GRU's b_hn, which the reset gate multiplies).
class Bias {
 public:
  Bias(const Run& run, Scratch& scratch)
      : run_(run),
        scratch_(scratch),
        piece_(scratch.reserve(run.s.D * of_direction(), Element::Math)) {}

  void fill(cuda::Fills& fills) const {
    if (!run_.s.bias) return add_zeros(fills, scratch_, piece_);
    const int64_t H = run_.s.H, G = run_.s.info.gates, inside = run_.s.info.recurrent_bias ? 1 : 0;
    for (int64_t d = 0; d < run_.s.D; ++d) {
      const Direction& dir = run_.directions[d];
      const auto to_gate = [&](int64_t g, int64_t gates, const void* a, const void* b = nullptr) {
        add(fills, {.a = a,
                    .b = b,
                    .to = scratch_.at(piece_, d * of_direction() + g * H),
                    .count = gates * H,
                    .from = Element::Store,
                    .type = Element::Math});
      };
      const int64_t outside = G - inside;
      to_gate(0, outside, input_data(dir.b_ih), input_data(dir.b_hh));
      to_gate(outside, inside, input_data(dir.b_ih, outside * H));
      to_gate(G, 1, inside ? input_data(dir.b_hh, outside * H) : nullptr);
    }
  }
  const void* of(int64_t d) const { return scratch_.at(piece_, d * of_direction()); }

 private:
  int64_t of_direction() const { return (run_.s.info.gates + 1) * run_.s.H; }

  const Run& run_;
  const Scratch& scratch_;
  Scratch::Piece piece_;
};

// What blocks that wait for each other need: counters, for each chunk its own, and room for what
// they exchange.
class Exchange {
 public:
  Exchange(const Run& run, bool backward, Scratch& scratch) : scratch_(scratch) {
    const cuda::Plan& plan = run.plan;
    const bool grid = plan.tier == cuda::Tier::Grid, mma = plan.tier == cuda::Tier::Mma;
    of_chunk_ = run.s.D * (grid ? 1 : mma ? plan.mma.row_tiles : 0);
    counters_ = scratch.reserve(of_chunk_ * run.chunks.size(), Element::Word);
    zeroed_ = scratch.reserve(mma ? plan.mma.exchange : 0, Element::Store);
    partials_ = scratch.reserve(grid && backward ? plan.grid.partials : 0, Element::Math);
  }
  void fill(cuda::Fills& fills) const {
    add_zeros(fills, scratch_, counters_);
    add_zeros(fills, scratch_, zeroed_);
  }
  cuda::GridMemory of_grid(int64_t chunk) const {
    return {counters(chunk), scratch_.at(partials_), 0, 0, 0};
  }
  cuda::MmaMemory of_mma(int64_t chunk) const {
    return {counters(chunk), scratch_.at(zeroed_), 0, 0, 0};
  }

 private:
  uint32_t* counters(int64_t chunk) const {
    return static_cast<uint32_t*>(scratch_.at(counters_, chunk * of_chunk_));
  }

  const Scratch& scratch_;
  int64_t of_chunk_;
  Scratch::Piece counters_, zeroed_, partials_;
};

}  // namespace seqkern::ops::gpu
