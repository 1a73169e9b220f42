"""seqkern.init: what each function sets, what it leaves alone, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import seqkern
from seqkern import init

NAMESPACES = pytest.mark.parametrize("namespace", (seqkern, nn), ids=("seqkern", "torch.nn"))
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}
SEVERAL = {"num_layers": 2, "bidirectional": True}


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def unchanged(module, before, but):
    return all(
        torch.equal(p, before[name])
        for name, p in module.named_parameters()
        if not name.startswith(but)
    )


@NAMESPACES
@pytest.mark.parametrize("kind", GATES)
def test_orthogonal(namespace, kind):
    module = getattr(namespace, kind)(3, 6, **({} if kind.endswith("Cell") else SEVERAL))
    before = parameters(module)
    assert init.orthogonal_(module, gain=2.0) is module
    weights = [p for name, p in module.named_parameters() if name.startswith("weight_hh")]
    assert len(weights) == (1 if kind.endswith("Cell") else 4)
    for weight in weights:
        blocks = weight.unflatten(0, (GATES[kind], 6))
        torch.testing.assert_close(blocks @ blocks.mT, 4 * torch.eye(6).expand_as(blocks))
    assert unchanged(module, before, "weight_hh")


@NAMESPACES
@pytest.mark.parametrize("kind", GATES)
def test_xavier_uniform(namespace, kind):
    module = getattr(namespace, kind)(30, 60, **({} if kind.endswith("Cell") else SEVERAL))
    before = parameters(module)
    assert init.xavier_uniform_(module, gain=2.0) is module
    weights = [p for name, p in module.named_parameters() if name.startswith("weight_ih")]
    assert len(weights) == (1 if kind.endswith("Cell") else 4)
    for weight in weights:
        bound = 2 * (6 / (weight.size(1) + 60)) ** 0.5
        for block in weight.unflatten(0, (GATES[kind], 60)):
            assert 0.95 * bound < block.abs().max() <= bound
    assert unchanged(module, before, "weight_ih")


def test_xavier_uniform_lets_gradients_through_a_stack():
    input, arrived = torch.randn(40, 8, 64, requires_grad=True), []
    weights = torch.randn(40, 8, 64)
    for change in (lambda module: module, init.xavier_uniform_):
        module = change(seqkern.LSTM(64, 64, num_layers=4))
        (grad,) = torch.autograd.grad((module(input)[0] * weights).sum(), input)
        arrived.append(grad.norm())
    assert arrived[1] > 4 * arrived[0]


def test_orthogonal_with_projection():
    module = init.orthogonal_(seqkern.LSTM(3, 6, proj_size=2))
    blocks = module.weight_hh_l0.unflatten(0, (4, 6))
    torch.testing.assert_close(blocks.mT @ blocks, torch.eye(2).expand(4, 2, 2))


@NAMESPACES
@pytest.mark.parametrize("kind, options", (("LSTM", SEVERAL), ("LSTMCell", {})))
def test_forget_bias(namespace, kind, options):
    module = getattr(namespace, kind)(3, 5, **options)
    before = parameters(module)
    assert init.forget_bias_(module, 1.5) is module
    gate = torch.zeros(20, dtype=torch.bool)
    gate[5:10] = True
    for name, p in module.named_parameters():
        if name.startswith("bias"):
            assert (p[gate] == (1.5 if name.startswith("bias_ih") else 0)).all()
            assert torch.equal(p[~gate], before[name][~gate])
    assert unchanged(module, before, "bias")


def test_forget_bias_is_that_of_the_forget_gate():
    """With a large one, c stays."""
    module = init.forget_bias_(seqkern.LSTM(3, 5), 50.0)
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        module.weight_hh_l0.zero_()
        module.bias_ih_l0[:5] = -50.0  # the input gate is shut
    c_0 = torch.randn(1, 2, 5)
    _, (_, c_n) = module(torch.randn(30, 2, 3), (torch.zeros(1, 2, 5), c_0))
    torch.testing.assert_close(c_n, c_0)


@NAMESPACES
@pytest.mark.parametrize("kind, options", (("RNN", SEVERAL), ("RNNCell", {})))
def test_identity(namespace, kind, options):
    module = getattr(namespace, kind)(3, 5, nonlinearity="relu", **options)
    before = parameters(module)
    assert init.identity_(module, 0.5) is module
    for name, p in module.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.equal(p, 0.5 * torch.eye(5))
        elif name.startswith("bias"):
            assert not p.any()
    assert unchanged(module, before, ("weight_hh", "bias"))


@pytest.mark.parametrize(
    "function, module, error, message",
    (
        (init.orthogonal_, nn.Linear(3, 3), TypeError, "one of their cells, got Linear"),
        (init.xavier_uniform_, nn.Linear(3, 3), TypeError, "one of their cells, got Linear"),
        (init.forget_bias_, seqkern.GRU(3, 4), TypeError, "an LSTM or LSTMCell, got GRU"),
        (init.forget_bias_, nn.GRUCell(3, 4), TypeError, "an LSTM or LSTMCell, got GRUCell"),
        (init.forget_bias_, seqkern.LSTM(3, 4, bias=False), ValueError, "bias=False"),
        (init.identity_, seqkern.RNN(3, 4), TypeError, r"nonlinearity='relu', got RNN\(3, 4\)"),
        (init.identity_, seqkern.LSTM(3, 4), TypeError, "nonlinearity='relu', got LSTM"),
    ),
)
def test_refused(function, module, error, message):
    with pytest.raises(error, match=message):
        function(module)


@pytest.mark.parametrize(
    "function, name", ((init.orthogonal_, "weight_hh_l0"), (init.identity_, "bias_ih_l1"))
)
def test_parametrized_parameters_are_refused_and_nothing_is_changed(function, name):
    module = seqkern.RNN(3, 4, num_layers=2, nonlinearity="relu")
    nn.utils.parametrize.register_parametrization(module, name, nn.Identity())
    before = parameters(module)
    with pytest.raises(ValueError, match=f"{name} must be a parameter of its own"):
        function(module)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
