"""The layers as readable loops in torch operations: what the kernels are tested against.

Same names and signatures as ``seqkern.functional``, where ``save`` means nothing: autograd keeps
what it needs. Differentiable any number of times, forward and reverse, under any ``torch.func``
transform, on any device and dtype, and slow. ``functional`` takes these loops where it has no
kernel. Float16 and bfloat16 are computed in float32 and rounded at the end.

Parameters come as one flat list: per direction ``w_ih, w_hh[, b_ih, b_hh][, w_hr]``. Gate order as
in ``torch.nn``: i, f, g, o for LSTM; r, z, n for GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

_ROUNDED = (torch.bfloat16, torch.float16)


# One step of each cell: x is w_ih @ input + b_ih, [n, G*H]; state is (h, c) or (h,); the new state
# comes back.


def _lstm_step(x: Tensor, state: tuple[Tensor, ...], w_hh, b_hh, w_hr) -> tuple[Tensor, ...]:
    h, c = state
    i, f, g, o = (x + linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else linear(h, w_hr)), c


def _gru_step(x: Tensor, state: tuple[Tensor, ...], w_hh, b_hh, _w_hr) -> tuple[Tensor, ...]:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, -1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * h,)


def _rnn_step(nonlinearity: Callable[[Tensor], Tensor]):
    def step(x: Tensor, state: tuple[Tensor, ...], w_hh, b_hh, _w_hr) -> tuple[Tensor, ...]:
        return (nonlinearity(x + linear(state[0], w_hh, b_hh)),)

    return step


_STEPS = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _rnn_step(torch.tanh),
    "rnn_relu": _rnn_step(torch.relu),
}


def _named(params: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """w_ih, w_hh, b_ih, b_hh, w_hr of one direction, None for what is absent."""
    if len(params) not in (2, 3, 4, 5):
        raise ValueError(f"params must hold 2 to 5 tensors per direction, got {len(params)}")
    biases = params[2:4] if len(params) > 3 else (None, None)
    return (*params[:2], *biases, params[-1] if len(params) in (3, 5) else None)


def _direction(step, inputs, state, params, reverse: bool):
    """One direction: inputs are the steps' rows [n_t, I], n_t never growing with t; a row's state
    stays when it ends."""
    w_ih, w_hh, b_ih, b_hh, w_hr = _named(params)
    outputs = []
    for x in reversed(inputs) if reverse else inputs:
        n = x.size(0)
        new = step(linear(x, w_ih, b_ih), tuple(s[:n] for s in state), w_hh, b_hh, w_hr)
        outputs.append(new[0])
        state = tuple(torch.cat([s_new, s[n:]]) for s_new, s in zip(new, state, strict=True))
    return outputs[::-1] if reverse else outputs, state


def layer(
    cell: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    params: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Any cell by name; returns (output, h_n, c_n), or (output, h_n) for cells without c."""
    dtype = input.dtype
    states = (h_0,) if c_0 is None else (h_0, c_0)
    if dtype in _ROUNDED:
        input, *states = (t.float() for t in (input, *states))
        params = [p.float() for p in params]
    padded = batch_sizes is None
    if padded:
        inputs = input.unbind(0)
    else:
        sizes = [n for n in batch_sizes.tolist() if n > 0]
        left_over = input.size(0) - sum(sizes)
        inputs = input.split([*sizes, left_over])[:-1]

    directions = h_0.size(0)
    per_direction = len(params) // directions
    outputs, finals = [], []
    for d in range(directions):
        own = params[d * per_direction : (d + 1) * per_direction]
        rows, final = _direction(_STEPS[cell], inputs, tuple(s[d] for s in states), own, d == 1)
        if padded:
            outputs.append(torch.stack(rows))
        else:
            outputs.append(torch.cat([*rows, input.new_zeros(left_over, h_0.size(2))]))
        finals.append(final)
    results = (torch.cat(outputs, -1), *(torch.stack(s) for s in zip(*finals, strict=True)))
    return tuple(r.to(dtype) for r in results)


def lstm(
    input: Tensor,  # [T, B, I] or [R, I]
    h_0: Tensor,  # [D, B, P or H]
    c_0: Tensor,  # [D, B, H]
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,  # [T]
    save: str = "gates",
) -> tuple[Tensor, Tensor, Tensor]:
    """``seqkern.functional.lstm`` in torch operations: the same arguments, shapes and results.

    Example::

        params = list(torch.nn.LSTM(3, 4).parameters())
        zeros = torch.zeros(1, 2, 4)
        output, h_n, c_n = reference.lstm(torch.randn(5, 2, 3), zeros, zeros, params)
        output.shape, c_n.shape  # [5, 2, 4], [1, 2, 4]
    """
    return layer("lstm", input, batch_sizes, h_0, c_0, params)


def gru(
    input: Tensor,  # [T, B, I] or [R, I]
    h_0: Tensor,  # [D, B, H]
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,  # [T]
    save: str = "gates",
) -> tuple[Tensor, Tensor]:
    """``seqkern.functional.gru`` in torch operations: the same arguments, shapes and results.

    Example::

        params = list(torch.nn.GRU(3, 4).parameters())
        output, h_n = reference.gru(torch.randn(5, 2, 3), torch.zeros(1, 2, 4), params)
        output.shape, h_n.shape  # [5, 2, 4], [1, 2, 4]
    """
    return layer("gru", input, batch_sizes, h_0, None, params)


def rnn(
    input: Tensor,  # [T, B, I] or [R, I]
    h_0: Tensor,  # [D, B, H]
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,  # [T]
    nonlinearity: str = "tanh",
    save: str = "gates",
) -> tuple[Tensor, Tensor]:
    """``seqkern.functional.rnn`` in torch operations: the same arguments, shapes and results.

    Example::

        params = list(torch.nn.RNN(3, 4).parameters())
        output, h_n = reference.rnn(torch.randn(5, 2, 3), torch.zeros(1, 2, 4), params)
        output.shape, h_n.shape  # [5, 2, 4], [1, 2, 4]
    """
    return layer(rnn_name(nonlinearity), input, batch_sizes, h_0, None, params)


def rnn_name(nonlinearity: str) -> str:
    """The cell's name for a nonlinearity; ValueError for one that is not there."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return f"rnn_{nonlinearity}"


def _one_step(cell: str, input: Tensor, h: Tensor, c: Tensor | None, params) -> tuple[Tensor, ...]:
    present = [p for p in params if p is not None]
    c_0 = None if c is None else c.unsqueeze(0)
    _, *states = layer(cell, input.unsqueeze(0), None, h.unsqueeze(0), c_0, present)
    return tuple(s.squeeze(0) for s in states)


def lstm_cell(
    input: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    w_ih: Tensor,  # [4*H, I]
    w_hh: Tensor,  # [4*H, H]
    b_ih: Tensor | None = None,  # [4*H]
    b_hh: Tensor | None = None,  # [4*H]
) -> tuple[Tensor, Tensor]:
    """``seqkern.functional.lstm_cell`` in torch operations: the same arguments, shapes and results.

    Example::

        cell = torch.nn.LSTMCell(3, 4)
        h, c = torch.zeros(2, 4), torch.zeros(2, 4)
        h, c = reference.lstm_cell(torch.randn(2, 3), h, c, *cell.parameters())
        h.shape, c.shape  # [2, 4], [2, 4]
    """
    return _one_step("lstm", input, h, c, (w_ih, w_hh, b_ih, b_hh))


def gru_cell(
    input: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    w_ih: Tensor,  # [3*H, I]
    w_hh: Tensor,  # [3*H, H]
    b_ih: Tensor | None = None,  # [3*H]
    b_hh: Tensor | None = None,  # [3*H]
) -> Tensor:
    """``seqkern.functional.gru_cell`` in torch operations: the same arguments, shapes and results.

    Example::

        cell = torch.nn.GRUCell(3, 4)
        h = reference.gru_cell(torch.randn(2, 3), torch.zeros(2, 4), *cell.parameters())
        h.shape  # [2, 4]
    """
    return _one_step("gru", input, h, None, (w_ih, w_hh, b_ih, b_hh))[0]


def rnn_cell(
    input: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    w_ih: Tensor,  # [H, I]
    w_hh: Tensor,  # [H, H]
    b_ih: Tensor | None = None,  # [H]
    b_hh: Tensor | None = None,  # [H]
    nonlinearity: str = "tanh",
) -> Tensor:
    """``seqkern.functional.rnn_cell`` in torch operations: the same arguments, shapes and results.

    Example::

        cell = torch.nn.RNNCell(3, 4)
        h = reference.rnn_cell(torch.randn(2, 3), torch.zeros(2, 4), *cell.parameters())
        h.shape  # [2, 4]
    """
    return _one_step(rnn_name(nonlinearity), input, h, None, (w_ih, w_hh, b_ih, b_hh))[0]
