"""torch.jit.script compiles torch's own functions for seqkern's modules, alone or nested."""

import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import seqkern

# No `from __future__ import annotations`: TorchScript wants types, not their names.

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:LSTM with projections")

LAYERS = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2, "bias": False}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]
CELLS = [("LSTMCell", {}), ("GRUCell", {}), ("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"})]


class OneState(nn.Module):
    """A model that ends in a layer with one state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor, hx: Tensor | None = None):
        return self.layer(2 * input, hx)


class TwoStates(OneState):
    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None):
        return self.layer(2 * input, hx)


class PackedOneState(OneState):
    def forward(self, input: PackedSequence, hx: Tensor | None = None):
        return self.layer(input, hx)


class PackedTwoStates(OneState):
    def forward(self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None):
        return self.layer(input, hx)


def reloaded(scripted):
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def build(N, kind, packed=False, **options):
    layer = getattr(N, kind)(3, 4, **options)
    if packed:
        return (PackedTwoStates if "LSTM" in kind else PackedOneState)(layer)
    return (TwoStates if "LSTM" in kind else OneState)(layer)


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("kind, options", LAYERS)
def test_padded(kind, options, batch_first):
    model = build(
        seqkern, kind, num_layers=2, bidirectional=True, batch_first=batch_first, **options
    )
    for scripted in (torch.jit.script(model), reloaded(torch.jit.script(model))):
        for input in (torch.randn(5, 2, 3), torch.randn(5, 3)):
            output, hx = model(input)
            torch.testing.assert_close(scripted(input), (output, hx))
            torch.testing.assert_close(scripted(input, hx), model(input, hx))


@pytest.mark.parametrize("kind, options", LAYERS)
def test_packed(kind, options):
    model = build(seqkern, kind, packed=True, num_layers=2, bidirectional=True, **options)
    packed = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    _, hx = model(packed)
    for scripted in (torch.jit.script(model), reloaded(torch.jit.script(model))):
        for arguments in ((packed,), (packed, hx)):
            torch.testing.assert_close(scripted(*arguments), model(*arguments))


@pytest.mark.parametrize("kind, options", CELLS)
def test_cells(kind, options):
    model = build(seqkern, kind, **options)
    for scripted in (torch.jit.script(model), reloaded(torch.jit.script(model))):
        for input in (torch.randn(2, 3), torch.randn(3)):
            hx = model(input)
            torch.testing.assert_close(scripted(input), hx)
            torch.testing.assert_close(scripted(input, hx), model(input, hx))


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_alone(kind):
    """As with torch's classes, what is compiled are the overloads."""
    module = getattr(seqkern, kind)(3, 4)
    scripted = torch.jit.script(module)
    input = torch.randn(5, 2, 3)
    torch.testing.assert_close(scripted.forward__0(input), module(input))
    packed = pack_sequence([torch.randn(2, 3)])
    torch.testing.assert_close(scripted.forward__1(packed), module(packed))


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_torchs_functions_run(kind):
    graph = str(torch.jit.script(build(seqkern, kind)).inlined_graph)
    function = {"LSTM": "aten::lstm", "GRU": "aten::gru", "RNN": "aten::rnn_tanh"}[kind]
    assert function in graph and "seqkern::" not in graph


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_the_model_stays_as_it_is(kind):
    model = build(seqkern, kind)
    torch.jit.script(model)
    assert type(model.layer) is getattr(seqkern, kind)


def _bad(kind):
    one = torch.zeros(1, 2, 4)
    hx = (one, one) if kind == "LSTM" else one
    unbatched = (one[:, 0], one[:, 0]) if kind == "LSTM" else one[:, 0]
    return {
        "rank": (torch.zeros(3),),
        "size": (torch.zeros(5, 2, 7),),
        "hx_batch": (torch.zeros(5, 3, 3), hx),
        "hx_rank": (torch.zeros(5, 2, 3), unbatched),
        "hx_rank_unbatched": (torch.zeros(5, 3), hx),
    }


@pytest.mark.parametrize("name", _bad("GRU"))
@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_errors(kind, name):
    """The last line of a TorchScript error is the message."""
    messages = []
    for N in (nn, seqkern):
        with pytest.raises(torch.jit.Error) as error:
            torch.jit.script(build(N, kind))(*_bad(kind)[name])
        messages.append(str(error.value).strip().splitlines()[-1])
    assert messages[0] == messages[1]


@pytest.mark.parametrize("kind", ("LSTM", "GRU"))
def test_gradients(kind):
    model = build(seqkern, kind, num_layers=2)
    input, grads = torch.randn(5, 2, 3), []
    for run in (model, torch.jit.script(model)):
        model.zero_grad()
        run(input)[0].sin().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0])
