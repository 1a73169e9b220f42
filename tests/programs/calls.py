"""Calls of every kind."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn, randn, zeros
from torch.nn.utils import stateless
from torch.utils._pytree import tree_leaves, tree_map

from .table import LAYERS, grads, input_of, loss, recurrent_weight, row, state, trained


class InPlaceOfATensor:
    """Not a Tensor: it has one, and a __torch_function__ that lets it pass for one."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        value = getattr(self.tensor, name)
        if not callable(value) or isinstance(value, torch.device):
            return value
        return lambda *args, **kwargs: tree_map(
            lambda r: type(self)(r) if isinstance(r, torch.Tensor) else r, value(*args, **kwargs)
        )

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = tree_map(lambda a: a.tensor if isinstance(a, cls) else a, args)
        return function(*args, **(kwargs or {}))


@row()
def object_in_place_of_a_tensor(C):
    m = C(3, 4)
    return m(InPlaceOfATensor(input_of(m)))


@row()
def object_in_place_of_a_tensor_without_grad(C):
    m = C(3, 4)
    with torch.no_grad():
        return m(InPlaceOfATensor(input_of(m)))


@row(*LAYERS)
def flat_weights_set_by_hand(C):
    m = C(3, 4, 2, bidirectional=True)
    x = input_of(m)
    before = m(x)
    m._flat_weights = [w.detach() / 2 for w in m._flat_weights]
    results = [before, m(x), copy.deepcopy(m)(x)]
    m.weight_ih_l0 = nn.Parameter(randn(m.weight_ih_l0.shape))
    results.append(m(x))
    m._flat_weights = [getattr(m, name) for name in m._flat_weights_names]
    results.append(m(x))
    m._flat_weights = [w.detach() / 2 for w in m._flat_weights]
    return [*results, m.double()(x.double())]


@row()
def by_keyword(C):
    m = C(3, 4)
    return m(input=input_of(m), hx=state(m)), m(hx=None, input=input_of(m))


@row()
def unknown_keyword(C):
    m = C(3, 4)
    return m(input_of(m), foo=1)


@row()
def no_input(C):
    return C(3, 4)()


@row()
def call_forward_itself(C):
    m = C(3, 4)
    return m.forward(input_of(m))


@row()
def strided(C):
    m = C(3, 4)
    x = input_of(m)
    wide = torch.stack([x, x], -1)[..., 0]
    hx = tree_map(lambda t: torch.stack([t, t], -1)[..., 1], state(m))
    return trained(m, wide, hx)


@row()
def flipped_and_offset(C):
    m = C(3, 4)
    return trained(m, torch.cat([input_of(m), input_of(m)], -1)[..., 2:5].flip(0))


@row()
def parameter_as_input(C):
    m = C(3, 4)
    return trained(m, nn.Parameter(input_of(m)))


@row()
def dtype_strings(C):
    return C(3, 4, dtype="float32")


@row()
def device_string(C):
    return C(3, 4, device="nowhere")


@row()
def dtype_int(C):
    return C(3, 4, dtype=torch.int64)


@row()
def requires_grad_flags(C):
    m = C(3, 4).requires_grad_(False)
    x = input_of(m)
    flags = [t.requires_grad for t in tree_leaves(m(x))]
    return flags + [t.requires_grad for t in tree_leaves(m(x.requires_grad_()))]


@row()
def only_hx_wants_gradients(C):
    m = C(3, 4).requires_grad_(False)
    return trained(m, input_of(m), state(m, requires_grad=True))


@row()
def one_state_alone_gets_a_gradient(C):
    m = C(3, 4)
    x = input_of(m).requires_grad_()
    tree_leaves(m(x))[-1].sin().sum().backward()
    return x.grad, grads(m)


@row()
def first_result_alone_gets_a_gradient(C):
    m = C(3, 4)
    x = input_of(m).requires_grad_()
    tree_leaves(m(x))[0].sin().sum().backward()
    return x.grad, grads(m)


@row()
def same_tensor_for_input_and_hx(C):
    m = C(4, 4)
    x = randn(1, 2, 4) if isinstance(m, nn.RNNBase) else randn(2, 4)
    x.requires_grad_()
    return trained(m, x, (x, x) if "LSTM" in C.__name__ else x)


@row()
def backward_twice(C):
    m = C(3, 4)
    value = loss(m(input_of(m)))
    value.backward(retain_graph=True)
    value.backward()
    return grads(m)


@row()
def backward_twice_without_retaining(C):
    m = C(3, 4)
    value = loss(m(input_of(m)))
    value.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        value.backward()


@row()
def unused_parameter(C):
    m = C(3, 4)
    return torch.autograd.grad(
        loss(m(input_of(m))), [nn.Parameter(zeros(2)), *m.parameters()], allow_unused=True
    )


@row()
def batched_gradients(C):
    m = C(3, 4)
    x = input_of(m).requires_grad_()
    y = tree_leaves(m(x))[0]
    return torch.autograd.grad(y, [x, *m.parameters()], randn(3, *y.shape), is_grads_batched=True)


@row()
def jacobian(C):
    m = C(3, 4)
    return [
        torch.autograd.functional.jacobian(lambda x: tree_leaves(m(x))[0], input_of(m), vectorize=v)
        for v in (False, True)
    ]


@row()
def anomaly_mode(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            return trained(m, input_of(m))


@row()
def checkpointed(C):
    m = C(3, 4)
    x = input_of(m).requires_grad_()
    loss(torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False)).backward()
    return x.grad, grads(m)


@row()
def saved_on_the_side(C):
    m = C(3, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        results = m(input_of(m))
    loss(results).backward()
    return grads(m)


@row()
def input_changed_before_backward(C):
    m = C(3, 4)
    x = input_of(m)
    value = loss(m(x))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@row()
def backward_from_inference_mode(C):
    m = C(3, 4)
    with torch.inference_mode():
        results = m(input_of(m))
    return loss(results).backward()


@row()
def vmap_over_models(C):
    models = [C(3, 4) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x = input_of(models[0])

    def call(params, buffers):
        return tree_leaves(torch.func.functional_call(models[0], (params, buffers), (x,)))

    return [call({n: p[i] for n, p in params.items()}, buffers) for i in range(3)]


@row()
def functional_call_of_one_parameter(C):
    m = C(3, 4)
    name = recurrent_weight(m)
    changed = {name: 2 * getattr(m, name).detach()}
    x = input_of(m)
    return torch.func.functional_call(m, changed, x), m(x)


@row()
def functional_call_strict(C):
    m = C(3, 4)
    return torch.func.functional_call(m, {}, input_of(m), strict=True)


@row()
def functional_call_with_gradients(C):
    m = C(3, 4)
    leaves = {n: p.detach().mul(2).requires_grad_() for n, p in m.named_parameters()}
    loss(torch.func.functional_call(m, leaves, input_of(m))).backward()
    return {n: p.grad for n, p in leaves.items()}, grads(m)


@row()
def stateless_call(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stateless.functional_call(
            m, {n: 2 * p for n, p in m.named_parameters()}, input_of(m)
        )
