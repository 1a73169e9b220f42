"""Fused LSTM, GRU and RNN layers for PyTorch: drop-in replacements for those of ``torch.nn``.

>>> import torch, seqkern
>>> lstm = seqkern.LSTM(64, 128, num_layers=2)
>>> output, (h_n, c_n) = lstm(torch.randn(100, 8, 64))
"""

from seqkern import _build

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "convert",
    "cpu_capabilities",
    "cpu_capability",
    "diagnostics",
    "functional",
    "init",
    "last_output",
    "patch",
    "reference",
    "to_torch",
    "use_cpu_capability",
]

try:
    _build.load()
except ImportError:
    # `python -m seqkern doctor` imports this package too, and has to live to say what is wrong.
    if not _build.is_command():
        raise
else:
    from seqkern import (
        diagnostics,
        flops,  # noqa: F401
        functional,
        init,
        reference,
    )
    from seqkern.capability import cpu_capabilities, cpu_capability, use_cpu_capability
    from seqkern.convert import convert, to_torch
    from seqkern.lengths import last_output
    from seqkern.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
    from seqkern.patch import patch
    from seqkern.stream import Stream
