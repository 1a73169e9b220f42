// seqkern._C: facts about the build and the machine. Importing the module registers the ops
// (csrc/ops), and Python reaches them through torch.ops.seqkern; the nodes of autograd, which are
// no ops, pass here.
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/GradMode.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "cuda/plan.h"
#include "ops/autograd.h"

namespace py = pybind11;

namespace {

using seqkern::Cell;

// Tensors of Python for a node of plain eager mode.
class Arguments {
 public:
  // Whether it is a tensor of torch's own classes that no transform has wrapped.
  bool take(py::handle object) {
    if (!THPVariable_CheckExact(object.ptr())) return false;
    const at::Tensor& tensor = THPVariable_Unpack(object.ptr());
    if (seqkern::ops::wrapped(tensor)) return false;
    requires_grad_ = requires_grad_ || tensor.requires_grad();
    taken_.push_back(tensor);
    return true;
  }
  bool take_optional(py::handle object) {
    if (!object.is_none()) return take(object);
    taken_.emplace_back();
    return true;
  }
  // Whether a gradient is wanted.
  bool differentiable() const { return requires_grad_ && c10::GradMode::is_enabled(); }
  const at::Tensor& operator[](size_t i) const { return taken_[i]; }
  std::optional<at::Tensor> optional(size_t i) const {
    return taken_[i].defined() ? std::optional(taken_[i]) : std::nullopt;
  }
  at::TensorList from(size_t i) const { return at::TensorList(taken_).slice(i); }

 private:
  c10::SmallVector<at::Tensor, 14> taken_;
  bool requires_grad_ = false;
};

// Whether nobody looks at what Python calls.
bool plain_mode() {
  return !at::impl::torch_function_mode_enabled() && !torch::jit::tracer::isTracing();
}

Cell cell_named(std::string_view name) {
  for (int i = 0; i < seqkern::kNumCells; ++i) {
    if (name == seqkern::ops::cell_info(static_cast<Cell>(i)).name) return static_cast<Cell>(i);
  }
  throw py::value_error("there is no cell '" + std::string(name) + "'");
}

// None for an undefined tensor.
py::object wrap(at::Tensor tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(tensor)));
}

// (output, h_n, c_n); None where more is at work than eager mode.
py::object layers(std::string_view cell_name, py::handle input, py::handle batch_sizes,
                  py::handle h_0, py::handle c_0, const py::object& params, int64_t count,
                  int64_t directions, double dropout, std::string_view save) {
  Arguments args;
  if (!plain_mode() || !args.take(input) || !args.take_optional(batch_sizes) ||
      !args.take_optional(h_0) || !args.take_optional(c_0)) {
    return py::none();
  }
  for (py::handle param : params) {
    if (!args.take(param)) return py::none();
  }
  const Cell cell = cell_named(cell_name);
  seqkern::ops::LayerResult r;
  {
    py::gil_scoped_release no_gil;
    r = seqkern::ops::layers(cell, args[0], args.optional(1), args.optional(2), args.optional(3),
                             args.from(4), count, directions, dropout, save);
  }
  return py::make_tuple(wrap(std::move(r.output)), wrap(std::move(r.h_n)), wrap(std::move(r.c_n)));
}

// h or (h, c); None as above. Arguments as of the operator NAME_step.
py::object step(std::string_view cell_name, const py::args& given) {
  const Cell cell = cell_named(cell_name);
  const size_t states = seqkern::ops::cell_info(cell).has_cell_state ? 2 : 1;
  if (given.size() != states + 5) throw py::type_error("not the arguments of this cell's step");
  Arguments args;
  if (!plain_mode()) return py::none();
  for (size_t i = 0; i < given.size(); ++i) {
    const bool required = i == 0 || i == states + 1 || i == states + 2;
    if (required ? !args.take(given[i]) : !args.take_optional(given[i])) return py::none();
  }
  seqkern::ops::StepResult r;
  {
    py::gil_scoped_release no_gil;
    const size_t w = states + 1;
    const auto run =
        args.differentiable() ? seqkern::ops::differentiable_step : seqkern::ops::plain_step;
    r = run(cell, args[0], args.optional(1), states == 2 ? args.optional(2) : std::nullopt, args[w],
            args[w + 1], args.optional(w + 2), args.optional(w + 3));
  }
  if (states == 1) return wrap(std::move(r.h));
  return py::make_tuple(wrap(std::move(r.h)), wrap(std::move(r.c)));
}

// What work(tensor) returns for a tensor on the CPU; None as above.
template <typename F>
py::object on_cpu(py::handle tensor, F&& work) {
  Arguments args;
  if (!plain_mode() || !args.take(tensor) || !args[0].is_cpu()) return py::none();
  at::Tensor result;
  {
    py::gil_scoped_release no_gil;
    result = work(args[0]);
  }
  return wrap(std::move(result));
}

// Rows of a padded batch and back: ops/autograd.h.
py::object take_rows(py::handle padded, const at::Tensor& source, const at::Tensor& padding) {
  return on_cpu(padded, [&](const at::Tensor& from) {
    return seqkern::ops::take_rows(from, source, padding);
  });
}
py::object put_rows(py::handle rows, const at::Tensor& source, const at::Tensor& padding,
                    int64_t first, int64_t second) {
  return on_cpu(rows, [&](const at::Tensor& from) {
    return seqkern::ops::put_rows(from, source, padding, first, second);
  });
}

// seqkern/autograd.py's LayerGrad.apply; lives as long as the process.
py::handle python_layer_grad;

seqkern::ops::BackwardResult layer_grad(Cell cell, const at::Tensor& batch_sizes,
                                        const seqkern::ops::BackwardInputs& in,
                                        at::TensorList params) {
  py::gil_scoped_acquire gil;
  py::list args;
  args.append(seqkern::ops::cell_info(cell).name);
  args.append(in.needs_input_grad);
  args.append(in.needs_h_0_grad);
  args.append(in.needs_params_grad);
  for (const at::Tensor* tensor : {&batch_sizes, &in.output, &in.gates, &in.cells, &in.grad_output,
                                   &in.grad_h_n, &in.grad_c_n, &in.input, &in.h_0, &in.c_0}) {
    args.append(wrap(*tensor));
  }
  for (const at::Tensor& param : params) args.append(wrap(param));
  const py::tuple found = python_layer_grad(*args);
  const auto tensor = [&](size_t i) { return THPVariable_Unpack(py::object(found[i]).ptr()); };
  seqkern::ops::BackwardResult r{
      .grad_input = tensor(0), .grad_h_0 = tensor(1), .grad_c_0 = tensor(2)};
  for (size_t i = 3; i < found.size(); ++i) r.grad_params.push_back(tensor(i));
  return r;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Facts about this build of seqkern and this machine, and the autograd nodes of plain eager "
      "mode; importing it registers torch.ops.seqkern.*";

  // torch's translation of errors, as its own functions have it: without the C++ stack.
  m.def("layers", torch::wrap_pybind_function(layers));
  m.def("step", torch::wrap_pybind_function(step));
  m.def("take_rows", torch::wrap_pybind_function(take_rows));
  m.def("put_rows", torch::wrap_pybind_function(put_rows));
  m.def("set_layer_grad", [](py::object apply) {
    python_layer_grad = apply.release();
    seqkern::ops::set_layer_grad(layer_grad);
  });

  m.def("build_info", [] {
    py::dict info;
    info["torch_version"] = SEQKERN_TORCH_VERSION;
    info["compiler"] = SEQKERN_COMPILER;
#if defined(SEQKERN_WITH_CUDA) && !defined(SEQKERN_CUDA_HOST)
    info["cuda"] = true;
#else
    info["cuda"] = false;
#endif
    info["capabilities"] = seqkern::cpu::compiled();
    return info;
  });
  m.def("cpu_capabilities", &seqkern::cpu::supported);
  m.def("cpu_bfloat16", [] { return seqkern::cpu::bf16_kernels() != nullptr; });
  m.def("cpu_bfloat16_is_slow", &seqkern::cpu::bf16_is_slow);
  m.def("deny_slow_bfloat16", &seqkern::cpu::deny_slow_bf16, py::arg("deny"));
  m.def("cpu_capability", [] { return seqkern::cpu::name(seqkern::cpu::current()); });
  m.def(
      "set_cpu_capability", [](const std::string& name) { seqkern::cpu::set_current(name); },
      py::arg("name"));

  // The planner, for its tests: cpu/plan.h says what the sizes mean.
  m.def(
      "plan",
      [](int64_t B, int64_t H, int64_t K, int gates, int directions, int panel_units,
         int element_size, int64_t pass_flops, int64_t min_chunk_rows, int64_t cache_bytes,
         int threads) {
        const seqkern::cpu::Problem problem{B,
                                            H,
                                            K,
                                            gates,
                                            directions,
                                            panel_units,
                                            element_size,
                                            pass_flops,
                                            min_chunk_rows,
                                            cache_bytes};
        const seqkern::cpu::Plan plan = seqkern::cpu::make_plan(problem, threads);
        py::dict result;
        result["threads"] = plan.threads;
        result["teams"] = plan.teams;
        result["split_rows"] = plan.split_rows;
        result["alternate"] = plan.alternate;
        result["chunk_rows"] = plan.chunk_rows;
        return result;
      },
      py::kw_only(), py::arg("B"), py::arg("H"), py::arg("K"), py::arg("gates"),
      py::arg("directions"), py::arg("panel_units"), py::arg("element_size"), py::arg("pass_flops"),
      py::arg("min_chunk_rows"), py::arg("cache_bytes"), py::arg("threads"));
  m.def("ignore_pass_flops", &seqkern::cpu::ignore_pass_flops, py::arg("ignore"));
  m.def("crowded", &seqkern::cpu::crowded);
  m.def("want_turns", &seqkern::cpu::want_turns, py::arg("wanted"));
  m.def("slow_pairs_pay", &seqkern::cpu::slow_pairs_pay, py::arg("B"), py::arg("R"),
        py::arg("weights"));
  // For tests of the CUDA kernels: cuda/plan.h.
  m.def("force_cuda_plan", &seqkern::cuda::force_plan, py::arg("tier") = "",
        py::arg("chunk_rows") = 0);
  m.def("chunk_steps", &seqkern::cpu::chunk_steps, py::arg("offsets"), py::arg("chunk_rows"),
        py::arg("bound") = 0);
  m.def(
      "row_groups",
      [](const std::vector<int64_t>& offsets, int64_t begin, int64_t end, int64_t groups) {
        return seqkern::cpu::row_groups(offsets, begin, end, groups).bounds;
      },
      py::arg("offsets"), py::arg("begin"), py::arg("end"), py::arg("groups"));
  m.def("grouped_steps", &seqkern::cpu::grouped_steps, py::arg("offsets"), py::arg("groups"),
        py::arg("of_all"));
}
