"""The dispatcher's view of the kernels: overloads by cell name, fake kernels and vmap rules.

The schemas are in csrc/ops. T time steps, B batch, R rows (T*B, or the sum of batch_sizes), I, H
and K = P or H features, D directions, S values per unit saved by a cell for its backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from seqkern import _C  # importing it registers the ops

__all__ = [
    "BACKWARD",
    "CELLS",
    "CUDA_KERNELS",
    "FORWARD",
    "KERNEL_DTYPES",
    "LAYOUT",
    "PACK",
    "STEP",
    "STREAM_STEP",
]

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
FORWARD = {cell: getattr(torch.ops.seqkern, f"{cell}_forward").default for cell in CELLS}
BACKWARD = {cell: getattr(torch.ops.seqkern, f"{cell}_backward").default for cell in CELLS}
STEP = {cell: getattr(torch.ops.seqkern, f"{cell}_step").default for cell in CELLS}
PACK = {cell: getattr(torch.ops.seqkern, f"{cell}_pack").default for cell in CELLS}
STREAM_STEP = {cell: getattr(torch.ops.seqkern, f"{cell}_stream_step").default for cell in CELLS}
LAYOUT = torch.ops.seqkern.layout.default
KERNEL_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
CUDA_KERNELS = _C.build_info()["cuda"]

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_SAVED = {"lstm": 4, "gru": 4, "rnn_tanh": 0, "rnn_relu": 0}


def _saved_shapes(cell: str, input: Tensor, batch_sizes, h_0: Tensor, params) -> tuple:
    """Shapes of gates and cells where both are saved."""
    rows = input.size(0) * input.size(1) if batch_sizes is None else input.size(0)
    directions, hidden = h_0.size(0), params[1].size(0) // _GATES[cell]
    cells = (directions, rows, hidden) if cell == "lstm" else (0,)
    return (directions, rows, _SAVED[cell] * hidden), cells


def _cells_dtype(input: Tensor) -> torch.dtype:
    """c is kept in float32 between the steps of a bfloat16 or float16 layer."""
    return torch.promote_types(input.dtype, torch.float32)


# ---- Fake kernels: shapes and dtypes only ----


def _fake_forward(cell: str):
    def fake(input, batch_sizes, h_0, c_0, params, save):
        output = input.new_empty((*input.shape[:-1], h_0.size(0) * h_0.size(2)))
        c_n = input.new_empty((0,) if c_0 is None else c_0.shape)
        gates, cells = _saved_shapes(cell, input, batch_sizes, h_0, params)
        gates = gates if save == "gates" else (0,)
        cells = cells if save != "none" else (0,)
        return (
            output,
            input.new_empty(h_0.shape),
            c_n,
            input.new_empty(gates),
            input.new_empty(cells, dtype=_cells_dtype(input)),
        )

    return fake


def _fake_backward(cell: str):
    def fake(
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
        needs_input_grad,
        needs_h_0_grad,
        needs_params_grad,
        step_grads,
    ):
        empty = input.new_empty
        (_, rows, _), step_c = _saved_shapes(cell, input, batch_sizes, h_0, params)
        step_h = (h_0.size(0), rows, h_0.size(2))
        return (
            empty(input.shape if needs_input_grad else (0,)),
            empty(h_0.shape if needs_h_0_grad else (0,)),
            empty((0,) if c_0 is None else c_0.shape),
            [empty(p.shape) for p in params] if needs_params_grad else [],
            empty(step_h if step_grads else (0,)),
            empty(step_c if step_grads else (0,)),
        )

    return fake


def _fake_step(input, h, w_ih, w_hh, *biases):
    return input.new_empty(input.size(0), w_hh.size(1))


def _fake_step_with_state(input, h, c, *weights):
    return _fake_step(input, h, *weights), _fake_step(input, c, *weights)


# ---- vmap ----
# With shared weights and padded rows the vmapped dimension N becomes part of the batch: one kernel
# call on N*B rows. Where that is impossible (own weights or ragged rows in each slice, or a weight
# gradient wanted for each slice), one call a slice.


def _fold(tensor: Tensor | None, bdim: int | None, n: int, before: int) -> Tensor | None:
    """Moves the vmapped dimension (or n copies of the tensor) in front of dimension `before` and
    merges the two."""
    if tensor is None:
        return None
    if bdim is None:
        tensor = tensor.unsqueeze(before).expand(*tensor.shape[:before], n, *tensor.shape[before:])
    else:
        tensor = tensor.movedim(bdim, before)
    return tensor.flatten(before, before + 1)


def _unfold(tensor: Tensor, n: int, dim: int) -> Tensor:
    """Splits dimension dim = n * B into [n, B]; tensors of shape [0] (absent results) get n empty
    slices."""
    if tensor.dim() == 1:
        return tensor.unsqueeze(0).expand(n, 0)
    return tensor.unflatten(dim, (n, tensor.size(dim) // n))


def _fold_rows(tensor: Tensor, bdim: int | None, n: int, steps: int) -> Tensor:
    """[D, T*B, X] per slice -> [D, T*n*B, X]; shape [0] stays."""
    if tensor.dim() - (bdim is not None) == 1:
        return tensor if bdim is None else tensor.select(bdim, 0)
    if bdim is None:
        tensor, bdim = tensor.unsqueeze(0).expand(n, *tensor.shape), 0
    tensor = tensor.movedim(bdim, 0).unflatten(2, (steps, tensor.size(2) // steps))
    return tensor.permute(1, 2, 0, 3, 4).flatten(1, 3)


def _unfold_rows(tensor: Tensor, n: int, steps: int) -> Tensor:
    """[D, T*n*B, X] -> [n, D, T*B, X]; shape [0] -> [n, 0]."""
    if tensor.dim() == 1:
        return tensor.unsqueeze(0).expand(n, 0)
    tensor = tensor.unflatten(1, (steps, n, tensor.size(1) // (steps * n)))
    return tensor.permute(2, 0, 1, 3, 4).flatten(2, 3)


def _loop(op, n: int, in_dims, args):
    """The op once per slice, results stacked."""

    def take(value, dim, index):
        if isinstance(value, (list, tuple)):
            return [take(v, d, index) for v, d in zip(value, _dims(value, dim), strict=True)]
        return value if dim is None else value.select(dim, index)

    slices = [op(*(take(a, d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(n)]
    results = [
        torch.stack(parts)
        if isinstance(parts[0], Tensor)
        else [torch.stack(part) for part in zip(*parts, strict=True)]
        for parts in zip(*slices, strict=True)
    ]
    out_dims = tuple(0 if isinstance(r, Tensor) else [0] * len(r) for r in results)
    return tuple(results), out_dims


def _dims(params, in_dim) -> list[int | None]:
    """A list argument's dims, one per tensor: None stands for none at all."""
    return [None] * len(params) if in_dim is None else list(in_dim)


def _vmap_forward(cell: str):
    op = FORWARD[cell]

    def rule(info, in_dims, input, batch_sizes, h_0, c_0, params, save):
        n = info.batch_size
        shared = all(d is None for d in _dims(params, in_dims[4]))
        if batch_sizes is not None or not shared:
            args = (input, batch_sizes, h_0, c_0, params, save)
            return _loop(op, n, in_dims, args)
        input = _fold(input, in_dims[0], n, 1)
        h_0 = _fold(h_0, in_dims[2], n, 1)
        c_0 = _fold(c_0, in_dims[3], n, 1)
        output, h_n, c_n, gates, cells = op(input, None, h_0, c_0, params, save)
        steps = input.size(0)
        results = (
            _unfold(output, n, 1),
            _unfold(h_n, n, 1),
            _unfold(c_n, n, 1),
            _unfold_rows(gates, n, steps),
            _unfold_rows(cells, n, steps),
        )
        return results, (1, 1, 0 if c_n.dim() == 1 else 1, 0, 0)

    return rule


def _vmap_backward(cell: str):
    op = BACKWARD[cell]

    def rule(
        info,
        in_dims,
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
        needs_input_grad,
        needs_h_0_grad,
        needs_params_grad,
        step_grads,
    ):
        n = info.batch_size
        flags = (needs_input_grad, needs_h_0_grad, needs_params_grad, step_grads)
        shared = all(d is None for d in _dims(params, in_dims[7]))
        if batch_sizes is not None or not shared or needs_params_grad:
            tensors = (grad_output, grad_h_n, grad_c_n, input, batch_sizes, h_0, c_0)
            saved = (output, gates, cells)
            return _loop(op, n, in_dims, (*tensors, params, *saved, *flags))

        def fold(tensor, position):
            return _fold(tensor, in_dims[position], n, 1)

        steps = input.size(0 if in_dims[3] != 0 else 1)
        grad_input, grad_h_0, grad_c_0, grad_params, step_h, step_c = op(
            fold(grad_output, 0),
            fold(grad_h_n, 1),
            fold(grad_c_n, 2),
            fold(input, 3),
            None,
            fold(h_0, 5),
            fold(c_0, 6),
            params,
            fold(output, 8),
            _fold_rows(gates, in_dims[9], n, steps),
            _fold_rows(cells, in_dims[10], n, steps),
            *flags,
        )
        results = (
            _unfold(grad_input, n, 1),
            _unfold(grad_h_0, n, 1),
            _unfold(grad_c_0, n, 1),
            grad_params,
            _unfold_rows(step_h, n, steps),
            _unfold_rows(step_c, n, steps),
        )
        empty = [0 if r.dim() == 2 else 1 for r in results[:3]]
        return results, (*empty, [None] * len(grad_params), 0, 0)

    return rule


def _grads_batched(op):
    """``torch.autograd.grad(..., is_grads_batched=True)`` still runs on an older vmap, whose
    tensors have a dispatch key of their own and whose fallback takes no lists: once per slice.
    """

    def rule(*args):
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        leaves, spec = tree_flatten(args)
        batched = [isinstance(x, Tensor) and _has_older_batch(x) for x in leaves]
        # The size (here 1) is only for tensors without the dimension.
        leaves = [
            torch._remove_batch_dim(x, level, 1, 0) if b else x
            for x, b in zip(leaves, batched, strict=True)
        ]
        n = next(x.size(0) for x, b in zip(leaves, batched, strict=True) if b)
        in_dims = tree_unflatten([0 if b else None for b in batched], spec)
        results, _ = _loop(op, n, in_dims, tree_unflatten(leaves, spec))
        return tree_map(lambda x: torch._add_batch_dim(x, 0, level), results)

    return rule


def _has_older_batch(tensor: Tensor) -> bool:
    return torch._C._dispatch_keys(tensor).has(_OLDER_BATCH)


_OLDER_BATCH = torch._C._dispatch_key_parse("Batched")
_library = torch.library.Library("seqkern", "IMPL")
for _cell in CELLS:
    _library.impl(f"{_cell}_backward", _grads_batched(BACKWARD[_cell]), "Batched")
    torch.library.register_fake(f"seqkern::{_cell}_forward", _fake_forward(_cell))
    torch.library.register_fake(f"seqkern::{_cell}_backward", _fake_backward(_cell))
    torch.library.register_fake(
        f"seqkern::{_cell}_step", _fake_step_with_state if _cell == "lstm" else _fake_step
    )
    torch.library.register_fake(f"seqkern::{_cell}_stream_step", lambda *args: None)
    torch.library.register_vmap(f"seqkern::{_cell}_forward", _vmap_forward(_cell))
    torch.library.register_vmap(f"seqkern::{_cell}_backward", _vmap_backward(_cell))
