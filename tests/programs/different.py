"""What differs on purpose, and why."""

from __future__ import annotations

import torch
from torch import nn, randn, zeros
from torch.nn.utils.rnn import pack_sequence

from .table import LAYERS, input_of, loss, row, state


@row(*LAYERS)
def output_changed_before_backward(C):
    m = C(3, 4)
    results = m(input_of(m))
    value = loss(results)
    results[0].detach().mul_(2)
    value.backward()


@row(*LAYERS)
def deleted_weight(C):
    m = C(3, 4)
    del m.weight_hh_l0
    return m(input_of(m))


@row(*LAYERS)
def weight_of_another_shape(C):
    m = C(3, 4)
    m.weight_hh_l0 = nn.Parameter(zeros(2, 2))
    return m(input_of(m))


@row("LSTM", "LSTMCell")
def one_tensor_for_hx(C):
    m = C(3, 4)
    return m(input_of(m), torch.stack(state(m)))


@row("LSTM")
def packed_input_size(C):
    return C(3, 4)(pack_sequence([randn(2, 7)]))


@row("LSTM")
def packed_hx_batch(C):
    m = C(3, 4)
    return m(pack_sequence([randn(2, 3)]), state(m, 5))


# Row, with or without its kind: why it differs.
DIFFERENT = {
    "output_changed_before_backward": "the kernels' backward pass reads output where torch's "
    "keeps a copy of each step",
    "deleted_weight": "torch goes on with its copy of what was deleted; a missing parameter is "
    "an error here",
    "weight_of_another_shape": "torch's error is that of a product somewhere inside; ours names "
    "the argument",
    "one_tensor_for_hx": "torch's text lists the overloads of its own C++ function",
    "packed_input_size-LSTM": "torch's LSTM does not look and fails inside; ours says what "
    "torch's GRU does",
    "packed_hx_batch-LSTM": "as with packed_input_size",
}
