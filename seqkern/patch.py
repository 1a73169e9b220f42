"""``seqkern.patch``: ``torch.nn.LSTM(...)`` and its like build seqkern's modules.

``torch.nn``'s classes stay the objects that they are, so that it does not matter which module
imported them, when and by what name: what changes is what their constructors make.
"""

from __future__ import annotations

import contextlib
import functools
import threading

from torch.nn.utils import parametrize

from seqkern.convert import SEQKERN_CLASSES, TORCH_CLASSES
from seqkern.imports import after_import

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
    were defined. ``torch.compile(fullgraph=True)`` takes these and modules built before too: a patch
    sets ``torch._dynamo.config.allow_rnn`` and restores it. ``type(module)`` is seqkern's class always;
    only ``torch.ao``, whose quantization and pruning go by it, is told torch's while a patch is on.

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
            undo.callback(setattr, torchs, "__init__", torchs.__init__)
            torchs.__init__ = _constructor(torchs, ours)
        for names, tell in (
            (r"torch\._dynamo\.config", _allow_rnn),
            # parametrize too, for those who take type_before_parametrizations from there.
            (r"torch\.ao\..*|torch\.nn\.utils\.parametrize", _answer_as_torch),
        ):
            undo.callback(after_import(names, functools.partial(tell, undo)))
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
        else:
            original(self, *args, **kwargs)

    return __init__


def _allow_rnn(undo: contextlib.ExitStack, config) -> None:
    undo.callback(setattr, config, "allow_rnn", config.allow_rnn)
    config.allow_rnn = True


class _AnswersAsTorch(type):
    """Makes of a class what ``type`` is, but for the type of seqkern's modules."""

    def __call__(cls, *args, **kwargs):
        kind = type(*args, **kwargs)
        return TORCH_CLASSES.get(kind, kind)

    def __instancecheck__(cls, thing) -> bool:
        return isinstance(thing, type)


class _Type(metaclass=_AnswersAsTorch):
    pass


_type_before_parametrizations = parametrize.type_before_parametrizations


@functools.wraps(_type_before_parametrizations)
def _answers_as_torch(module):
    kind = _type_before_parametrizations(module)
    # Who has imported it from parametrize meanwhile keeps it.
    return TORCH_CLASSES.get(kind, kind) if _started else kind


def _answer_as_torch(undo: contextlib.ExitStack, module) -> None:
    """Quantization and pruning choose by ``type(module)``, which they ask in dozens of places and functions
    that programs have imported long ago. A global of that name comes before the builtin; a module that has
    one of its own keeps it. The other way is ``type_before_parametrizations``, which looks at bases."""
    if "type" not in vars(module):
        module.type = _Type
        undo.callback(vars(module).pop, "type", None)
    if "type_before_parametrizations" in vars(module):
        module.type_before_parametrizations = _answers_as_torch
        undo.callback(
            setattr, module, "type_before_parametrizations", _type_before_parametrizations
        )
