// seqkern._C: facts about the build and the machine. Tensors never pass here: importing the module registers the ops
// (csrc/ops), and Python reaches them through torch.ops.seqkern.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/capability.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about this build of seqkern and this machine; importing it registers torch.ops.seqkern.*";

  seqkern::cpu::set_current_from_environment();

  m.def("build_info", [] {
    py::dict info;
    info["torch_version"] = SEQKERN_TORCH_VERSION;
    info["compiler"] = SEQKERN_COMPILER;
    info["cuda"] = false;
    info["capabilities"] = seqkern::cpu::compiled();
    return info;
  });
  m.def("cpu_capabilities", &seqkern::cpu::supported);
  m.def("cpu_capability", [] { return seqkern::cpu::name(seqkern::cpu::current()); });
  m.def("set_cpu_capability", [](const std::string& name) { seqkern::cpu::set_current(name); }, py::arg("name"));
}
