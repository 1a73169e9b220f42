"""Names, attributes and texts of modules."""

from __future__ import annotations

import warnings

import torch
from torch import nn, randn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_sequence

from .table import LAYERS, input_of, row, state, trained


@row()
def names(C):
    m = C(3, 4)
    return m._get_name(), m.extra_repr(), C.__name__, C.__constants__


@row()
def repr_in_a_model(C):
    return repr(nn.Sequential(C(3, 4), C(4, 5, bias=False)))


@row()
def attributes(C):
    """Every attribute that torch's module has of its own: seqkern's has it too, and no other."""
    return sorted(vars(C(3, 4)))


@row(*LAYERS)
def assigned_dropout(C):
    m = C(3, 4, 2)
    m.dropout = 0.5
    return m(input_of(m))


@row(*LAYERS)
def flatten_parameters(C):
    return C(3, 4).flatten_parameters()


@row(*LAYERS)
def checks_by_hand(C):
    m = C(3, 4)
    m.check_input(randn(5, 2, 3), None)
    m.check_forward_args(randn(5, 2, 3), state(m), None)
    return m.get_expected_hidden_size(randn(5, 2, 3), None)


@row(*LAYERS)
def permuted_by_hand(C):
    m = C(3, 4)
    return m.permute_hidden(state(m), torch.tensor([1, 0])), m.permute_hidden(state(m), None)


@row("LSTM")
def expected_cell_size(C):
    return C(3, 4, proj_size=2).get_expected_cell_size(randn(5, 2, 3), None)


@row(*LAYERS)
def packed_hx_list(C):
    m = C(3, 4)
    packed = pack_sequence([randn(3, 3), randn(2, 3)])
    hx = state(m)
    return m(packed, list(hx) if isinstance(hx, tuple) else hx)


@row("GRU", "RNN")
def packed_hx_of_one_sequence(C):
    m = C(3, 4)
    return m(pack_sequence([randn(3, 3), randn(2, 3)]), state(m, unbatched=True))


@row(*LAYERS)
def packed_of_all_lengths(C):
    m = C(3, 4, 2, bidirectional=True)
    sequences = [randn(n, 3) for n in (1, 5, 2, 5, 1)]
    return trained(m, pack_sequence(sequences, enforce_sorted=False))


@row(*LAYERS)
def packed_moved(C):
    m = C(3, 4).float()
    return m(pack_sequence([randn(3, 3), randn(2, 3)]).to(torch.float32))


@row(*LAYERS)
def scripted(C):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = torch.jit.script(C(3, 4, 2))
    return m.forward__0(randn(5, 2, 3))


@row()
def traced(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(m, (input_of(m),))
    assert "seqkern::" not in str(traced.inlined_graph)
    return traced(input_of(m))


@row()
def fx_traced(C):
    m = nn.Sequential(C(3, 4))
    graph = torch.fx.symbolic_trace(m)
    return [node.op for node in graph.graph.nodes], graph(input_of(m[0]))


@row(*LAYERS)
def per_sample_gradients(C):
    m = C(3, 4, 2)
    call = call_for_per_sample_grads(m, batch_size=2)
    call(randn(5, 2, 3))[0].sin().sum().backward()
    return {n: p.grad_sample for n, p in m.named_parameters()}
