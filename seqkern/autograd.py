"""The layer as a differentiable function: kernels forward and backward, the reference for what lies
beyond.

In plain eager mode a layer, or one step of a cell, is a node in C++ (csrc/ops/autograd.h), without
the 30 us that a Python Function takes of a step of training. ``Layer`` is the same for whatever else
is at work. It runs the forward kernel and saves the gates; its backward pass is ``LayerGrad``, which
runs the backward kernel and whose own derivative is taken through ``seqkern.reference``, for the
node in C++ too. So double backward, ``torch.func`` and ``torch.compile`` all see two plain
Functions. There is no ``jvp``: Dynamo refuses Functions that have one, and ``seqkern.functional``
takes the reference while a forward-mode level is active.
"""

from __future__ import annotations

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

from seqkern import _C, reference
from seqkern.ops import BACKWARD, FORWARD

__all__ = ["Layer"]


class _Function(Function):
    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args):
        """torch's apply without ``inspect.signature(cls.forward).bind(*args)`` at every call.

        That binding doubled the time of a training step of a cell; there are no defaults to bind.
        """
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))


class Layer(_Function):
    """``Layer.apply(cell, save, batch_sizes, input, h_0, c_0, *params)`` -> output, h_n, c_n,
    gates, cells.

    gates and cells are what the backward kernel needs; they carry no gradient. With save
    ``"states"`` gates are empty, and the backward kernel makes them again. c_0 is None for cells
    without c, and c_n is then empty.
    """

    @staticmethod
    def forward(cell, save, batch_sizes, input, h_0, c_0, *params):
        return FORWARD[cell](input, batch_sizes, h_0, c_0, params, save)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        cell, _, batch_sizes, input, h_0, c_0, *params = inputs
        output, _, c_n, gates, cells = outputs
        ctx.cell = cell
        # Else torch fills a gradient with zeros for gates too, at every backward.
        ctx.set_materialize_grads(False)
        if c_0 is None:
            ctx.mark_non_differentiable(c_n, gates, cells)
        else:
            ctx.mark_non_differentiable(gates, cells)
        ctx.save_for_backward(batch_sizes, input, h_0, c_0, output, gates, cells, *params)

    @staticmethod
    def backward(ctx, grad_output, grad_h_n, grad_c_n, _grad_gates, _grad_cells):
        batch_sizes, input, h_0, c_0, output, gates, cells, *params = ctx.saved_tensors
        needs_input, needs_h_0, _, *of_params = ctx.needs_input_grad[3:]
        needs_params = any(of_params)
        grad_input, grad_h_0, grad_c_0, *grad_params = _gradients(
            ctx.cell,
            needs_input,
            needs_h_0,
            needs_params,
            batch_sizes,
            output,
            gates,
            cells,
            _or_zeros(grad_output, output),
            _or_zeros(grad_h_n, h_0),
            None if c_0 is None else _or_zeros(grad_c_n, c_0),
            input,
            h_0,
            c_0,
            *params,
        )
        return (
            None,
            None,
            None,
            grad_input if needs_input else None,
            grad_h_0 if needs_h_0 else None,
            None if c_0 is None else grad_c_0,
            *(grad_params if needs_params else [None] * len(params)),
        )


def _or_zeros(grad, like):
    return torch.zeros_like(like) if grad is None else grad


def _gradients(*args):
    """``LayerGrad`` of the same arguments."""
    # Without grad mode nobody differentiates what follows. (Dynamo too comes this way: it can't call
    # a Function with *params where no gradient is wanted.)
    return (LayerGrad.apply if torch.is_grad_enabled() else LayerGrad.forward)(*args)


class LayerGrad(_Function):
    """The backward kernel: grad_input, grad_h_0, grad_c_0 and the parameters' gradients (empty
    where not asked for)."""

    @staticmethod
    def forward(
        cell,
        needs_input,
        needs_h_0,
        needs_params,
        batch_sizes,
        output,
        gates,
        cells,
        grad_output,
        grad_h_n,
        grad_c_n,
        input,
        h_0,
        c_0,
        *params,
    ):
        grad_input, grad_h_0, grad_c_0, grad_params, _, _ = BACKWARD[cell](
            grad_output,
            grad_h_n,
            grad_c_n,
            input,
            batch_sizes,
            h_0,
            c_0,
            params,
            output,
            gates,
            cells,
            needs_input,
            needs_h_0,
            needs_params,
            False,
        )
        return grad_input, grad_h_0, grad_c_0, *grad_params

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        cell, *needs, batch_sizes, _, _, _ = inputs[:8]
        operands = inputs[8:]
        ctx.cell, (ctx.needs_input, ctx.needs_h_0, ctx.needs_params) = cell, needs
        ctx.save_for_backward(batch_sizes, *operands)

    @staticmethod
    def backward(ctx, *cotangents):
        """The vjp of the first-order gradients, both taken through the reference."""
        batch_sizes, *operands = ctx.saved_tensors

        def first_order(*given):
            grad_output, grad_h_n, grad_c_n, *primals = _fill(operands, given)

            def layer(*given):
                input, h_0, c_0, *params = _fill(primals, given)
                return reference.layer(ctx.cell, input, batch_sizes, h_0, c_0, params)

            _, pull_back = torch.func.vjp(layer, *_present(primals))
            return wanted(_fill(primals, pull_back(_present((grad_output, grad_h_n, grad_c_n)))))

        def wanted(gradients):
            """Of grad_input, grad_h_0, grad_c_0, *grad_params: those that the forward pass
            returned."""
            grad_input, grad_h_0, grad_c_0, *grad_params = gradients
            grads = [grad_input] if ctx.needs_input else []
            grads += [grad_h_0] if ctx.needs_h_0 else []
            grads += [] if operands[5] is None else [grad_c_0]
            return (*grads, *grad_params) if ctx.needs_params else tuple(grads)

        with torch.autocast(operands[0].device.type, enabled=False):
            _, pull_back = torch.func.vjp(first_order, *_present(operands))
            second_order = pull_back(wanted(cotangents))
        return (None,) * 8 + tuple(_fill(operands, second_order))


def _present(tensors):
    return tuple(t for t in tensors if t is not None)


def _fill(template, given):
    """The given tensors at the places where the template has one, None at the others."""
    given = iter(given)
    return [None if t is None else next(given) for t in template]


_C.set_layer_grad(LayerGrad.apply)
