"""Programs that use recurrent modules, each run for torch.nn's classes and for seqkern's."""

from __future__ import annotations

import warnings

import pytest
import torch
from tolerances import check
from torch import nn, randn
from torch.utils._pytree import tree_leaves

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
KINDS = (*LAYERS, *CELLS)

ROWS = []  # functions of a namespace, for test_modules.py
TABLE = {}  # functions of a class, for test_contract.py


def rows(table, *kinds):
    """Adds named expressions of a class C to the table, once for each kind of module."""
    for kind in kinds:
        for name, function in table.items():
            ROWS.append(
                pytest.param(lambda N, f=function, k=kind: f(getattr(N, k)), id=f"{name}-{kind}")
            )


def state(module, batch=2, dtype=None, unbatched=False, requires_grad=False):
    """Random initial states for a module."""
    if isinstance(module, nn.RNNCellBase):
        shapes = [(batch, module.hidden_size)] * (2 if "LSTM" in type(module).__name__ else 1)
    else:
        rows = module.num_layers * (2 if module.bidirectional else 1)
        shapes = [(rows, batch, module.proj_size or module.hidden_size)]
        if module.mode == "LSTM":
            shapes.append((rows, batch, module.hidden_size))
    if unbatched:
        shapes = [tuple(n for i, n in enumerate(s) if i != len(s) - 2) for s in shapes]
    states = tuple(randn(s, dtype=dtype, requires_grad=requires_grad) for s in shapes)
    return states if len(states) == 2 else states[0]


def trained(module, *arguments):
    """Results and every gradient."""
    results = module(*arguments)
    leaves = [r for r in tree_leaves(results) if isinstance(r, torch.Tensor) and r.requires_grad]
    torch.autograd.backward([leaf.sin().sum() for leaf in leaves])
    inputs = [a for a in tree_leaves(arguments) if isinstance(a, torch.Tensor)]
    return results, [t.grad for t in inputs], {n: p.grad for n, p in module.named_parameters()}


def outcome(function, namespace):
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(namespace)
        except Exception as error:  # noqa: BLE001 (whatever it is, both must raise it)
            result = error
    # torch tells oneDNN's users what their layers lack; seqkern's need nothing of it.
    texts = [str(w.message) for w in caught if "oneDNN" not in str(w.message)]
    return result, texts


def same(ours, torchs, where="result"):
    """Equal structure, equal numbers to rounding."""
    if isinstance(torchs, Exception):
        assert isinstance(ours, Exception), f"torch raises {torchs!r}, seqkern returns {ours}"
        assert type(ours) is type(torchs), (ours, torchs)
        assert str(ours) == str(torchs)
    elif isinstance(torchs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), (where, ours)
        assert ours.shape == torchs.shape and ours.dtype == torchs.dtype, where
        assert ours.requires_grad == torchs.requires_grad, where
        assert ours.device == torchs.device, where
        if torchs.is_meta:
            return
        if not torchs.is_floating_point() or torchs.dtype != torch.float64:
            torch.testing.assert_close(ours, torchs)
        else:
            check(ours.detach(), torchs.detach(), torchs.detach(), where)
    elif isinstance(torchs, dict):
        assert list(ours) == list(torchs), where
        for key in torchs:
            same(ours[key], torchs[key], f"{where}[{key!r}]")
    elif isinstance(torchs, (tuple, list)):
        assert type(ours) is type(torchs) and len(ours) == len(torchs), where
        for i, pair in enumerate(zip(ours, torchs, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert ours == torchs, where


def input_of(module):
    return randn(2, 3) if isinstance(module, nn.RNNCellBase) else randn(5, 2, 3)


def recurrent_weight(module):
    """The name of a recurrent weight."""
    return "weight_hh" if isinstance(module, nn.RNNCellBase) else "weight_hh_l0"


def changed(module, **attributes):
    """The module with other attributes."""
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def row(*kinds):
    """Adds a function of a class to the table, once for each kind of module."""

    def add(function):
        for kind in kinds or KINDS:
            TABLE[f"{function.__name__.strip('_')}-{kind}"] = (function, kind)
        return function

    return add


def loss(results):
    return sum(t.sin().sum() for t in tree_leaves(results) if isinstance(t, torch.Tensor))


def grads(module):
    return {name: p.grad for name, p in module.named_parameters()}


def other(module):
    """The parameters' names and shapes, and a result: what a changed module comes to."""
    shapes = {n: (tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()}
    return shapes, module(input_of(module).to(next(module.parameters()).dtype))
