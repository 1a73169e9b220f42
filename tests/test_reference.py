"""The reference is right: it is torch.nn in float64, and differentiable like any torch
operation."""

from __future__ import annotations

import pytest
import torch
from layers import CELLS, Case, gradients
from tolerances import check, check_all
from torch import nn

from seqkern import reference

KINDS = (*((cell, 0) for cell in CELLS), ("lstm", 2))


@pytest.mark.parametrize("sizes", (None, (1,), (3, 3, 2, 1, 1)), ids=("padded", "one", "ragged"))
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell, P", KINDS)
def test_layers_are_torchs(cell, P, D, bias, sizes):
    case = Case(cell, T=5, B=3, I=3, H=4, P=P, D=D, bias=bias, batch_sizes=sizes)
    arguments = case.arguments()
    ours = gradients(lambda *t: case.call(reference, *t), arguments)
    torchs = gradients(case.call_torch, arguments)
    check_all(ours, torchs, torchs)


@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize(
    "module, function, options",
    (
        (nn.LSTMCell, reference.lstm_cell, {}),
        (nn.GRUCell, reference.gru_cell, {}),
        (nn.RNNCell, reference.rnn_cell, {}),
        (nn.RNNCell, reference.rnn_cell, {"nonlinearity": "relu"}),
    ),
)
def test_cells_are_torchs(float64, module, function, options, bias):
    cell = module(3, 4, bias=bias, **options)
    input, h, c = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    if module is nn.LSTMCell:
        ours = function(input, h, c, *cell.parameters())
        torchs = cell(input, (h, c))
    else:
        ours = (function(input, h, *cell.parameters(), **options),)
        torchs = (cell(input, h),)
    for a, b in zip(ours, torchs, strict=True):
        check(a, b, b)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_short_dtypes_are_float32_rounded(cell, dtype):
    case = Case(cell, T=20, B=3, H=8, D=2)
    short = case.arguments(dtype)
    results = case.call(reference, *short.values())
    wide = case.call(reference, *(t.float() for t in short.values()))
    for a, b in zip(results, wide, strict=True):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("cell", ("lstm", "gru", "rnn_tanh"))
def test_complex(cell):
    """torch.nn's layers take complex numbers; seqkern's have no kernels for them and come here."""
    case = Case(cell, T=4, B=2)
    tensors = [t.to(torch.complex128) for t in case.arguments().values()]
    for a, b in zip(case.call(reference, *tensors), case.call_torch(*tensors), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_forward_mode_and_vmap(cell):
    case = Case(cell, T=3, B=2)
    tensors = tuple(case.arguments().values())
    tangents = tuple(torch.randn_like(t) for t in tensors)

    def layer(*tensors):
        return case.call(reference, *tensors)[0]

    _, forward = torch.func.jvp(layer, tensors, tangents)
    _, pull_back = torch.func.vjp(layer, *tensors)
    cotangent = torch.randn_like(forward)
    backward = sum((g * t).sum() for g, t in zip(pull_back(cotangent), tangents, strict=True))
    torch.testing.assert_close((forward * cotangent).sum(), backward)
    copies = torch.stack([tensors[0], 2 * tensors[0]])
    stacked = torch.vmap(lambda x: layer(x, *tensors[1:]))(copies)
    torch.testing.assert_close(stacked[1], layer(copies[1], *tensors[1:]))


def test_errors():
    arguments = Case("lstm").arguments()
    input, h_0, c_0, *params = arguments.values()
    with pytest.raises(ValueError, match="params must hold 2 to 5 tensors per direction, got 1"):
        reference.lstm(input, h_0, c_0, params[:1])
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'sin'"):
        reference.rnn(input, h_0, params, nonlinearity="sin")
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'sin'"):
        reference.rnn_cell(input[0], h_0[0], *params, nonlinearity="sin")
