"""What Dynamo (``torch.compile``, ``torch.export``) has to be told, without importing it: that takes as long
as torch itself.

Dynamo breaks the graph on every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` unless ``torch._dynamo.config.allow_rnn``
is set. seqkern's layers are subclasses of these, as programs ask with ``isinstance`` whether a state has a c;
and they compile, as torch's do not (its LSTM has no gradient then). So the setting is made for them alone.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys

__all__ = ["accept", "after_import"]


def accept(layers: type) -> None:
    """Lets Dynamo trace instances of the class, whatever they are besides."""

    def install(builder):
        original = builder.VariableBuilder.wrap_module

        @functools.wraps(original)
        def wrap_module(self, value):
            if not isinstance(value, layers):
                return original(self, value)
            with builder.config.patch(allow_rnn=True):
                return original(self, value)

        builder.VariableBuilder.wrap_module = wrap_module

    after_import("torch._dynamo.variables.builder", install)


def after_import(name: str, call):
    """Calls a function with a module, now or once that is imported. Returns what gives it up."""
    if name in sys.modules:
        call(sys.modules[name])
        return lambda: None
    finder = _Finder(name, call)
    sys.meta_path.insert(0, finder)
    return finder.remove


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, call):
        self._name, self._call = name, call

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname, path, target=None):
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.remove()
            self._call(module)

        spec.loader.exec_module = exec_module
        return spec
