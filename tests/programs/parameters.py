"""Parameters that are looked at, replaced, shared, moved and trained."""

from __future__ import annotations

import torch
from torch import nn, randn, zeros

from .table import grads, input_of, loss, other, recurrent_weight, row, trained


@row()
def replaced_parameter(C):
    m = C(3, 4)
    name = recurrent_weight(m)
    setattr(m, name, nn.Parameter(zeros(getattr(m, name).shape)))
    return list(m.state_dict()), trained(m, input_of(m))


@row()
def tensor_for_parameter(C):
    m = C(3, 4)
    setattr(m, recurrent_weight(m), zeros(4))


@row()
def reregistered_parameter(C):
    m = C(3, 4)
    name = recurrent_weight(m)
    raw = getattr(m, name)
    delattr(m, name)
    m.register_parameter(name, nn.Parameter(raw.detach().sin()))
    return list(m.state_dict()), trained(m, input_of(m))


@row()
def edited_parameters_dict(C):
    m = C(3, 4)
    name = recurrent_weight(m)
    m._parameters[name] = nn.Parameter(m._parameters[name].detach().cos())
    return trained(m, input_of(m))


@row()
def hidden_and_input_weights_tied(C):
    m = C(4, 4)
    setattr(m, recurrent_weight(m), getattr(m, recurrent_weight(m).replace("hh", "ih")))
    x = randn(5, 2, 4) if isinstance(m, nn.RNNBase) else randn(2, 4)
    return len(list(m.parameters())), trained(m, x)


@row()
def non_leaf_weight(C):
    m = C(3, 4)
    name = recurrent_weight(m)
    scale = nn.Parameter(torch.tensor(0.5))
    raw = m._parameters.pop(name)
    setattr(m, name, raw * scale)
    loss(m(input_of(m))).backward()
    return raw.grad, scale.grad


@row()
def non_contiguous_weight(C):
    m = C(3, 4)
    name = recurrent_weight(m)
    raw = getattr(m, name).detach()
    setattr(m, name, nn.Parameter(raw.t().contiguous().t()))
    return trained(m, input_of(m))


@row()
def vector_of_parameters(C):
    m = C(3, 4)
    vector = nn.utils.parameters_to_vector(m.parameters())
    nn.utils.vector_to_parameters(vector * 2, m.parameters())
    return vector, m(input_of(m))


@row()
def clipped(C):
    m = C(3, 4)
    loss(m(input_of(m))).backward()
    return nn.utils.clip_grad_norm_(m.parameters(), 0.1), grads(m)


@row()
def applied(C):
    m = nn.Sequential(C(3, 4))

    def initialise(module):
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            for p in module.parameters():
                nn.init.constant_(p, 0.1)

    return m.apply(initialise)(input_of(m[0]))


@row()
def forget_bias(C):
    """As written for years: .data of a slice of a bias."""
    m = C(3, 4)
    bias = dict(m.named_parameters())[recurrent_weight(m).replace("weight", "bias")]
    bias.data[1:2].fill_(1)
    return m(input_of(m))


@row()
def zero_grad(C):
    m = C(3, 4)
    loss(m(input_of(m))).backward()
    m.zero_grad(set_to_none=False)
    return grads(m)


@row()
def moved_to_and_fro(C):
    m = C(3, 4)
    kept = list(m.parameters())
    m.float().double().half().to(torch.float64).cpu()
    assert all(a is b for a, b in zip(m.parameters(), kept, strict=True))
    return other(m)


def _moved(C, set_way):
    """With one of torch's other ways of converting parameters."""
    m = C(3, 4)
    set_way(True)
    try:
        m.float()
    finally:
        set_way(False)
    return other(m)


@row()
def moved_by_swapping(C):
    return _moved(C, torch.__future__.set_swap_module_params_on_conversion)


@row()
def moved_by_overwriting(C):
    return _moved(C, torch.__future__.set_overwrite_module_params_on_conversion)


@row()
def moved_to_meta(C):
    m = C(3, 4).to("meta")
    return [(p.device, p.shape) for p in m.parameters()], m(input_of(m).to("meta"))


@row()
def moved_to_int(C):
    return C(3, 4).to(torch.int64)


@row()
def made_empty_recursively(C):
    m = nn.Sequential(C(3, 4, device="meta")).to_empty(device="cpu")
    nn.utils.vector_to_parameters(torch.ones(10_000), m.parameters())
    return m(input_of(m[0]))


@row()
def default_dtype(C):
    torch.set_default_dtype(torch.float32)
    try:
        return dict(C(3, 4).named_parameters())
    finally:
        torch.set_default_dtype(torch.float64)


@row()
def skip_init_with_device(C):
    m = nn.utils.skip_init(C, 3, 4, device="cpu")
    return [p.shape for p in m.parameters()]
