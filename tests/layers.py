"""Layers for tests: random arguments, and the same computation by kernel, reference and
torch.nn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from tolerances import check_all
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import seqkern
from seqkern import functional, reference

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
CELLS = tuple(GATES)


@dataclass
class Case:
    """One layer; batch_sizes makes it ragged, and then gives T and B."""

    cell: str
    T: int = 3
    B: int = 2
    I: int = 3
    H: int = 4
    P: int = 0
    D: int = 1
    bias: bool = True
    batch_sizes: tuple[int, ...] | None = None
    seed: int = 0
    scale: float = 1.0
    from_zero: bool = False  # h_0

    def sizes(self) -> Tensor | None:
        return None if self.batch_sizes is None else torch.tensor(self.batch_sizes)

    def arguments(self, dtype=torch.float64) -> dict[str, Tensor]:
        """input, h_0, c_0 (LSTM) and the parameters w_ih_0, w_hh_0, ... by name: the same numbers
        in every dtype."""
        g = torch.Generator().manual_seed(self.seed)
        batch = self.B if self.batch_sizes is None else self.batch_sizes[0]
        rows = (self.T, batch) if self.batch_sizes is None else (sum(self.batch_sizes),)

        def draw(*shape):
            return torch.randn(shape, generator=g, dtype=torch.float64)

        named = {
            "input": draw(*rows, self.I),
            "h_0": (0.0 if self.from_zero else 0.5) * draw(self.D, batch, self.P or self.H),
        }
        if self.cell == "lstm":
            named["c_0"] = 0.5 * draw(self.D, batch, self.H)
        for d in range(self.D):
            k = self.scale / self.H**0.5
            named[f"w_ih_{d}"] = k * draw(GATES[self.cell] * self.H, self.I)
            named[f"w_hh_{d}"] = k * draw(GATES[self.cell] * self.H, self.P or self.H)
            if self.bias:
                named[f"b_ih_{d}"] = k * draw(GATES[self.cell] * self.H)
                named[f"b_hh_{d}"] = k * draw(GATES[self.cell] * self.H)
            if self.P:
                named[f"w_hr_{d}"] = k * draw(self.P, self.H)

        return {name: t.to(dtype) for name, t in named.items()}

    def call(self, module, *tensors: Tensor, save: str = "gates"):
        """The layer by seqkern.functional or seqkern.reference, on tensors in the order of
        arguments()."""
        if self.cell == "lstm":
            input, h_0, c_0, *params = tensors
            return module.lstm(input, h_0, c_0, params, self.sizes(), save)
        input, h_0, *params = tensors
        if self.cell == "gru":
            return module.gru(input, h_0, params, self.sizes(), save)
        return module.rnn(input, h_0, params, self.sizes(), self.cell[4:], save)

    def call_torch(self, *tensors: Tensor):
        """The layer by torch's own function."""
        function = getattr(torch._VF, self.cell)
        input, h_0, *rest = tensors
        hx, params = ((h_0, rest[0]), rest[1:]) if self.cell == "lstm" else (h_0, rest)
        options = (self.bias, 1, 0.0, False, self.D == 2)
        if self.batch_sizes is None:
            return function(input, hx, list(params), *options, False)
        return function(input, self.sizes(), hx, list(params), *options)


def gradients(function, arguments: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Results and gradients of function(*arguments) by name, for one fixed random linear loss."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in arguments.items()}
    results = function(*leaves.values())
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(r) for r in results]
    torch.autograd.backward(results, weights)
    named = dict(zip(("output", "h_n", "c_n"), (r.detach() for r in results), strict=False))
    return named | {f"grad_{name}": t.grad for name, t in leaves.items()}


def check_levels(case: Case, dtype: torch.dtype) -> None:
    """Holds results and gradients of every SIMD level's kernels to the tolerance rule, with the reference in float64 and
    torch in dtype.

    Small layers are drawn several times and the draws stacked: on a handful of numbers torch may be exact by luck, and
    twice nothing is no bar.
    """
    levels = {f"level {v}": seqkern.use_cpu_capability(v) for v in seqkern.cpu_capabilities()}
    check_runs(case, dtype, levels)


def check_runs(
    case: Case, dtype: torch.dtype, contexts: dict, device: str = "cpu", **options
) -> dict[str, dict]:
    """The same for the kernels in each of the contexts, by name, on a device; returns their
    results. torch's, which are the bar, are those of the CPU. options are functional's."""
    batch = case.B if case.batch_sizes is None else case.batch_sizes[0]
    draws = max(1, 32 // max(1, batch * case.H))
    cases = [replace(case, seed=case.seed + draw) for draw in range(draws)]
    exact = _stacked([_exact(c, dtype) for c in cases])
    torchs = _stacked([_torchs(c, dtype) for c in cases])
    results = {}
    for name, context in contexts.items():
        with context:
            results[name] = _stacked([_kernel(c, dtype, device, **options) for c in cases])
        check_all(results[name], exact, torchs, f"{name}: ")
    return results


def _stacked(draws: list[dict]) -> dict:
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def _kernel(case: Case, dtype: torch.dtype, device: str, **options) -> dict:
    arguments = {name: t.to(device) for name, t in case.arguments(dtype).items()}
    results = gradients(lambda *t: case.call(functional, *t, **options), arguments)
    return {name: t.cpu() for name, t in results.items()}


def _exact(case: Case, dtype: torch.dtype) -> dict:
    # The numbers as they are in dtype, in float64.
    arguments = {name: t.double() for name, t in case.arguments(dtype).items()}
    return gradients(lambda *t: case.call(reference, *t), arguments)


def _torchs(case: Case, dtype: torch.dtype) -> dict:
    arguments = case.arguments(dtype)
    try:
        return gradients(case.call_torch, arguments)
    except RuntimeError:  # no kernel in this dtype here: oneDNN's bfloat16 needs AVX-512
        wide = {name: t.float() for name, t in arguments.items()}
        return {name: t.to(dtype) for name, t in gradients(case.call_torch, wide).items()}


class count_kernels(TorchDispatchMode):
    """How often each seqkern op ran: ``with count_kernels() as calls: ...;
    calls["lstm_forward"]``."""

    def __enter__(self):
        super().__enter__()
        self.calls = Counter()
        return self.calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "seqkern":
            self.calls[func._schema.name.removeprefix("seqkern::")] += 1
        return func(*args, **(kwargs or {}))
