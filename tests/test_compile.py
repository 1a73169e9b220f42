"""torch.compile, forward and backward, without a graph break: padded, with lengths, packed, and cells.

fullgraph=True raises at a break. Every graph is counted too: sizes that are dynamic and values of lengths
must not make another one.
"""

from __future__ import annotations

import types

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import seqkern
from seqkern import dynamo

LAYERS = [
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    ("GRU", {"bidirectional": True, "batch_first": True}),
    ("RNN", {"num_layers": 2}),
]
layers = pytest.mark.parametrize("kind, kwargs", LAYERS, ids=[kind for kind, _ in LAYERS])


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    assert not counters["graph_break"]


def compiled(module, dynamic=None, backend="aot_eager"):
    return torch.compile(module, fullgraph=True, dynamic=dynamic, backend=backend)


def graphs():
    return counters["stats"]["unique_graphs"]


def batch(module, steps, size):
    shape = (size, steps, 3) if getattr(module, "batch_first", False) else (steps, size, 3)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def check_same(function, module, leaf, *arguments):
    """Results and gradients of function and module on the same arguments."""
    found = []
    for one in (function, module):
        leaves = tree_leaves(one(*arguments))
        results = [r for r in leaves if isinstance(r, Tensor) and r.is_floating_point()]
        loss = sum(r.sin().sum() for r in results)
        found.append((results, torch.autograd.grad(loss, [leaf, *module.parameters()])))
    torch.testing.assert_close(*found)


@layers
def test_padded(kind, kwargs, float64):
    """Of any size. test_modules.py has the static ones."""
    module = getattr(seqkern, kind)(3, 4, **kwargs)
    function = compiled(module, True)
    for steps, size in ((5, 4), (7, 3)):
        x = batch(module, steps, size)
        check_same(function, module, x, x)
    assert graphs() == 1


@pytest.mark.parametrize("dynamic", (True, False), ids=("dynamic", "static"))
@layers
def test_lengths(kind, kwargs, dynamic, float64):
    module = getattr(seqkern, kind)(3, 4, **kwargs)
    function = compiled(module, dynamic)
    for steps, lengths in ((5, [3, 0, 5, 2]), (5, [0, 0, 0, 0]), (5, [4, 5, 5, 1]), (7, [7, 0, 2])):
        x = batch(module, steps, len(lengths))
        check_same(function, module, x, x, None, torch.tensor(lengths))
    assert graphs() == (1 if dynamic else 2)


@pytest.mark.parametrize("enforce_sorted, states", [(True, False), (True, True), (False, True)])
@layers
def test_packed(kind, kwargs, enforce_sorted, states, float64):
    """A PackedSequence as the graph's input. The second one has other sizes (and the first no equal ones,
    which torch.compile would take for one)."""
    module = getattr(seqkern, kind)(3, 4, **kwargs)
    function = compiled(module, True)
    for lengths in ([6, 5, 3, 2, 1], [7, 4]):
        if not enforce_sorted:
            lengths = lengths[::-1]
        packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted)
        packed = packed._replace(data=packed.data.requires_grad_())
        hx = None
        if states:
            h_n = module(packed)[1]
            hx = tuple(map(torch.randn_like, h_n)) if kind == "LSTM" else torch.randn_like(h_n)
        check_same(function, module, packed.data, packed, hx)
    assert graphs() == 1


class Packs(nn.Module):
    """The graph breaks at pack_padded_sequence, and the layers are in the one behind it."""

    def __init__(self, kind, kwargs):
        super().__init__()
        self.layers = getattr(seqkern, kind)(3, 4, **kwargs)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, self.layers.batch_first)
        return pad_packed_sequence(self.layers(packed)[0])[0]


@layers
def test_packing_inside(kind, kwargs, float64):
    """Where a graph may break, no number is read from a tensor: of that Dynamo warns."""
    module = Packs(kind, kwargs)
    function = torch.compile(module, backend="aot_eager")
    for lengths in ([5, 3], [4, 4, 1]):
        x = torch.randn(lengths[0], len(lengths), 3, requires_grad=True)
        if module.layers.batch_first:
            x = x.detach().transpose(0, 1).requires_grad_()
        check_same(function, module, x, x, lengths)
    assert counters["graph_break"] and not any(
        "item()" in reason for reason in counters["graph_break"]
    )
    counters.clear()


def test_packed_states_of_another_size(float64):
    """With no size known in advance it is the operator that compares."""
    function = compiled(seqkern.GRU(3, 4))
    packed = pack_sequence([torch.randn(n, 3) for n in (3, 2)])
    with pytest.raises(RuntimeError, match="h_0 must have the first step's 2 rows, got"):
        function(packed, torch.zeros(1, 3, 4))


@pytest.mark.parametrize("kind", ("LSTMCell", "GRUCell", "RNNCell"))
def test_cells(kind, float64):
    module = getattr(seqkern, kind)(3, 4)
    function = compiled(module, True)
    for size in (4, 3):
        x = torch.randn(size, 3, requires_grad=True)
        check_same(function, module, x, x)
    assert graphs() == 1


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = seqkern.GRU(3, 4, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x, lengths):
        output, _ = self.rnn(x, lengths=lengths)
        return self.head(seqkern.last_output(output, lengths, bidirectional=True))


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_model(backend, float64):
    """A loop of training steps: lengths, last_output and a layer of torch's in one graph."""
    module = Classifier()
    function = compiled(module, True, backend)
    for steps, lengths in ((5, [3, 0, 5, 2]), (4, [4, 1])):
        x = batch(module, steps, len(lengths))
        check_same(function, module, x, x, torch.tensor(lengths))
    assert graphs() == 1


def test_lengths_out_of_range():
    """Numbers are not known while the graph is made: it checks them when it runs."""
    function = compiled(seqkern.RNN(3, 4))
    for lengths in ([2, 6], [2, -1]):
        with pytest.raises(RuntimeError, match="lengths must lie between 0 and T"):
            function(torch.randn(5, 2, 3), lengths=torch.tensor(lengths))


def test_lengths_without_fullgraph():
    module = seqkern.LSTM(3, 4)
    function = torch.compile(module, backend="eager")
    x, lengths = torch.randn(5, 2, 3), torch.tensor([2, 4])
    torch.testing.assert_close(function(x, lengths=lengths), module(x, lengths=lengths))
    assert graphs() == 1


def test_an_unknown_dynamo_is_left_as_it_is(monkeypatch):
    builder = types.SimpleNamespace(VariableBuilder=type("VariableBuilder", (), {}))
    monkeypatch.setattr(dynamo, "after_import", lambda names, call, once: call(builder))
    with pytest.warns(UserWarning, match="does not know this version of Dynamo"):
        dynamo.accept(nn.RNNBase)
    assert not hasattr(builder.VariableBuilder, "wrap_module")


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN", "LSTMCell"))
def test_without_implicit_fallbacks(kind):
    """Where Inductor refuses operators that nobody has named."""
    module = getattr(seqkern, kind)(4, 6)
    x = torch.randn(*(3, 4) if "Cell" in kind else (5, 3, 4), requires_grad=True)

    def run(function):
        result = function(x)
        loss = (result[0] if isinstance(result, tuple) else result).sum()
        return loss, *torch.autograd.grad(loss, [x, *module.parameters()])

    expected = run(module)
    torch.compiler.reset()
    with torch._inductor.config.patch(implicit_fallbacks=False, force_disable_caches=True):
        torch.testing.assert_close(run(torch.compile(module, fullgraph=True)), expected)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"))
def test_compiled_autograd(kind):
    """The backward pass of an eager graph, compiled: its nodes, which are C++, are traced through."""
    module = getattr(seqkern, kind)(3, 4).double()
    x = torch.randn(*([] if "Cell" in kind else [5]), 2, 3, dtype=torch.float64)
    operators = []

    def compiler(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    found = []
    for backend in (aot_autograd(fw_compiler=compiler), None):
        loss = sum(t.sin().sum() for t in tree_leaves(module(x)))
        if backend:
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend)):
                loss.backward()
        else:
            loss.backward()
        found.append([p.grad for p in module.parameters()])
        module.zero_grad()
    assert sum(name.startswith("seqkern.") and "_backward" in name for name in operators) == 1
    torch.testing.assert_close(*found)
