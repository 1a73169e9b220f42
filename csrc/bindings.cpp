// seqkern._C: facts about the build and the machine. Tensors never pass here: importing the module
// registers the ops (csrc/ops), and Python reaches them through torch.ops.seqkern.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/capability.h"
#include "cpu/plan.h"
#include "cuda/plan.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Facts about this build of seqkern and this machine; importing it registers "
      "torch.ops.seqkern.*";

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
  m.def("cpu_capability", [] { return seqkern::cpu::name(seqkern::cpu::current()); });
  m.def(
      "set_cpu_capability", [](const std::string& name) { seqkern::cpu::set_current(name); },
      py::arg("name"));

  // The planner, for its tests: cpu/plan.h says what the sizes mean.
  m.def(
      "plan",
      [](int64_t B, int64_t H, int64_t K, int gates, int directions, bool ragged, int panel_units,
         int element_size, int64_t min_chunk_rows, int threads) {
        const seqkern::cpu::Problem problem{
            B, H, K, gates, directions, ragged, panel_units, element_size, min_chunk_rows};
        const seqkern::cpu::Plan plan = seqkern::cpu::make_plan(problem, threads);
        py::dict result;
        result["threads"] = plan.threads;
        result["split_rows"] = plan.split_rows;
        result["chunk_rows"] = plan.chunk_rows;
        return result;
      },
      py::kw_only(), py::arg("B"), py::arg("H"), py::arg("K"), py::arg("gates"),
      py::arg("directions"), py::arg("ragged"), py::arg("panel_units"), py::arg("element_size"),
      py::arg("min_chunk_rows"), py::arg("threads"));
  // For tests of the CUDA kernels: cuda/plan.h.
  m.def("force_cuda_plan", &seqkern::cuda::force_plan, py::arg("tier") = "",
        py::arg("chunk_rows") = 0);
  m.def("chunk_steps", &seqkern::cpu::chunk_steps, py::arg("offsets"), py::arg("chunk_rows"));
}
