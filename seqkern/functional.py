"""One layer on plain tensors: what the modules are made of.

T time steps, B batch, I input size, H hidden size, P projected size, K = P or H, D directions (1,
or 2 for both), R rows: ``sum(batch_sizes)``. Padded input is ``[T, B, I]``. Ragged input is
``[R, I]`` as in ``PackedSequence.data`` with its ``batch_sizes`` (int64, on the CPU, never
growing). Where those end in 0, input may have rows left over behind (their output is zero) and the states
sequences of no step (they stay as they are). ``params`` is one flat list in the order of ``torch.nn``'s parameters, per direction
``w_ih [G*H, I], w_hh [G*H, K][, b_ih [G*H], b_hh [G*H]][, w_hr [P, H]]``.

Between forward and backward a layer keeps its input, its output and, with save ``"gates"``, every
gate and cell state; with ``"states"`` the cell states alone (c of the LSTM), and the backward pass
computes the gates again, in one large product for many steps.

float32, float64, bfloat16 and float16 run the kernels on the CPU and, where the build has them
(``python -m seqkern doctor``), on CUDA devices; the two short ones with float32 arithmetic and a
float32 cell state (bfloat16 on CPUs with AVX-512 BF16: products of it with float32 sums, where H
and K are even). Everything else runs ``seqkern.reference``: other dtypes, a forward-mode
differentiation level (``torch.func.jvp``), ``torch.func`` transforms inside of a ``torch.compile``
graph, and devices without kernels, for which a warning is given once.

Under ``torch.autocast`` the operands (float64 apart) are cast to the autocast dtype A. On the CPU
results have the dtypes that torch's own functions give them, on other devices all are A:

=====================  =======================  =======================
CPU autocast           output, h_n              c_n
=====================  =======================  =======================
rnn, rnn_cell          A                        none
gru, gru_cell          promote(h_0, A)          none
lstm, padded (*)       A                        A
lstm, ragged (**)      promote(c_0, A)          promote(c_0, A)
lstm with projection   A                        promote(c_0, A)
lstm_cell              promote(c, A)            promote(c, A)
=====================  =======================  =======================

(*) Where torch runs its LSTM in oneDNN, as it does for float32 input, for bfloat16 input on CPUs with
AVX-512 and for float16 input on some without grad, no batch being empty; else as a ragged one. The
first layer's input decides for all. Where torch's LSTM raises, for want of a oneDNN that computes in A, all are A.
(**) Sequences that all end together are as a padded batch, but in a graph, which can't depend on that.

Arithmetic: Hochreiter & Schmidhuber 1997 with forget gates (Gers et al. 2000) for LSTM, projection
as in Sak et al. 2014; Cho et al. 2014 for GRU, in cuDNN's form with the reset gate after the
product; Elman 1990 for RNN.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from seqkern import _C, onnx, reference
from seqkern.autograd import Layer
from seqkern.lengths import known
from seqkern.ops import CUDA_KERNELS, FORWARD, KERNEL_DTYPES, STEP

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

# Bound once: looked up at every call of a cell.
_any_autocast = torch._C._is_any_autocast_enabled
_functorch_active = torch._C._are_functorch_transforms_active
_grad_enabled = torch.is_grad_enabled
_exporting = torch.compiler.is_exporting
_dynamo_compiling = torch.compiler.is_dynamo_compiling
_eager_layers, _eager_step = _C.layers, _C.step

# Asked once: Dynamo can't trace the question. A torch without oneDNN does not have it.
_ONEDNN = {
    name: getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False)()
    for name in ("bf16", "fp16")
}


def lstm(
    input: Tensor,  # [T, B, I] or [R, I]
    h_0: Tensor,  # [D, B, K]
    c_0: Tensor,  # [D, B, H]
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,  # [T]
    save: str = "gates",
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of LSTM, in one direction or both.

    Takes input ``[T, B, I]`` or ragged ``[R, I]`` with batch_sizes ``[T]``, h_0 ``[D, B, K]``, c_0 ``[D, B,
    H]`` and params with G = 4 gates i, f, g, o. Returns output ``[T, B, D*K]`` (``[R, D*K]`` for ragged input), h_n ``[D, B, K]`` and c_n ``[D,
    B, H]``, all contiguous. RuntimeError names the argument whose shape or dtype does not fit.

    Example::

        params = list(torch.nn.LSTM(3, 4).parameters())
        zeros = torch.zeros(1, 2, 4)
        output, h_n, c_n = lstm(torch.randn(5, 2, 3), zeros, zeros, params)
    """
    return layer("lstm", input, batch_sizes, h_0, c_0, params, save=save)


def gru(
    input: Tensor,  # [T, B, I] or [R, I]
    h_0: Tensor,  # [D, B, H]
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,  # [T]
    save: str = "gates",
) -> tuple[Tensor, Tensor]:
    """A layer of GRU (reset gate after the product), in one direction or both.

    Takes input ``[T, B, I]`` or ragged ``[R, I]`` with batch_sizes ``[T]``, h_0 ``[D, B, H]`` and params with
    G = 3 gates r, z, n. Returns output ``[T, B, D*H]`` (``[R, D*H]`` for ragged input) and h_n ``[D, B, H]``, both
    contiguous. RuntimeError names the argument whose shape or dtype does not fit.

    Example::

        params = list(torch.nn.GRU(3, 4).parameters())
        output, h_n = gru(torch.randn(5, 2, 3), torch.zeros(1, 2, 4), params)
        output.shape, h_n.shape  # [5, 2, 4], [1, 2, 4]
    """
    return layer("gru", input, batch_sizes, h_0, None, params, save=save)[:2]


def rnn(
    input: Tensor,  # [T, B, I] or [R, I]
    h_0: Tensor,  # [D, B, H]
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,  # [T]
    nonlinearity: str = "tanh",
    save: str = "gates",
) -> tuple[Tensor, Tensor]:
    """A layer of Elman RNN, in one direction or both; nonlinearity is ``"tanh"`` or ``"relu"``
    (else ValueError).

    Takes input ``[T, B, I]`` or ragged ``[R, I]`` with batch_sizes ``[T]``, h_0 ``[D, B, H]`` and params with
    G = 1. Returns output ``[T, B, D*H]`` (``[R, D*H]`` for ragged input) and h_n ``[D, B, H]``, both
    contiguous. RuntimeError names the argument whose shape or dtype does not fit.

    Example::

        params = list(torch.nn.RNN(3, 4).parameters())
        output, h_n = rnn(torch.randn(5, 2, 3), torch.zeros(1, 2, 4), params)
        output.shape, h_n.shape  # [5, 2, 4], [1, 2, 4]
    """
    cell = reference.rnn_name(nonlinearity)
    return layer(cell, input, batch_sizes, h_0, None, params, save=save)[:2]


def lstm_cell(
    input: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    w_ih: Tensor,  # [4*H, I]
    w_hh: Tensor,  # [4*H, H]
    b_ih: Tensor | None = None,  # [4*H]
    b_hh: Tensor | None = None,  # [4*H]
) -> tuple[Tensor, Tensor]:
    """One step of LSTM: the next (h, c), each ``[B, H]``.

    Takes input ``[B, I]``, h and c ``[B, H]``, w_ih ``[4*H, I]``, w_hh ``[4*H, H]``, b_ih and b_hh ``[4*H]``.
    RuntimeError names the argument whose shape or dtype does not fit.

    Example::

        cell = torch.nn.LSTMCell(3, 4)
        h, c = torch.zeros(2, 4), torch.zeros(2, 4)
        h, c = lstm_cell(torch.randn(2, 3), h, c, *cell.parameters())
        h.shape, c.shape  # [2, 4], [2, 4]
    """
    b_ih, b_hh = _both(b_ih, b_hh)
    if (new := plain_step("lstm", input, h, c, w_ih, w_hh, b_ih, b_hh)) is not None:
        return new
    params = _params(w_ih, w_hh, b_ih, b_hh)
    _, h, c = layer(
        "lstm", input.unsqueeze(0), None, h.unsqueeze(0), c.unsqueeze(0), params, one_step=True
    )
    return h.squeeze(0), c.squeeze(0)


def gru_cell(
    input: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    w_ih: Tensor,  # [3*H, I]
    w_hh: Tensor,  # [3*H, H]
    b_ih: Tensor | None = None,  # [3*H]
    b_hh: Tensor | None = None,  # [3*H]
) -> Tensor:
    """One step of GRU: the next h ``[B, H]``.

    Takes input ``[B, I]``, h ``[B, H]``, w_ih ``[3*H, I]``, w_hh ``[3*H, H]``, b_ih and b_hh ``[3*H]``.
    RuntimeError names the argument whose shape or dtype does not fit.

    Example::

        cell = torch.nn.GRUCell(3, 4)
        h = gru_cell(torch.randn(2, 3), torch.zeros(2, 4), *cell.parameters())
        h.shape  # [2, 4]
    """
    b_ih, b_hh = _both(b_ih, b_hh)
    if (new := plain_step("gru", input, h, w_ih, w_hh, b_ih, b_hh)) is not None:
        return new
    params = _params(w_ih, w_hh, b_ih, b_hh)
    return layer("gru", input.unsqueeze(0), None, h.unsqueeze(0), None, params)[1].squeeze(0)


def rnn_cell(
    input: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    w_ih: Tensor,  # [H, I]
    w_hh: Tensor,  # [H, H]
    b_ih: Tensor | None = None,  # [H]
    b_hh: Tensor | None = None,  # [H]
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of Elman RNN: the next h ``[B, H]``; nonlinearity is ``"tanh"`` or ``"relu"`` (else
    ValueError).

    Takes input ``[B, I]``, h ``[B, H]``, w_ih ``[H, I]``, w_hh ``[H, H]``, b_ih and b_hh ``[H]``.
    RuntimeError names the argument whose shape or dtype does not fit.

    Example::

        cell = torch.nn.RNNCell(3, 4)
        h = rnn_cell(torch.randn(2, 3), torch.zeros(2, 4), *cell.parameters())
        h.shape  # [2, 4]
    """
    cell = reference.rnn_name(nonlinearity)
    b_ih, b_hh = _both(b_ih, b_hh)
    if (new := plain_step(cell, input, h, w_ih, w_hh, b_ih, b_hh)) is not None:
        return new
    params = _params(w_ih, w_hh, b_ih, b_hh)
    return layer(cell, input.unsqueeze(0), None, h.unsqueeze(0), None, params)[1].squeeze(0)


def plain_step(cell: str, input: Tensor, *rest: Tensor | None):
    """A step by what knows no rules for what may lie around it: one node of autograd, or without grad
    the operator, which has no derivative. None where more than eager mode is at work.

    Arguments after the cell's name are those of the operator.
    """
    if input.is_cpu and _plain(input):
        if not _dynamo_compiling() and (new := _eager_step(cell, input, *rest)) is not None:
            return new
        if not _grad_enabled():
            return STEP[cell](input, *rest)
    return None


def _plain(input: Tensor) -> bool:
    """Whether nothing but eager mode, or Dynamo, is at work on a dtype that has kernels."""
    return (
        input.dtype in KERNEL_DTYPES
        and not _any_autocast()
        and not _functorch_active()
        and forward_ad._current_level < 0
        and not _exporting()
    )


def _both(b_ih: Tensor | None, b_hh: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """One bias alone gets zeros beside it."""
    if b_ih is None and b_hh is not None:
        return torch.zeros_like(b_hh), b_hh
    if b_hh is None and b_ih is not None:
        return b_ih, torch.zeros_like(b_ih)
    return b_ih, b_hh


def _params(*weights: Tensor | None) -> list[Tensor]:
    """A layer's params from a cell's."""
    return [w for w in weights if w is not None]


def plain_layers(
    cell: str,  # "lstm", "gru", "rnn_tanh" or "rnn_relu"
    input: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor | None,  # [L*D, B, K]
    c_0: Tensor | None,  # [L*D, B, H]
    params: Sequence[Tensor],  # of all layers
    num_layers: int,
    dropout: float,
    save: str,
    directions: int,
) -> tuple[Tensor, ...] | None:
    """What ``layers`` returns, by one call of the extension, which makes states of zeros where padded input
    comes without. None where more than eager mode is at work."""
    if not _dynamo_compiling() and _plain(input) and _has_kernels(input):
        return _eager_layers(
            cell, input, batch_sizes, h_0, c_0, params, num_layers, directions, dropout, save
        )
    return None


def layers(
    cell: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    params: Sequence[Tensor],
    num_layers: int,
    dropout: float,
    save: str,
) -> tuple[Tensor, ...]:
    """L = num_layers layers of any cell, each on what the one before returned, with dropout of that probability
    between them: output, h_n, c_n as those of one layer."""
    if num_layers == 1:
        return layer(cell, input, batch_sizes, h_0, c_0, params, save=save)
    directions, own = h_0.size(0) // num_layers, len(params) // num_layers
    h_0 = h_0.split(directions)
    c_0 = c_0.split(directions) if c_0 is not None else [None] * num_layers
    output, h_n, c_n = input, [], []
    for i in range(num_layers):
        if i > 0 and dropout > 0:
            output = torch.dropout(output, dropout, True)
        output, h, c = layer(
            cell,
            output,
            batch_sizes,
            h_0[i],
            c_0[i],
            params[i * own : (i + 1) * own],
            stack_dtype=input.dtype,
            save=save,
        )
        h_n.append(h)
        c_n.append(c)
    return output, torch.cat(h_n), torch.cat(c_n) if c_0[0] is not None else c_n[0]


def layer(
    cell: str,  # "lstm", "gru", "rnn_tanh" or "rnn_relu"
    input: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    params: Sequence[Tensor],
    one_step: bool = False,
    stack_dtype: torch.dtype | None = None,
    save: str = "gates",
) -> tuple[Tensor, ...]:
    """Any cell by name: output, h_n, c_n, the last empty for cells without c.

    Under autocast, one_step says that an LSTM of one step takes the dtypes of ``lstm_cell``, and
    stack_dtype is that of the input to the first of several layers (default: of this one).
    save is read where a gradient is wanted.
    """
    if _any_autocast() and torch.is_autocast_enabled(input.device.type):
        stack_dtype = stack_dtype or input.dtype
        return _autocast(cell, input, batch_sizes, h_0, c_0, params, one_step, stack_dtype, save)
    if _exporting() and onnx.exporting():
        return onnx.layer(cell, input, batch_sizes, h_0, c_0, params)
    if (
        forward_ad._current_level >= 0
        or input.dtype not in KERNEL_DTYPES
        or not _has_kernels(input)
        # In a transform Dynamo does not see that a gradient is wanted, and leaves the Function out.
        or (_functorch_active() and torch.compiler.is_dynamo_compiling())
    ):
        return _without_kernel(cell, input, batch_sizes, h_0, c_0, params)
    if _exporting():
        return _EXPORTED[cell](input, batch_sizes, h_0, c_0, params, save)
    return _with_kernel(cell, input, batch_sizes, h_0, c_0, params, save)


def _with_kernel(cell, input, batch_sizes, h_0, c_0, params, save) -> tuple[Tensor, ...]:
    # Dynamo and transforms know Functions and operators alone.
    if not _dynamo_compiling() and not _functorch_active():
        directions = h_0.size(0) if h_0.dim() else 1
        results = _eager_layers(
            cell, input, batch_sizes, h_0, c_0, params, 1, directions, 0.0, save
        )
        if results is not None:
            return results
    if _grad_enabled() and (
        input.requires_grad
        or h_0.requires_grad
        or (c_0 is not None and c_0.requires_grad)
        or any(p.requires_grad for p in params)
        # Under vmap a tensor that requires grad at an outer level does not say so.
        or _functorch_active()
    ):
        tensors = (input, h_0, c_0, *params)
        if _dynamo_compiling():
            tensors = _distinct(tensors)
        return Layer.apply(cell, save, batch_sizes, *tensors)[:3]
    return FORWARD[cell](input, batch_sizes, h_0, c_0, params, "none")[:3]


_library = torch.library.Library("seqkern", "FRAGMENT")


def _exported(cell: str):
    """What stands for a layer in an exported program: one operator made of others, as torch's own are, so
    that the program can be differentiated. (Of a Function an export keeps the forward pass alone.)"""

    def run(input, batch_sizes, h_0, c_0, params, save):
        # An export too asks what it is made of.
        call = _with_kernel if _exporting() else layer
        return call(cell, input, batch_sizes, h_0, c_0, params, save=save)

    _library.define(
        f"{cell}(Tensor input, Tensor? batch_sizes, Tensor h_0, Tensor? c_0, Tensor[] params, str save) "
        "-> (Tensor output, Tensor h_n, Tensor c_n)"
    )
    _library.impl(cell, run, "CompositeImplicitAutograd")
    return getattr(torch.ops.seqkern, cell).default


_EXPORTED = {cell: _exported(cell) for cell in FORWARD}


def _distinct(tensors) -> list[Tensor | None]:
    """Dynamo can't trace a Function that is given one tensor twice (h_0 for c_0, tied weights): a
    view for each repetition."""
    distinct = []
    for tensor in tensors:
        if tensor is not None and any(tensor is other for other in distinct):
            tensor = tensor.view_as(tensor)
        distinct.append(tensor)
    return distinct


def _autocast(
    cell, input, batch_sizes, h_0, c_0, params, one_step, stack_dtype, save
) -> tuple[Tensor, ...]:
    """Casts before the kernel sees the tensors, so that its gradients come back through the casts;
    then the table above."""
    device = input.device.type
    autocast_dtype = torch.get_autocast_dtype(device)

    def cast(tensor):
        if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(autocast_dtype)

    with torch.autocast(device, enabled=False):
        cast_params = [cast(p) for p in params]
        results = layer(
            cell, cast(input), batch_sizes, cast(h_0), cast(c_0), cast_params, save=save
        )
    output, h_n, c_n = results
    if device != "cpu" or cell.startswith("rnn") or output.dtype != autocast_dtype:
        return output, h_n, c_n
    state = h_0 if c_0 is None else c_0
    wide = torch.promote_types(state.dtype, autocast_dtype)
    if cell == "gru":
        return output.to(wide), h_n.to(wide), c_n
    if len(params) // h_0.size(0) in (3, 5):
        return output, h_n, c_n.to(wide)
    empty = 0 in input.shape
    if empty or one_step or not _all_equal(batch_sizes) or not _onednn_takes(stack_dtype):
        return output.to(wide), h_n.to(wide), c_n.to(wide)
    return output, h_n, c_n


def _all_equal(batch_sizes: Tensor | None) -> bool:
    """Whether all sequences are known to end together (or are empty): to torch that is a padded batch."""
    if batch_sizes is None:
        return True
    return known(batch_sizes) and bool(((batch_sizes == batch_sizes[0]) | (batch_sizes == 0)).all())


def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether torch would run a padded LSTM on such input in oneDNN, on this machine."""
    if dtype == torch.float16:
        return _ONEDNN["fp16"] and not torch.is_grad_enabled()
    return dtype != torch.bfloat16 or _ONEDNN["bf16"]


def _without_kernel(cell, input, batch_sizes, h_0, c_0, params) -> tuple[Tensor, ...]:
    if not _has_kernels(input):
        _warn_no_kernels(input.device.type)
    results = reference.layer(cell, input, batch_sizes, h_0, c_0, params)
    return results if len(results) == 3 else (*results, input.new_empty(0))


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.is_cpu or tensor.is_meta or (CUDA_KERNELS and tensor.is_cuda)


@functools.cache
def _warn_no_kernels(device: str) -> None:
    warnings.warn(
        f"this build of seqkern has no kernels for device '{device}': its layers run there as slow "
        "loops of torch operations",
        stacklevel=4,
    )
