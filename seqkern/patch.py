"""``seqkern.patch``: ``torch.nn.LSTM(...)`` and its like build seqkern's modules.

``torch.nn``'s classes stay the objects that they are, so that it does not matter which module
imported them, when and by what name: what changes is what their constructors make. While the patch
is on, seqkern's classes are their subclasses, so that ``isinstance(module, nn.LSTM)`` is true.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import threading

from seqkern.convert import SEQKERN_CLASSES

__all__ = ["patch"]

_lock = threading.RLock()
_started = 0
_undo = contextlib.ExitStack()


class patch(contextlib.ContextDecorator):
    """While it is on, ``torch.nn.LSTM``, ``GRU``, ``RNN`` and their cells build seqkern's modules,
    whoever calls them. A context manager, a decorator, or a switch with ``start`` and ``stop``.

    Patches may be nested, and one may be entered several times; the last one out undoes it for the
    whole process. Modules built in a patch are seqkern's and stay so. Others are not touched
    (``seqkern.convert`` is for them), nor are subclasses of ``torch.nn``'s classes, whenever they
    were defined. ``isinstance(module, nn.LSTM)`` is true for seqkern's LSTMs while a patch is on
    and false otherwise, for ``torch.compile`` refuses what is an ``nn.LSTM``: a patch sets
    ``torch._dynamo.config.allow_rnn`` and restores it.

    Example::

        with seqkern.patch():
            model = torch.nn.ModuleList([torch.nn.LSTM(3, 4)])  # it is a seqkern.LSTM
    """

    def __init__(self):
        self._depth = 0

    def start(self) -> patch:
        """Switches the patch on; returns itself."""
        global _started, _undo
        with _lock:
            if _started == 0:
                _undo = _install()
            _started += 1
            self._depth += 1
        return self

    def stop(self) -> None:
        """Takes one ``start`` back. RuntimeError where there was none."""
        global _started
        with _lock:
            if self._depth == 0:
                raise RuntimeError("seqkern.patch: stop() without start()")
            self._depth -= 1
            _started -= 1
            if _started == 0:
                _undo.close()

    __enter__ = start

    def __exit__(self, *error) -> None:
        self.stop()


def _install() -> contextlib.ExitStack:
    """Switches everything; closing what it returns takes it back."""
    undo = contextlib.ExitStack()
    try:
        for torchs, ours in SEQKERN_CLASSES.items():
            undo.callback(setattr, ours, "__bases__", ours.__bases__)
            ours.__bases__ = (*ours.__bases__, torchs)
            undo.callback(setattr, torchs, "__init__", torchs.__init__)
            torchs.__init__ = _constructor(torchs, ours)
        _allow_rnn(undo)
    except BaseException:
        undo.close()
        raise
    return undo


def _constructor(torchs: type, ours: type):
    """An ``__init__`` for torch's class that makes its instances ours."""
    original = torchs.__init__

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        if type(self) is torchs:
            self.__class__ = ours
            ours.__init__(self, *args, **kwargs)
        elif isinstance(self, ours):  # its super().__init__ came here: one further up
            super(torchs, self).__init__(*args, **kwargs)
        else:
            original(self, *args, **kwargs)

    return __init__


# ---- torch._dynamo.config.allow_rnn, without importing Dynamo: that takes as long as torch ----

_CONFIG = "torch._dynamo.config"


def _allow_rnn(undo: contextlib.ExitStack) -> None:
    """Sets it, now or once it is there; ``undo`` gets what restores it. (No generator: one that is
    left suspended when Python ends is closed after the modules are gone.)"""

    def allow(config):
        undo.callback(setattr, config, "allow_rnn", config.allow_rnn)
        config.allow_rnn = True

    if _CONFIG in sys.modules:
        allow(sys.modules[_CONFIG])
        return
    finder = _AfterImport(_CONFIG, allow)
    sys.meta_path.insert(0, finder)
    undo.callback(lambda: finder in sys.meta_path and sys.meta_path.remove(finder))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module once that has been imported."""

    def __init__(self, name: str, call):
        self._name, self._call = name, call

    def find_spec(self, fullname, path, target=None):
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self._call(module)

        spec.loader.exec_module = exec_module
        return spec
