// The dispatcher's view of seqkern: one forward and one backward operator per cell, all with the
// same schema, and beside them those for single steps of inference. The fake kernels and the vmap
// rules are in seqkern/ops.py, the derivative in ops/autograd.h and seqkern/autograd.py.
#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>

#include "ops/layer.h"
#include "ops/layer_cpu.h"
#include "ops/left_over.h"
#include "ops/lengths_cpu.h"
#include "ops/step_cpu.h"
#if defined(SEQKERN_WITH_CUDA)
#include "ops/layer_cuda.h"
#include "ops/step_cuda.h"
#endif

namespace seqkern::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

constexpr const char* kForwardSchema =
    "_forward(Tensor input, Tensor? batch_sizes, Tensor h_0, Tensor? c_0, Tensor[] params, "
    "str save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)";

constexpr const char* kBackwardSchema =
    "_backward(Tensor grad_output, Tensor grad_h_n, Tensor? grad_c_n, Tensor input, "
    "Tensor? batch_sizes, Tensor h_0, Tensor? c_0, Tensor[] params, Tensor output, Tensor gates, "
    "Tensor cells, bool needs_input_grad, bool needs_h_0_grad, bool needs_params_grad, "
    "bool step_grads) -> "
    "(Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_params, "
    "Tensor step_grad_h, Tensor step_grad_c)";

// One step of a cell, without derivative; from a state of zeros where none is given.
constexpr const char* kStepSchema =
    "_step(Tensor input, Tensor? h, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) -> "
    "Tensor";
constexpr const char* kStepWithStateSchema =
    "_step(Tensor input, Tensor? h, Tensor? c, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
    "Tensor? b_hh) -> (Tensor h, Tensor c)";

// Inference step by step on weights that are packed once (seqkern.Stream). vector_bytes is that of
// the SIMD level in whose layout they are; 0, on CUDA, that they are copies in the layout of torch.
constexpr const char* kPackSchema =
    "_pack(Tensor w_ih, Tensor w_hh) -> (Tensor w_ih, Tensor w_hh, int vector_bytes)";
constexpr const char* kStreamStepSchema =
    "_stream_step(Tensor input, Tensor(a!) h, Tensor(b!)? c, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor(c!) output, int vector_bytes) -> ()";

// Padded batches with lengths (seqkern/lengths.py); csrc/ops/lengths_cpu.h has the meanings.
constexpr const char* kLayoutSchema =
    "layout(Tensor lengths, int steps, bool batch_first) -> "
    "(Tensor batch_sizes, Tensor source, Tensor padding, Tensor order, Tensor place)";
constexpr const char* kGatherSchema = "gather_rows(Tensor padded, Tensor source) -> Tensor";
constexpr const char* kScatterSchema =
    "scatter_rows(Tensor rows, Tensor source, Tensor padding) -> Tensor";

// run: forward_cpu or forward_cuda
template <Cell cell, auto run>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& input,
                                                           const Optional& batch_sizes,
                                                           const Tensor& h_0, const Optional& c_0,
                                                           at::TensorList params,
                                                           c10::string_view save) {
  const Layer layer = check_layer(cell, input, batch_sizes, h_0, c_0, params);
  TORCH_CHECK(save == "gates" || save == "states" || save == "none", "seqkern::", layer.info.name,
              ": save must be 'gates', 'states' or 'none', got '", std::string(save), "'");
  ForwardResult r = on_rows_in_use(run, layer, input, h_0, c_0,
                                   save == "gates"    ? Save::Gates
                                   : save == "states" ? Save::States
                                                      : Save::None);
  return {r.output, r.h_n, r.c_n, r.gates, r.cells};
}

template <Cell cell, auto run>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& grad_h_n, const Optional& grad_c_n,
    const Tensor& input, const Optional& batch_sizes, const Tensor& h_0, const Optional& c_0,
    at::TensorList params, const Tensor& output, const Tensor& gates, const Tensor& cells,
    bool needs_input_grad, bool needs_h_0_grad, bool needs_params_grad, bool step_grads) {
  const Layer s = check_layer(cell, input, batch_sizes, h_0, c_0, params);
  check_tensor(s, "grad_output", grad_output, "output's sizes", s.given_sizes(s.D * s.K), input);
  check_tensor(s, "output", output, s.ragged ? "[R, D*K]" : "[T, B, D*K]", s.given_sizes(s.D * s.K),
               input);
  check_tensor(s, "grad_h_n", grad_h_n, "[D, B, K]", {s.D, s.given_batch, s.K}, input);
  // [0] after save="states": the gates are computed again.
  if (gates.dim() != 1 || gates.numel() != 0) {
    check_tensor(s, "gates", gates, "[D, R, S*H], or [0] where forward saved the states",
                 {s.D, s.given_rows, s.info.saved * s.H}, input);
  }
  TORCH_CHECK(grad_c_n.has_value() == s.info.has_cell_state, "seqkern::", s.info.name,
              ": grad_c_n must be ", s.info.has_cell_state ? "given" : "None");
  if (s.info.has_cell_state) {
    check_tensor(s, "grad_c_n", *grad_c_n, "[D, B, H]", {s.D, s.given_batch, s.H}, input);
    const auto cell_type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    TORCH_CHECK(cells.sizes() == at::IntArrayRef({s.D, s.given_rows, s.H}) &&
                    cells.scalar_type() == cell_type && cells.device() == input.device(),
                "seqkern::", s.info.name, ": cells must be forward's [D, R, H] ", cell_type,
                ", got ", cells.sizes(), " ", cells.scalar_type());
  }
  BackwardResult r =
      on_rows_in_use(run, s,
                     {grad_output, grad_h_n, grad_c_n.value_or(Tensor()), input, h_0,
                      c_0.value_or(Tensor()), output, gates.contiguous(), cells, needs_input_grad,
                      needs_h_0_grad, needs_params_grad, step_grads});
  return {r.grad_input, r.grad_h_0, r.grad_c_0, r.grad_params, r.step_grad_h, r.step_grad_c};
}

// run: step_cpu or step_cuda
template <Cell cell, auto run>
Tensor step(const Tensor& input, const Optional& h, const Tensor& w_ih, const Tensor& w_hh,
            const Optional& b_ih, const Optional& b_hh) {
  return run(cell, input, h ? *h : zero_state(cell, input, w_hh), Tensor(), w_ih, w_hh,
             b_ih.value_or(Tensor()), b_hh.value_or(Tensor()))
      .h;
}

template <Cell cell, auto run>
std::tuple<Tensor, Tensor> step_with_state(const Tensor& input, const Optional& h,
                                           const Optional& c, const Tensor& w_ih,
                                           const Tensor& w_hh, const Optional& b_ih,
                                           const Optional& b_hh) {
  TORCH_CHECK(h.has_value() == c.has_value(), "seqkern::", cell_info(cell).name,
              "_step: expected both h and c or neither, got ", h ? "h" : "c", " alone");
  const Tensor zeros = h ? Tensor() : zero_state(cell, input, w_hh);
  StepResult r = run(cell, input, h.value_or(zeros), c.value_or(zeros), w_ih, w_hh,
                     b_ih.value_or(Tensor()), b_hh.value_or(Tensor()));
  return {r.h, r.c};
}

template <Cell cell, auto run>
std::tuple<Tensor, Tensor, int64_t> pack(const Tensor& w_ih, const Tensor& w_hh) {
  PackedWeights p = run(cell, w_ih, w_hh);
  return {p.w_ih, p.w_hh, p.vector_bytes};
}

template <Cell cell, auto run>
void stream(const Tensor& input, Tensor& h, const Optional& c, const Tensor& w_ih,
            const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh, Tensor& output,
            int64_t vector_bytes) {
  run(cell, input, h, c.value_or(Tensor()), w_ih, w_hh, b_ih.value_or(Tensor()),
      b_hh.value_or(Tensor()), output, vector_bytes);
  const Tensor* const changes[] = {&h, c ? &*c : nullptr, &output};
  for (const Tensor* changed : changes) {
    if (changed && !changed->is_inference()) changed->unsafeGetTensorImpl()->bump_version();
  }
}

// A step of inference lasts some microseconds: autogradNotImplementedFallback, which boxes its
// arguments, takes one of them.
constexpr char kStep[] = "_step", kStreamStep[] = "_stream_step";

template <Cell cell, const char* name, typename F>
struct NoDerivative;
template <Cell cell, const char* name, typename R, typename... Args>
struct NoDerivative<cell, name, R(Args...)> {
  static R call(Args... args) {
    TORCH_CHECK(!(c10::GradMode::is_enabled() && (requires_grad(args) || ...)),
                "seqkern::", cell_info(cell).name, name,
                " has no derivative: call it without grad, or ", cell_info(cell).name, "_forward");
    static const auto handle =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow((std::string("seqkern::") + cell_info(cell).name + name).c_str(), "")
            .template typed<R(Args...)>();
    at::AutoDispatchBelowADInplaceOrView below;
    return handle.call(args...);
  }
  static bool requires_grad(const Tensor& t) { return t.requires_grad(); }
  static bool requires_grad(const Optional& t) { return t && t->requires_grad(); }
  static bool requires_grad(int64_t) { return false; }
};

template <typename F>
void for_each_cell(F&& f) {
  f(std::integral_constant<Cell, Cell::Lstm>());
  f(std::integral_constant<Cell, Cell::Gru>());
  f(std::integral_constant<Cell, Cell::RnnTanh>());
  f(std::integral_constant<Cell, Cell::RnnRelu>());
}

std::string op(Cell cell, const char* rest) { return std::string(cell_info(cell).name) + rest; }

struct Cpu {
  static constexpr auto forward = forward_cpu;
  static constexpr auto backward = backward_cpu;
  static constexpr auto step = step_cpu;
  static constexpr auto pack = pack_cpu;
  static constexpr auto stream_step = stream_step_cpu;
};

#if defined(SEQKERN_WITH_CUDA)
struct Cuda {
  static constexpr auto forward = forward_cuda;
  static constexpr auto backward = backward_cuda;
  static constexpr auto step = step_cuda;
  static constexpr auto pack = pack_cuda;
  static constexpr auto stream_step = stream_step_cuda;
};
#endif

template <class Device>
void implement(torch::Library& m) {
  for_each_cell([&](auto cell) {
    m.impl(op(cell, "_forward").c_str(), &forward<cell.value, Device::forward>);
    m.impl(op(cell, "_backward").c_str(), &backward<cell.value, Device::backward>);
    if constexpr (cell.value == Cell::Lstm) {
      m.impl(op(cell, "_step").c_str(), &step_with_state<cell.value, Device::step>);
    } else {
      m.impl(op(cell, "_step").c_str(), &step<cell.value, Device::step>);
    }
    m.impl(op(cell, "_pack").c_str(), &pack<cell.value, Device::pack>);
    m.impl(op(cell, "_stream_step").c_str(), &stream<cell.value, Device::stream_step>);
  });
}

}  // namespace

TORCH_LIBRARY(seqkern, m) {
  for_each_cell([&](auto cell) {
    m.def(op(cell, kForwardSchema).c_str());
    m.def(op(cell, kBackwardSchema).c_str());
    const bool has_c = cell_info(cell).has_cell_state;
    m.def(op(cell, has_c ? kStepWithStateSchema : kStepSchema).c_str());
    m.def(op(cell, kPackSchema).c_str());
    m.def(op(cell, kStreamStepSchema).c_str());
  });
  m.def(kLayoutSchema);
  m.def(kGatherSchema);
  m.def(kScatterSchema);
}

TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("layout", layout);
  m.impl("gather_rows", gather_rows);
  m.impl("scatter_rows", scatter_rows);
}

#if defined(SEQKERN_CUDA_HOST)
// A test build: the CUDA kernels, executed on the CPU.
TORCH_LIBRARY_IMPL(seqkern, CPU, m) { implement<Cuda>(m); }
#else
TORCH_LIBRARY_IMPL(seqkern, CPU, m) { implement<Cpu>(m); }
#if defined(SEQKERN_WITH_CUDA)
TORCH_LIBRARY_IMPL(seqkern, CUDA, m) { implement<Cuda>(m); }
#endif
#endif

// Derivatives lie around these operators. Called directly on tensors that require
// grad, these say so in backward instead of returning no gradient.
TORCH_LIBRARY_IMPL(seqkern, Autograd, m) {
  for (const char* name : {"layout", "gather_rows", "scatter_rows"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
  for_each_cell([&](auto cell) {
    m.impl(op(cell, "_forward").c_str(), torch::autograd::autogradNotImplementedFallback());
    m.impl(op(cell, "_backward").c_str(), torch::autograd::autogradNotImplementedFallback());
    if constexpr (cell.value == Cell::Lstm) {
      m.impl(
          op(cell, "_step").c_str(),
          &NoDerivative<cell.value, kStep, decltype(step_with_state<cell.value, step_cpu>)>::call);
    } else {
      m.impl(op(cell, "_step").c_str(),
             &NoDerivative<cell.value, kStep, decltype(step<cell.value, step_cpu>)>::call);
    }
    m.impl(op(cell, "_pack").c_str(), torch::autograd::autogradNotImplementedFallback());
    m.impl(op(cell, "_stream_step").c_str(),
           &NoDerivative<cell.value, kStreamStep,
                         decltype(stream<cell.value, stream_step_cpu>)>::call);
  });
}

}  // namespace seqkern::ops
