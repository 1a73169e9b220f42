"""The life of a module: changed, copied, saved, moved."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import torch
from torch import nn, randn, zeros
from torch.nn.utils import prune
from torch.utils._pytree import tree_leaves

from .table import CELLS, LAYERS, input_of, recurrent_weight, rows, state, trained


def _reloaded(module, protocol=None):
    if protocol is not None:
        return pickle.loads(pickle.dumps(module, protocol))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _functional(module):
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    x = input_of(module)
    return torch.func.functional_call(module, doubled, (x,)), module(x)


def _per_sample(module):
    params = dict(module.named_parameters())

    def loss(params, x):
        leaves = tree_leaves(torch.func.functional_call(module, params, (x.unsqueeze(-2),)))
        return sum(leaf.sin().sum() for leaf in leaves)

    return torch.func.grad(loss)(params, randn(3) if "Cell" in repr(module) else randn(5, 3))


def _weight_drop(module):
    """As in AWD-LSTM implementations: the parameter goes, a plain tensor takes its place."""
    name = recurrent_weight(module)
    raw = getattr(module, name)
    del module._parameters[name]
    module.register_parameter(name + "_raw", nn.Parameter(raw.data))
    setattr(module, name, torch.dropout(getattr(module, name + "_raw"), 0.5, True))
    return trained(module, input_of(module))


def _weight_norm(module):
    torch.nn.utils.parametrizations.weight_norm(module, recurrent_weight(module))
    return trained(module, input_of(module))


def _spectral_norm(module):
    """In eval mode: in training every look at the weight, and torch looks often, iterates."""
    torch.nn.utils.parametrizations.spectral_norm(module.eval(), recurrent_weight(module))
    return trained(module, input_of(module))


def _old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(module, recurrent_weight(module))
    return trained(module, input_of(module))


def _tied(module):
    other = copy.deepcopy(module)
    setattr(other, recurrent_weight(module), getattr(module, recurrent_weight(module)))
    pair = nn.ModuleList([module, other])
    sum(leaf.sin().sum() for m in pair for leaf in tree_leaves(m(input_of(m)))).backward()
    return {n: p.grad for n, p in pair.named_parameters()}


def _in_place(module):
    loss = tree_leaves(module(input_of(module), state(module, requires_grad=True)))[0].sum()
    with torch.no_grad():
        getattr(module, recurrent_weight(module)).mul_(2)
    try:
        loss.backward()
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)


def _data_edit(module):
    """.data edits are seen by the next call."""
    before = module(input_of(module))
    getattr(module, recurrent_weight(module)).data.mul_(2)
    return before, module(input_of(module))


def _hooks(module):
    seen = []
    module.register_forward_pre_hook(lambda m, a: seen.append(len(a)))
    module.register_forward_hook(lambda m, a, r: seen.append(len(tree_leaves(r))))
    module.register_full_backward_hook(lambda m, gi, go: seen.append((len(gi), len(go))))
    tree_leaves(module(input_of(module).requires_grad_()))[0].sum().backward()
    return seen


def _optimizer(module):
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(leaf.pow(2).sum() for leaf in tree_leaves(module(input_of(module)))).backward()
        optimizer.step()
    return module.state_dict()


def _double_backward(module):
    x = input_of(module).requires_grad_()
    value = sum(leaf.sin().sum() for leaf in tree_leaves(module(x)))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    grad.pow(2).sum().backward()
    return x.grad, {n: p.grad for n, p in module.named_parameters()}


def _to_empty(C):
    module = C(3, 4, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    module.reset_parameters()
    return module(input_of(module))


def _default_device(C):
    with torch.device("meta"):
        return dict(C(3, 4).named_parameters())


def _load_bad(module):
    module.load_state_dict({"weight_ih": zeros(1)})


def _prune(module):
    prune.l1_unstructured(module, recurrent_weight(module), 0.5)
    return trained(module, input_of(module))


def _stateful_copy(module):
    other = copy.deepcopy(module)
    with torch.no_grad():
        getattr(module, recurrent_weight(module)).zero_()
    return module(input_of(module)), other(input_of(other))


rows(
    {
        "deepcopy": lambda C: copy.deepcopy(m := C(3, 4))(input_of(m)),
        "deepcopy_is_apart": lambda C: _stateful_copy(C(3, 4)),
        "copy": lambda C: copy.copy(m := C(3, 4))(input_of(m)),
        "pickle_2": lambda C: _reloaded(m := C(3, 4), 2)(input_of(m)),
        "pickle_5": lambda C: _reloaded(m := C(3, 4), 5)(input_of(m)),
        "torch_save": lambda C: _reloaded(m := C(3, 4))(input_of(m)),
        "state_dict": lambda C: C(3, 4).state_dict(),
        "load_bad": lambda C: _load_bad(C(3, 4)),
        "functional_call": lambda C: _functional(C(3, 4)),
        "func_grad": lambda C: _per_sample(C(3, 4)),
        "weight_drop": lambda C: _weight_drop(C(3, 4)),
        "weight_norm": lambda C: _weight_norm(C(3, 4)),
        "old_weight_norm": lambda C: _old_weight_norm(C(3, 4)),
        "spectral_norm": lambda C: _spectral_norm(C(3, 4)),
        "prune": lambda C: _prune(C(3, 4)),
        "tied": lambda C: _tied(C(3, 4)),
        "in_place": lambda C: _in_place(C(3, 4)),
        "data_edit": lambda C: _data_edit(C(3, 4)),
        "hooks": lambda C: _hooks(C(3, 4)),
        "optimizer": lambda C: _optimizer(C(3, 4)),
        "double_backward": lambda C: _double_backward(C(3, 4)),
        "to_float32": lambda C: C(3, 4).to(torch.float32).state_dict(),
        "half": lambda C: C(3, 4).half().state_dict(),
        "to_empty": _to_empty,
        "device_context": _default_device,
        "skip_init": lambda C: {
            n: p.shape for n, p in nn.utils.skip_init(C, 3, 4).named_parameters()
        },
        "share_memory": lambda C: (m := C(3, 4)).share_memory()(input_of(m)),
        "reset_parameters": lambda C: ((m := C(3, 4)).reset_parameters(), m.state_dict())[1],
        "delete_weight": lambda C: None if "Cell" not in C.__name__ else _deleted(C(3, 4)),
        "attribute": lambda C: C(3, 4).weights,
    },
    *LAYERS,
    *CELLS,
)


def _deleted(module):
    delattr(module, recurrent_weight(module))
    return module(input_of(module))
