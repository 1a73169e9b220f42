"""How far the gradient of a loss reaches back in time: dLoss/dh_t and dLoss/dc_t for every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from seqkern.modules import GRU, LSTM, RNN
from seqkern.ops import BACKWARD, FORWARD

__all__ = ["GradientFlow", "gradient_flow"]

_FORWARD, _BACKWARD = frozenset(FORWARD.values()), frozenset(BACKWARD.values())


@dataclass(frozen=True)
class GradientFlow:
    """What ``gradient_flow`` found, for L layers, D directions and T steps, in float64 on the CPU.

    A norm is that of all sequences and units of the step. The derivative is the whole one: through the
    step's output, through the steps that follow and through the layers above.
    """

    h: Tensor  # [L, D, T]: norms of dLoss/dh_t
    c: Tensor | None  # [L, D, T]: norms of dLoss/dc_t; None for cells without c

    @property
    def h_ratio(self) -> Tensor:
        """``[L, D, T-1]``: what one step back leaves of the norm, between steps t and t + 1.

        Step t over step t + 1; for the reverse direction, whose gradient runs the other way, step t + 1
        over step t. Below 1 the gradient vanishes on its way, above 1 it explodes.
        """
        return _ratio(self.h)

    @property
    def c_ratio(self) -> Tensor | None:
        """The same of c; None for cells without c."""
        return None if self.c is None else _ratio(self.c)

    def plot(self, axes=None):
        """Draws the norms over t, one line for each layer, direction and state, on a logarithmic scale.

        axes is a matplotlib Axes; by default one of a new figure. It is returned. Norms of 0 are left out.
        """
        from matplotlib import pyplot

        axes = pyplot.subplots()[1] if axes is None else axes
        states = [("h", self.h, "-")] + ([] if self.c is None else [("c", self.c, "--")])
        layers, directions, steps = self.h.shape
        for layer in range(layers):
            for direction in range(directions):
                for number, (state, norms, style) in enumerate(states):
                    label = f"{state}, layer {layer}" + ", reverse" * (direction == 1)
                    color = f"C{(layer * directions + direction) * len(states) + number}"
                    line = norms[layer, direction].where(norms[layer, direction] > 0, torch.nan)
                    axes.plot(range(steps), line.tolist(), style, label=label, color=color)
        axes.set(xlabel="step t", ylabel="norm of the gradient at step t", yscale="log")
        axes.legend()
        return axes


def gradient_flow(
    module: LSTM | GRU | RNN,
    input: Tensor | PackedSequence,
    target_fn: Callable[..., Tensor],
    hx: Tensor | tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> GradientFlow:
    """Norms of dLoss/dh_t (and dLoss/dc_t) for every step, layer and direction of a module.

    Loss is ``target_fn(output, hx_n)`` of what the module returns for input, hx and lengths: one number.
    The norms come from the kernels' own backward pass, which is asked for each step's gradient. Parameters
    keep their ``.grad``; dropout draws its mask as in any forward pass.

    TypeError for other modules than seqkern's (``seqkern.convert`` makes one of torch.nn's) and other input than
    tensors, and where target_fn returns none; ValueError where that is not one number that follows from what
    target_fn was given; RuntimeError where no kernel runs (another dtype or device). Else the module's own errors.

    Example::

        rnn = seqkern.RNN(8, 16)
        flow = gradient_flow(rnn, torch.randn(100, 4, 8), lambda output, h_n: output[-1].sum())
        flow.h[0, 0, 0] / flow.h[0, 0, -1]  # what arrives at the first step
    """
    if not isinstance(module, (LSTM, GRU, RNN)):
        raise TypeError(f"module must be a seqkern LSTM, GRU or RNN, got {type(module).__name__}")
    if not isinstance(input, (Tensor, PackedSequence)):
        raise TypeError(f"input must be a tensor or a PackedSequence, got {type(input).__name__}")
    recorder = _StepGradients()
    with torch.enable_grad(), recorder:
        if isinstance(input, PackedSequence):
            leaf = input.data.detach().requires_grad_()
            given = input._replace(data=leaf)
        else:
            leaf = given = input.detach().requires_grad_()
        results = module(given, hx, lengths)
        if len(recorder.outputs) != module.num_layers:
            raise RuntimeError(
                f"gradient_flow needs kernels, and there are none for {leaf.dtype} on {leaf.device}"
            )
        torch.autograd.grad(_one_number(target_fn(*results)), leaf, allow_unused=True)
    if isinstance(input, PackedSequence):
        steps = len(input.batch_sizes)
    else:
        steps = input.size(1 if module.batch_first and input.dim() == 3 else 0)
    directions = 2 if module.bidirectional else 1
    absent = torch.zeros(directions, steps, dtype=torch.float64)
    norms = [recorder.norms.get(k, (absent, absent)) for k in range(module.num_layers)]
    h, c = (torch.stack([n[:, :steps] for n in layer]) for layer in zip(*norms, strict=True))
    return GradientFlow(h, c if isinstance(module, LSTM) else None)


def _one_number(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"target_fn must return a tensor of one number, got {type(loss).__name__}")
    if loss.numel() != 1 or loss.is_complex():
        raise ValueError(
            f"target_fn must return one real number, got {loss.dtype} {list(loss.shape)}"
        )
    if not loss.requires_grad:
        raise ValueError("target_fn must return what follows from output or hx_n, got a constant")
    return loss


class _StepGradients(TorchDispatchMode):
    """Asks each backward kernel for its step gradients and keeps their norms, by layer."""

    def __init__(self):
        super().__init__()
        self.outputs: list[int] = []  # of the forward kernels, in the order of the layers
        self.norms: dict[int, tuple[Tensor, Tensor]] = {}  # of h and c, [D, T] each

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in _BACKWARD:
            results = func(*args, **(kwargs or {}))
            if func in _FORWARD:
                self.outputs.append(results[0].data_ptr())
            return results
        _, _, _, input, batch_sizes, _, _, _, output, *_ = args
        results = func(*args[:-1], True)
        rows = [input.size(1)] * input.size(0) if batch_sizes is None else batch_sizes.tolist()
        step_h, step_c = results[-2:]
        h = _norms(step_h, rows)
        c = _norms(step_c, rows) if step_c.dim() == 3 else torch.zeros_like(h)
        self.norms[self.outputs.index(output.data_ptr())] = h, c
        return results


def _norms(gradients: Tensor, rows: list[int]) -> Tensor:
    """[D, R, W] -> [D, T], for the number of rows of each step."""
    steps = gradients.double().cpu().split(rows, 1)
    return torch.stack([torch.linalg.vector_norm(step, dim=(1, 2)) for step in steps], 1)


def _ratio(norms: Tensor) -> Tensor:
    earlier, later = norms[..., :-1], norms[..., 1:]
    ratio = earlier / later
    if norms.size(1) == 2:
        ratio[:, 1] = later[:, 1] / earlier[:, 1]
    return ratio
