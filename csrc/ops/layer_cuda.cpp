#include "ops/layer_cuda.h"

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/plan.h"
#include "ops/chunks.h"
#include "ops/device_cuda.h"

namespace seqkern::ops {

namespace {

using at::Tensor;
using cuda::Element;

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

// Element (row, ..., column) of a contiguous tensor or of one with contiguous rows; null where
// there is none.
void* data(const Tensor& tensor, int64_t row = 0, int64_t column = 0) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  auto* p = static_cast<char*>(tensor.mutable_data_ptr());
  return p + (row * tensor.stride(0) + column) * tensor.element_size();
}
const void* input_data(const Tensor& tensor, int64_t row = 0, int64_t column = 0) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  auto* p = static_cast<const char*>(tensor.const_data_ptr());
  return p + (row * tensor.stride(0) + column) * tensor.element_size();
}

// n along dim, without the price of a view where these are all.
Tensor part(const Tensor& tensor, int64_t dim, int64_t first, int64_t n) {
  return n == tensor.size(dim) ? tensor : tensor.narrow(dim, first, n);
}

// out = a b or out += a b. out may have the arithmetic's type where a and b are in a shorter one.
// float32 products are TF32 only where torch's own switch asks for it.
void product(Tensor out, const Tensor& a, const Tensor& b, bool add = false) {
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

std::vector<Direction> contiguous(std::vector<Direction> directions) {
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

void add(cuda::Fills& fills, const cuda::Fill& fill) {
  if (fill.count == 0) return;
  TORCH_INTERNAL_ASSERT(fills.count < cuda::kMostFills);
  fills.fill[fills.count++] = fill;
}
void add_zeros(cuda::Fills& fills, const Scratch& scratch, const Scratch::Piece& piece) {
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

// ---- forward ----

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

// ---- backward ----

namespace {

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
      runs_ += runs(run.chunks.at(i, false));
    }
    sums_ = scratch.reserve(run.s.D * runs_ * width_, Element::Math);
  }

  void add_chunk(const Chunk (&chunks)[2], const std::vector<BackwardTensors>& dirs) {
    if (one_run_) return;
    cuda::Both<cuda::RunSums> args{};
    args.count = static_cast<int>(run_.s.D);
    for (int64_t d = 0; d < run_.s.D; ++d) {
      args.direction[d] = {.of = rows(dirs[d], chunks[d].rows), .sums = sums(d, done_[d])};
      done_[d] += runs(chunks[d]);
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
  static int64_t runs(const Chunk& chunk) {
    return (chunk.rows + cuda::kSumRows - 1) / cuda::kSumRows;
  }
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
