#include "ops/autograd.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "ops/memory_cpu.h"

namespace seqkern::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The operators of register.cpp, by way of the dispatcher: each device has its own, and modes see
// them.
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Tensor& input, const Optional& batch_sizes, const Tensor& h_0, const Optional& c_0,
    at::TensorList params, c10::string_view save);
using Backward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor>(
    const Tensor& grad_output, const Tensor& grad_h_n, const Optional& grad_c_n,
    const Tensor& input, const Optional& batch_sizes, const Tensor& h_0, const Optional& c_0,
    at::TensorList params, const Tensor& output, const Tensor& gates, const Tensor& cells,
    bool needs_input_grad, bool needs_h_0_grad, bool needs_params_grad, bool step_grads);

using Step = Tensor(const Tensor& input, const Optional& h, const Tensor& w_ih, const Tensor& w_hh,
                    const Optional& b_ih, const Optional& b_hh);
using StepWithState = std::tuple<Tensor, Tensor>(const Tensor& input, const Optional& h,
                                                 const Optional& c, const Tensor& w_ih,
                                                 const Tensor& w_hh, const Optional& b_ih,
                                                 const Optional& b_hh);

template <typename F>
c10::TypedOperatorHandle<F> op_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

template <typename F>
c10::TypedOperatorHandle<F> of_cell(Cell cell, const char* rest) {
  const std::string name = std::string("seqkern::") + cell_info(cell).name + rest;
  return op_named<F>(name.c_str());
}

template <typename F>
std::vector<c10::TypedOperatorHandle<F>> of_cells(const char* rest) {
  std::vector<c10::TypedOperatorHandle<F>> found;
  for (int cell = 0; cell < kNumCells; ++cell) {
    found.push_back(of_cell<F>(static_cast<Cell>(cell), rest));
  }
  return found;
}

const auto& forward_op(Cell cell) {
  static const auto found = of_cells<Forward>("_forward");
  return found[static_cast<int>(cell)];
}

const auto& backward_op(Cell cell) {
  static const auto found = of_cells<Backward>("_backward");
  return found[static_cast<int>(cell)];
}

using Gather = Tensor(const Tensor& padded, const Tensor& source);
using Scatter = Tensor(const Tensor& rows, const Tensor& source, const Tensor& padding);

// padded [first, second, W], flattened, as the operator takes it, and back. Batched gradients come
// as wrapped tensors, for which the operators have no rules.
Tensor gathered(const Tensor& padded, const Tensor& source) {
  static const auto op = op_named<Gather>("seqkern::gather_rows");
  const Tensor flat = padded.reshape({padded.size(0) * padded.size(1), padded.size(2)});
  return wrapped(padded) ? flat.index_select(0, source) : op.call(flat, source);
}

Tensor scattered(const Tensor& rows, const Tensor& source, const Tensor& padding, int64_t first,
                 int64_t second) {
  static const auto op = op_named<Scatter>("seqkern::scatter_rows");
  const int64_t width = rows.size(1);
  const Tensor flat = wrapped(rows)
                          ? rows.new_zeros({first * second, width}).index_copy(0, source, rows)
                          : op.call(rows, source, padding);
  return flat.view({first, second, width});
}

LayerGrad layer_grad = nullptr;

Optional if_defined(const Tensor& tensor) {
  return tensor.defined() ? Optional(tensor) : std::nullopt;
}

Tensor or_zeros(const Tensor& grad, const Tensor& like) {
  return grad.defined() ? grad : at::zeros_like(like);
}

// Whether its memory is there to be read and written on the CPU.
bool plain_cpu(const Tensor& tensor) {
  return tensor.is_cpu() && !wrapped(tensor) && !tensor.unsafeGetTensorImpl()->is_python_dispatch();
}

Tensor contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous() || !plain_cpu(tensor)) return tensor.contiguous();
  return empty_cpu(tensor.sizes(), tensor.options()).copy_(tensor);
}

// The gradients of h_n and c_n. Where nobody used either, one tensor of zeros will do for both: on
// CUDA each is a launch.
std::array<Tensor, 2> grads_or_zeros(const Tensor& grad_h, const Tensor& grad_c, const Tensor& h,
                                     const Tensor& c) {
  const Tensor of_h = or_zeros(grad_h, h);
  if (!c.defined()) return {of_h, Tensor()};
  const bool same = !grad_h.defined() && !grad_c.defined() && c.sizes() == h.sizes();
  return {of_h, same ? of_h : or_zeros(grad_c, c)};
}

BackwardResult gradients(Cell cell, const Tensor& batch_sizes, const BackwardInputs& in,
                         at::TensorList params) {
  if (at::GradMode::is_enabled()) return layer_grad(cell, batch_sizes, in, params);
  BackwardResult r;
  std::tie(r.grad_input, r.grad_h_0, r.grad_c_0, r.grad_params, r.step_grad_h, r.step_grad_c) =
      backward_op(cell).call(in.grad_output, in.grad_h_n, if_defined(in.grad_c_n), in.input,
                             if_defined(batch_sizes), in.h_0, if_defined(in.c_0), params, in.output,
                             in.gates, in.cells, in.needs_input_grad, in.needs_h_0_grad,
                             in.needs_params_grad, false);
  return r;
}

// A backward pass below autograd, unless grad mode is on and somebody may differentiate it. Only
// once the kept tensors are there: a hook that unpacks them may run anything, as a checkpoint does.
class MaybeBelow {
 public:
  MaybeBelow() {
    if (!at::GradMode::is_enabled()) below_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_;
};

// The arguments that are no variables, and the one result that is none: compiled autograd takes no
// node with results that are marked as such.
struct Call {
  Cell cell;
  std::string_view save;
  const Optional& batch_sizes;
  Tensor* no_c_n;
};

// What both nodes keep, and their edges in its order: those of input, h, c where the cell has it,
// params.
struct Kept {
  Cell cell;
  variable_list tensors;
  const Tensor &batch_sizes, &input, &h, &c, &output, &gates, &cells;
  at::TensorList params;
  bool needs_input_grad, needs_h_grad, needs_params_grad;

  static void keep(AutogradContext* ctx, Cell cell, variable_list tensors, at::TensorList params) {
    ctx->saved_data["cell"] = static_cast<int64_t>(cell);
    // Else zeros are made for every result that nobody used.
    ctx->set_materialize_grads(false);
    tensors.insert(tensors.end(), params.begin(), params.end());
    ctx->save_for_backward(std::move(tensors));
  }
  explicit Kept(AutogradContext* ctx)
      : cell(static_cast<Cell>(ctx->saved_data["cell"].toInt())),
        tensors(ctx->get_saved_variables()),
        batch_sizes(tensors[0]),
        input(tensors[1]),
        h(tensors[2]),
        c(tensors[3]),
        output(tensors[4]),
        gates(tensors[5]),
        cells(tensors[6]),
        params(at::TensorList(tensors).slice(7)),
        needs_input_grad(ctx->needs_input_grad(0)),
        needs_h_grad(ctx->needs_input_grad(1)) {
    const size_t first = c.defined() ? 3 : 2;
    needs_params_grad = ctx->needs_input_grad({{first, first + params.size()}});
  }
  Kept(const Kept&) = delete;

  // One gradient for each argument, undefined where there is none: the first one is no variable.
  variable_list returned(BackwardResult r) const {
    variable_list all{Tensor(), needs_input_grad ? r.grad_input : Tensor(),
                      needs_h_grad ? r.grad_h_0 : Tensor(), c.defined() ? r.grad_c_0 : Tensor()};
    r.grad_params.resize(params.size());
    for (Tensor& grad : r.grad_params) all.push_back(std::move(grad));
    return all;
  }
};

}  // namespace

// Outside of it, for their names: torch's errors show them.
struct LayerFunction : torch::autograd::Function<LayerFunction> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Call& call, const Tensor& input,
                               const Tensor& h_0, const Optional& c_0, at::TensorList params) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, h_n, c_n, gates, cells] =
        forward_op(call.cell).call(input, call.batch_sizes, h_0, c_0, params, call.save);
    Kept::keep(ctx, call.cell,
               {call.batch_sizes.value_or(Tensor()), input, h_0, c_0.value_or(Tensor()), output,
                gates, cells},
               params);
    if (c_0) return {output, h_n, c_n};
    *call.no_c_n = c_n;
    return {output, h_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Kept k(ctx);
    const MaybeBelow below;
    const auto [grad_h_n, grad_c_n] =
        grads_or_zeros(grads[1], k.c.defined() ? grads[2] : Tensor(), k.h, k.c);
    return k.returned(gradients(k.cell, k.batch_sizes,
                                {.grad_output = or_zeros(grads[0], k.output),
                                 .grad_h_n = grad_h_n,
                                 .grad_c_n = grad_c_n,
                                 .input = k.input,
                                 .h_0 = k.h,
                                 .c_0 = k.c,
                                 .output = k.output,
                                 .gates = k.gates,
                                 .cells = k.cells,
                                 .needs_input_grad = k.needs_input_grad,
                                 .needs_h_0_grad = k.needs_h_grad,
                                 .needs_params_grad = k.needs_params_grad},
                                k.params));
  }
};

// Input as a layer's node keeps it: of what is not contiguous a copy. The gradient of a batch-major
// one, seen time-major, comes in the order of its memory: what takes it next would copy it.
struct ContiguousInput : torch::autograd::Function<ContiguousInput> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& input) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["batch_major"] = input.dim() == 3 && input.transpose(0, 1).is_contiguous();
    return contiguous(input);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor& grad = grads[0];
    const bool batch_major = ctx->saved_data["batch_major"].toBool();
    if (!batch_major || at::GradMode::is_enabled() || !plain_cpu(grad)) return {grad};
    const Tensor copy =
        empty_cpu({grad.size(1), grad.size(0), grad.size(2)}, grad.options()).transpose(0, 1);
    return {copy.copy_(grad)};
  }
};

struct StepFunction : torch::autograd::Function<StepFunction> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, Cell cell, const Tensor& input,
                               const Tensor& h, const Optional& c, at::TensorList params) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, h_n, c_n, gates, cells] =
        forward_op(cell).call(input.unsqueeze(0), std::nullopt, h.unsqueeze(0),
                              c ? Optional(c->unsqueeze(0)) : std::nullopt, params, "gates");
    // In place: were they views, users could not change them in place.
    output.squeeze_(0);
    // A first step's backward pass reads the output where no gates are saved; else any tensor of
    // its shape will do, and the output may be changed in place.
    const Tensor read = gates.numel() == 0 ? output : h;
    Kept::keep(ctx, cell, {Tensor(), input, h, c.value_or(Tensor()), read, gates, cells}, params);
    if (!c) return {output};
    c_n.squeeze_(0);
    return {output, c_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Kept k(ctx);
    const MaybeBelow below;
    const bool has_c = k.c.defined();
    const Tensor h_0 = k.h.unsqueeze(0);
    const auto [grad_h_n, grad_c_n] =
        grads_or_zeros(Tensor(), has_c ? grads[1] : Tensor(), k.h, k.c);
    BackwardResult r = gradients(k.cell, Tensor(),
                                 {.grad_output = or_zeros(grads[0], k.h).unsqueeze(0),
                                  .grad_h_n = grad_h_n.unsqueeze(0),
                                  .grad_c_n = has_c ? grad_c_n.unsqueeze(0) : Tensor(),
                                  .input = k.input.unsqueeze(0),
                                  .h_0 = h_0,
                                  .c_0 = has_c ? k.c.unsqueeze(0) : Tensor(),
                                  .output = k.output.unsqueeze(0),
                                  .gates = k.gates,
                                  .cells = k.cells,
                                  .needs_input_grad = k.needs_input_grad,
                                  .needs_h_0_grad = k.needs_h_grad,
                                  .needs_params_grad = k.needs_params_grad},
                                 k.params);
    if (k.needs_input_grad) r.grad_input = r.grad_input.squeeze(0);
    if (k.needs_h_grad) r.grad_h_0 = r.grad_h_0.squeeze(0);
    if (has_c) r.grad_c_0 = r.grad_c_0.squeeze(0);
    return k.returned(std::move(r));
  }
};

// Rows there and back: each is the other's derivative.
struct TakeRows : torch::autograd::Function<TakeRows> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& padded, const Tensor& source,
                        const Tensor& padding) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({source, padding});
    ctx->saved_data["first"] = padded.size(0);
    ctx->saved_data["second"] = padded.size(1);
    return gathered(padded, source);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list index = ctx->get_saved_variables();
    return {put_rows(grads[0], index[0], index[1], ctx->saved_data["first"].toInt(),
                     ctx->saved_data["second"].toInt()),
            Tensor(), Tensor()};
  }
};

struct PutRows : torch::autograd::Function<PutRows> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Tensor& source,
                        const Tensor& padding, int64_t first, int64_t second) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({source, padding});
    return scattered(rows, source, padding, first, second);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list index = ctx->get_saved_variables();
    return {take_rows(grads[0], index[0], index[1]), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor take_rows(const Tensor& padded, const Tensor& source, const Tensor& padding) {
  if (at::GradMode::is_enabled() && padded.requires_grad()) {
    return TakeRows::apply(padded, source, padding);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return gathered(padded, source);
}

Tensor put_rows(const Tensor& rows, const Tensor& source, const Tensor& padding, int64_t first,
                int64_t second) {
  if (at::GradMode::is_enabled() && rows.requires_grad()) {
    return PutRows::apply(rows, source, padding, first, second);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return scattered(rows, source, padding, first, second);
}

namespace {

LayerResult differentiable_layer(Cell cell, const Tensor& input, const Optional& batch_sizes,
                                 const Tensor& h_0, const Optional& c_0, at::TensorList params,
                                 std::string_view save) {
  Tensor no_c_n;
  variable_list r =
      LayerFunction::apply(Call{cell, save, batch_sizes, &no_c_n}, input, h_0, c_0, params);
  return {r[0], r[1], c_0 ? r[2] : no_c_n};
}

// Below autograd: the operator, without Python's reading of its arguments.
LayerResult plain_layer(Cell cell, const Tensor& input, const Optional& batch_sizes,
                        const Tensor& h_0, const Optional& c_0, at::TensorList params,
                        std::string_view /*save*/) {
  const at::AutoDispatchBelowADInplaceOrView below;
  auto [output, h_n, c_n, gates, cells] =
      forward_op(cell).call(input, batch_sizes, h_0, c_0, params, "none");
  return {output, h_n, c_n};
}

struct States {
  Optional h, c;
};

// Of zeros, for padded input [T, B, I] and one layer's parameters.
States zero_states(Cell cell, const Tensor& input, at::TensorList params, int64_t directions) {
  const CellInfo& info = cell_info(cell);
  const Tensor &w_ih = params.front(), &last = params.back();
  const bool projection = params.size() / directions % 2 == 1;
  TORCH_CHECK(w_ih.dim() == 2 && (!projection || last.dim() == 2),
              "seqkern: expected w_ih [G*H, I], and w_hr [P, H] with projection, got ",
              w_ih.sizes(), " and ", last.sizes());
  const auto zeros = [&](int64_t width) {
    const std::array<int64_t, 3> sizes{directions, input.size(1), width};
    if (!plain_cpu(input)) return at::zeros(sizes, input.options());
    // Past the dispatcher, as for the buffers of a small layer.
    const Tensor state = empty_cpu(sizes, input.options());
    std::memset(state.mutable_data_ptr(), 0, state.nbytes());
    return state;
  };
  const Tensor c = zeros(w_ih.size(0) / info.gates), h = projection ? zeros(last.size(0)) : c;
  return {h, info.has_cell_state ? Optional(c) : std::nullopt};
}

}  // namespace

LayerResult layers(Cell cell, const Tensor& input, const Optional& batch_sizes, const Optional& h_0,
                   const Optional& c_0, at::TensorList params, int64_t count, int64_t directions,
                   double dropout, std::string_view save) {
  const auto num_params = static_cast<int64_t>(params.size());
  TORCH_CHECK(count > 0 && directions > 0 && num_params > 0 && num_params % count == 0,
              "seqkern: expected as many parameters for each of ", count, " layers, got ",
              num_params);
  States all{h_0, c_0};
  if (h_0) {
    TORCH_CHECK(h_0->dim() > 0 && h_0->size(0) == count * directions,
                "seqkern: the states' first dimension must be ", count, " layers times ",
                directions, " directions, got h_0 ", h_0->sizes());
  } else {
    TORCH_CHECK(!batch_sizes && !c_0 && input.dim() == 3,
                "seqkern: only padded input [T, B, I] has states by default");
    all = zero_states(cell, input, params.slice(0, num_params / count), directions);
  }
  // One layer's of all layers' states; the default is the same for each.
  const auto of_layer = [&](const Tensor& state, int64_t layer) {
    return count == 1 || !h_0 ? state : state.narrow(0, layer * directions, directions);
  };
  const auto differentiable = [](const Tensor& tensor) { return tensor.requires_grad(); };
  const bool of_states = differentiable(*all.h) || (all.c && differentiable(*all.c));
  Tensor output = input;
  std::vector<Tensor> h_n, c_n;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0 && dropout > 0) output = at::dropout(output, dropout, true);
    const at::TensorList own = params.slice(i * num_params / count, num_params / count);
    const bool node =
        at::GradMode::is_enabled() && (differentiable(output) || of_states ||
                                       std::any_of(own.begin(), own.end(), differentiable));
    if (node && !output.is_contiguous()) {
      // What it keeps is its own: the input may change before backward, as it may with torch's.
      output = differentiable(output) ? ContiguousInput::apply(output) : contiguous(output);
    }
    const auto layer = node ? differentiable_layer : plain_layer;
    LayerResult r = layer(cell, output, batch_sizes, of_layer(*all.h, i),
                          all.c ? Optional(of_layer(*all.c, i)) : std::nullopt, own, save);
    if (count == 1) return r;
    output = std::move(r.output);
    h_n.push_back(std::move(r.h_n));
    c_n.push_back(std::move(r.c_n));
  }
  return {output, at::cat(h_n), all.c ? at::cat(c_n) : c_n[0]};
}

StepResult differentiable_step(Cell cell, const Tensor& input, const Optional& h, const Optional& c,
                               const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                               const Optional& b_hh) {
  const CellInfo& info = cell_info(cell);
  Optional from_h = h, from_c = c;
  if (!h) {
    TORCH_CHECK(!c, "seqkern::", info.name, "_step: expected both h and c or neither, got c alone");
    from_h = zero_state(cell, input, w_hh);
    if (info.has_cell_state) from_c = from_h;
  }
  c10::SmallVector<Tensor, 4> params{w_ih, w_hh};
  for (const Optional* bias : {&b_ih, &b_hh}) {
    if (*bias) params.push_back(**bias);
  }
  variable_list r = StepFunction::apply(cell, input, *from_h, from_c, at::TensorList(params));
  return {r[0], info.has_cell_state ? r[1] : Tensor()};
}

StepResult plain_step(Cell cell, const Tensor& input, const Optional& h, const Optional& c,
                      const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                      const Optional& b_hh) {
  const at::AutoDispatchBelowADInplaceOrView below;
  if (cell == Cell::Lstm) {
    static const auto lstm = of_cell<StepWithState>(Cell::Lstm, "_step");
    auto [new_h, new_c] = lstm.call(input, h, c, w_ih, w_hh, b_ih, b_hh);
    return {new_h, new_c};
  }
  static const c10::TypedOperatorHandle<Step> ops[] = {of_cell<Step>(Cell::Gru, "_step"),
                                                       of_cell<Step>(Cell::RnnTanh, "_step"),
                                                       of_cell<Step>(Cell::RnnRelu, "_step")};
  return {ops[static_cast<int>(cell) - 1].call(input, h, w_ih, w_hh, b_ih, b_hh), Tensor()};
}

bool wrapped(const Tensor& tensor) {
  constexpr c10::DispatchKeySet wrappers({c10::DispatchKey::FuncTorchGradWrapper,
                                          c10::DispatchKey::FuncTorchBatched,
                                          c10::DispatchKey::Batched});
  return tensor.key_set().has_any(wrappers);
}

void set_layer_grad(LayerGrad given) { layer_grad = given; }

}  // namespace seqkern::ops
