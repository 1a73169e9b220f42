"""Swaps ``torch.nn``'s recurrent modules for seqkern's in a model that exists, and back.

Both sides keep the same attributes, so that a module changes sides by changing its class: hooks,
parametrizations, buffers, flags and whatever else lies on it stay where they are.
"""

from __future__ import annotations

import collections
import copy
import functools
import sys
import types
import warnings

import torch
from torch import nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import parametrize

from seqkern import modules

__all__ = ["SEQKERN_CLASSES", "TORCH_CLASSES", "convert", "to_torch"]

SEQKERN_CLASSES = {getattr(nn, name): getattr(modules, name) for name in modules.__all__}
TORCH_CLASSES = {ours: torchs for torchs, ours in SEQKERN_CLASSES.items()}


def convert(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with seqkern's modules in place of every ``torch.nn`` LSTM, GRU, RNN and cell.

    Parameters and buffers are the very same objects, so optimizers, tied weights and checkpoints
    go on working. By default the modules are copies around them and ``model`` stays as it is;
    plain lists, tuples, dicts and sets in attributes are copied too, other attributes are shared.
    With ``inplace=True`` the modules themselves are changed and ``model`` is returned.

    Subclasses are left alone, with one warning that names them. So is TorchScript. TypeError where
    model is no ``nn.Module``.

    Example::

        model = torch.nn.Sequential(torch.nn.Embedding(100, 16), torch.nn.LSTM(16, 32))
        fast = seqkern.convert(model)
        fast[1].weight_ih_l0 is model[1].weight_ih_l0  # True
    """
    return _swap(model, inplace, SEQKERN_CLASSES, "seqkern.convert")


def to_torch(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The way back: the model with ``torch.nn``'s modules in place of seqkern's. Everything else
    as with ``convert``.

    Example::

        model = torch.nn.Sequential(seqkern.LSTM(16, 32))
        plain = seqkern.to_torch(model)  # plain[0] is a torch.nn.LSTM around the same parameters
    """
    return _swap(model, inplace, TORCH_CLASSES, "seqkern.to_torch")


def _swap(model, inplace, classes, function):
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} takes a torch.nn.Module, got {type(model).__name__}")
    if not inplace:
        model = _Copier(model).module(model)
    subclasses = set()
    for module in model.modules():
        cls = type(module)
        if cls in classes:
            module.__class__ = classes[cls]
        elif parametrize.is_parametrized(module) and cls.__base__ in classes:
            # torch gives each parametrized module a class of its own, with a property for each
            # parametrized tensor.
            members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(cls.__name__, (classes[cls.__base__],), members)
        else:
            # seqkern's classes are subclasses of torch.nn's: no reason to warn.
            arrived = classes is SEQKERN_CLASSES and isinstance(module, tuple(TORCH_CLASSES))
            if isinstance(module, tuple(classes)) and not arrived:
                subclasses.add(f"{cls.__module__}.{cls.__qualname__}")
            continue
        if classes is TORCH_CLASSES and cls in classes and isinstance(module, nn.RNNBase):
            # On a GPU torch wants the weights in one block, or it warns at every call.
            module._init_flat_weights()
    if subclasses:
        warnings.warn(
            f"{function} left these subclasses as they are: {', '.join(sorted(subclasses))}",
            stacklevel=3,
        )
    return model


class _Copier:
    """Copies a tree of modules around the same tensors."""

    def __init__(self, model: nn.Module):
        self._tree = {id(module) for module in model.modules()}
        self._copies = {}

    def module(self, module: nn.Module) -> nn.Module:
        """The one copy of a module of the tree."""
        if id(module) not in self._tree or isinstance(module, torch.jit.ScriptModule):
            return module
        if id(module) in self._copies:
            return self._copies[id(module)]
        duplicate = self._copies[id(module)] = type(module).__new__(type(module))
        for name, value in vars(module).items():
            # torch's own copies are not compiled either: this calls the original.
            if name != "_compiled_call_impl":
                duplicate.__dict__[name] = self.value(value)
        dynamo = sys.modules.get("torch._dynamo.eval_frame")
        if dynamo is not None and isinstance(duplicate, dynamo.OptimizedModule):
            duplicate._initialize()  # binds the compiled function to the copy
        if isinstance(duplicate, torch.fx.GraphModule):
            duplicate.graph = copy.deepcopy(module.graph)  # compiles the copy's own class
        return duplicate

    def value(self, value):
        """An attribute for the copy: modules of the tree become their copies, wherever a plain
        container, a bound method or a hook holds them."""
        kind = type(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if kind in (list, tuple, set):
            return kind(self.value(v) for v in value)
        if kind in (dict, collections.OrderedDict):
            return kind((k, self.value(v)) for k, v in value.items())
        if kind is types.MethodType:
            return types.MethodType(value.__func__, self.value(value.__self__))
        if kind is functools.partial:
            arguments, keywords = self.value(value.args), self.value(value.keywords)
            return functools.partial(self.value(value.func), *arguments, **keywords)
        if kind is _WrappedHook:
            return _WrappedHook(
                self.value(value.hook), self.value(value.module()) if value.with_module else None
            )
        return value
