"""Checks an installation: what is there, what is in use, and whether the kernels compute.

Works where the extension doesn't, so nothing here imports torch or seqkern's modules before the
check that needs them.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from pathlib import Path

import seqkern
from seqkern import _build

# A health check: a kernel that computes is within some 1e-7 of torch.nn in float64, a broken one
# (wrong gate, wrong row, stale build) is off by 1e-2 or more. The tests bound accuracy itself.
LARGEST_ERROR = 1e-5

# Steps, batch rows, input and hidden features: no multiple of a vector width, two directions.
STEPS, ROWS, INPUT, HIDDEN = 12, 5, 19, 33


def run() -> int:
    """Print the report; 0 if all is well, else 1."""
    report = Report()
    check_environment(report)
    try:
        _build.load()
    except _build.LoadError as error:
        report.problem(error.problem, error.remedy)
    else:
        check_build(report)
        check_threads(report)
        check_cells(report)
    return report.close()


class Report:
    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def line(self, label: str, text: object) -> None:
        print(f"{label:<18} {text}")

    def problem(self, what: str, remedy: str) -> None:
        self.problems.append((what, remedy))

    def close(self) -> int:
        print()
        for what, remedy in self.problems:
            print(f"problem: {what}")
            print(f"remedy:  {remedy}")
        if not self.problems:
            print("all well")
        return 1 if self.problems else 0


def check_environment(report: Report) -> None:
    report.line("seqkern", f"{seqkern.__version__} ({Path(seqkern.__file__).parent})")
    report.line("Python", f"{platform.python_version()} ({sys.executable})")
    report.line("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")


def check_build(report: Report) -> None:
    import torch

    from seqkern import _C

    info = _C.build_info()
    report.line("torch", f"{torch.__version__} running, {info['torch_version']} built against")
    report.line("compiler", info["compiler"])
    report.line("CPU capability", f"{_C.cpu_capability()} in use")
    found, compiled = _C.cpu_capabilities(), info["capabilities"]
    report.line("", f"found {', '.join(found)}; compiled {', '.join(compiled)}")
    computes = "converted to float32"
    if _C.cpu_bfloat16():
        few = _C.cpu_bfloat16_is_slow()
        computes = (
            f"few rows multiplied in pairs, else {computes}" if few else "multiplied in pairs"
        )
    report.line("bfloat16", f"{computes} on the CPU")
    forced = os.environ.get(_build.CAPABILITY_VARIABLE)
    if forced:
        report.line("", f"forced by {_build.CAPABILITY_VARIABLE}={forced}")
    if not info["cuda"]:
        report.line("CUDA kernels", "not compiled")
    else:
        usable = torch.cuda.is_available()
        report.line("CUDA kernels", f"compiled, {'usable' if usable else 'no usable GPU here'}")


def check_threads(report: Report) -> None:
    import torch

    limit = os.environ.get("OMP_NUM_THREADS")
    source = f"OMP_NUM_THREADS={limit}" if limit else "OMP_NUM_THREADS is not set"
    report.line("threads", f"{torch.get_num_threads()} ({source})")
    runtimes = openmp_runtimes()
    if len(runtimes) > 1:
        report.problem(
            f"{len(runtimes)} OpenMP runtimes are in one process ({', '.join(runtimes)}), so its "
            "threads outnumber its cores",
            _build.REBUILD,
        )


def openmp_runtimes() -> list[str]:
    """Files of the OpenMP runtimes in this process; empty where the system has no /proc."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()}
    runtime = re.compile(r"lib(gomp|omp|iomp5)\b[^/]*\.so[^/]*$")
    return sorted(file for file in files if runtime.search(file))


def check_cells(report: Report) -> None:
    """Each module at each level, forward and backward, against torch.nn in float64."""
    start = time.perf_counter()
    for label, name, options in CELLS:
        case = Case(name, options)
        errors = []
        for level in seqkern.cpu_capabilities():
            with seqkern.use_cpu_capability(level):
                error = case.error()
            errors.append(f"{level} {error:.1e}")
            if not error <= LARGEST_ERROR:  # NaN is no pass
                report.problem(
                    f"seqkern.{name} is off by {error:.1e} from torch.nn.{name} at level {level}",
                    f"{_build.REBUILD}; if it stays, set {_build.CAPABILITY_VARIABLE} to another "
                    "level and report it",
                )
        report.line(label, ", ".join(errors))
    seconds = time.perf_counter() - start
    report.line("", f"relative error of outputs and gradients against torch.nn, {seconds:.1f} s")


CELLS = [
    ("LSTM", "LSTM", {"bidirectional": True}),
    ("GRU", "GRU", {"bidirectional": True}),
    ("RNN tanh", "RNN", {"bidirectional": True, "nonlinearity": "tanh"}),
    ("RNN relu", "RNN", {"bidirectional": True, "nonlinearity": "relu"}),
    ("LSTMCell", "LSTMCell", {}),
    ("GRUCell", "GRUCell", {}),
    ("RNNCell tanh", "RNNCell", {"nonlinearity": "tanh"}),
    ("RNNCell relu", "RNNCell", {"nonlinearity": "relu"}),
]


class Case:
    """One module with torch.nn's outputs and gradients for it, in float64."""

    def __init__(self, name: str, options: dict) -> None:
        import torch

        shape = (ROWS, INPUT) if name.endswith("Cell") else (STEPS, ROWS, INPUT)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = getattr(torch.nn, name)(INPUT, HIDDEN, **options).double()
            self.input = torch.randn(shape, dtype=torch.float64)
            self.module = getattr(seqkern, name)(INPUT, HIDDEN, **options)
        self.module.load_state_dict(expected.state_dict())
        # On one thread: beside other work, torch.nn's many small parallel regions take seconds.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self.expected = outputs_and_gradients(expected, self.input)
        finally:
            torch.set_num_threads(threads)

    def error(self) -> float:
        """The largest error, relative to the norm, among the module's outputs and gradients."""
        results = outputs_and_gradients(self.module, self.input.float())
        return max(
            float((result.double() - expected).norm() / expected.norm())
            for result, expected in zip(results, self.expected, strict=True)
        )


def outputs_and_gradients(module, input) -> list:
    import torch

    input = input.clone().requires_grad_()
    outputs = flatten(module(input))
    loss = sum(output.sin().sum() for output in outputs)
    gradients = torch.autograd.grad(loss, [input, *module.parameters()])
    return [output.detach() for output in outputs] + list(gradients)


def flatten(nested) -> list:
    if isinstance(nested, tuple):
        return [tensor for part in nested for tensor in flatten(part)]
    return [nested]
