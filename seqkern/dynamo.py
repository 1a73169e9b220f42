"""What Dynamo and Inductor (``torch.compile``, ``torch.export``) have to be told.

Dynamo breaks the graph on every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` unless ``torch._dynamo.config.allow_rnn``
is set. seqkern's layers are subclasses of these, as programs ask with ``isinstance`` whether a state has a c;
and they compile, as torch's do not (its LSTM has no gradient then). So the setting is made for them alone.

Inductor calls operators that it does not know as they are, unless its ``implicit_fallbacks`` are off: then only
those of a list.
"""

from __future__ import annotations

import functools
import warnings

from seqkern.imports import after_import
from seqkern.ops import BACKWARD, FORWARD, STEP

__all__ = ["accept"]


def accept(layers: type) -> None:
    """Lets Dynamo trace instances of the class, whatever they are besides."""

    def install(builder):
        original = getattr(builder.VariableBuilder, "wrap_module", None)
        if original is None:  # a private name: without it only the graphs suffer
            warnings.warn(
                "seqkern does not know this version of Dynamo: torch.compile breaks the graph at its layers "
                "unless torch._dynamo.config.allow_rnn is set",
                stacklevel=2,
            )
            return

        @functools.wraps(original)
        def wrap_module(self, value):
            if not isinstance(value, layers):
                return original(self, value)
            with builder.config.patch(allow_rnn=True):
                return original(self, value)

        builder.VariableBuilder.wrap_module = wrap_module

    after_import(r"torch\._dynamo\.variables\.builder", install, once=True)


def _name_operators(lowering) -> None:
    names = getattr(lowering, "FALLBACK_ALLOW_LIST", None)
    if names is not None:  # private; by default nobody asks
        for operators in (FORWARD, BACKWARD, STEP):
            names.update(operator.name().partition(".")[0] for operator in operators.values())


after_import(r"torch\._inductor\.lowering", _name_operators, once=True)
