"""Hooks of modules and tensors."""

from __future__ import annotations

import warnings

import pytest
from torch import nn, randn, zeros
from torch.utils._pytree import tree_map

from .table import input_of, loss, recurrent_weight, row, state, trained


@row()
def forward_hooks_change_things(C):
    m = C(3, 4)
    m.register_forward_pre_hook(lambda m, args: (2 * args[0], *args[1:]))
    m.register_forward_hook(lambda m, args, results: tree_map(lambda t: t + 1, results))
    return trained(m, input_of(m))


@row()
def forward_hooks_with_keywords(C):
    m = C(3, 4)
    m.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "hx": None}), with_kwargs=True
    )
    m.register_forward_hook(lambda m, a, k, r: (r, sorted(k)), with_kwargs=True)
    return m(input_of(m), hx=state(m))


@row()
def forward_hook_always_called(C):
    m, seen = C(3, 4), []
    m.register_forward_hook(lambda m, args, result: seen.append(result), always_call=True)
    with pytest.raises((RuntimeError, ValueError)), warnings.catch_warnings():
        m(randn(1, 1, 1, 3))
    return seen


@row()
def removed_hook(C):
    m = C(3, 4)
    m.register_forward_hook(lambda m, args, result: None / 0).remove()
    return m(input_of(m))


@row()
def full_backward_hooks(C):
    m, seen = C(3, 4), []
    m.register_full_backward_pre_hook(lambda m, grads: seen.extend(grads))
    m.register_full_backward_hook(lambda m, gi, go: seen.extend(gi))
    x = input_of(m).requires_grad_()
    loss(m(x)).backward()
    return seen, x.grad


@row()
def tensor_hooks(C):
    m = C(3, 4)
    getattr(m, recurrent_weight(m)).register_hook(lambda grad: 3 * grad)
    return trained(m, input_of(m))


@row()
def post_accumulate_hook(C):
    m, seen = C(3, 4), []
    for p in m.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.shape)))
    loss(m(input_of(m))).backward()
    return sorted(seen)


@row()
def global_hook(C):
    m, seen = C(3, 4), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, r: seen.append(1))
    try:
        m(input_of(m))
    finally:
        handle.remove()
    return seen


@row()
def state_dict_hooks(C):
    m = C(3, 4)
    m.register_state_dict_post_hook(lambda m, d, prefix, meta: d.update({prefix + "x": zeros(1)}))
    m.register_load_state_dict_pre_hook(lambda m, d, *rest: d.pop("x"))
    saved = m.state_dict()
    m.load_state_dict(saved, strict=True)
    return list(saved)
