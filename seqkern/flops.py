"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the layers: the products, two operations for each
multiply-add, as for torch's own operators."""

from __future__ import annotations

from torch.utils.flop_counter import register_flop_formula

from seqkern.ops import BACKWARD, FORWARD, STEP

__all__ = []


def _forward(input, batch_sizes, h_0, c_0, params, *rest, out_shape=None) -> int:
    return 2 * _rows(input, batch_sizes) * _weights(params)


def _backward(*arguments, out_shape=None) -> int:
    """The gradients of the states, h_0 among them or not; of the weights; of the input, by the w_ih
    of the directions."""
    input, batch_sizes, h_0, _, params = arguments[3:8]
    needs_input_grad, needs_h_0_grad, needs_params_grad = arguments[11:14]
    each = len(params) // h_0[0]
    inputs, recurrent = _weights(params[::each]), _weights(params[1::each])
    weights = _weights(params)
    wanted = weights - inputs + needs_input_grad * inputs + needs_params_grad * weights
    unwanted = 0 if needs_h_0_grad else h_0[1] * recurrent
    return 2 * (_rows(input, batch_sizes) * wanted - unwanted)


def _step(input, *rest, out_shape=None) -> int:
    w_ih, w_hh, _, _ = rest[-4:]
    return 2 * input[0] * _weights((w_ih, w_hh))


def _rows(input, batch_sizes) -> int:
    return input[0] * (input[1] if batch_sizes is None else 1)


def _weights(shapes) -> int:
    """Elements of all matrices among the parameters."""
    return sum(s[0] * s[1] for s in shapes if len(s) == 2)


for _operators, _formula in ((FORWARD, _forward), (BACKWARD, _backward), (STEP, _step)):
    register_flop_formula([op.overloadpacket for op in _operators.values()])(_formula)
