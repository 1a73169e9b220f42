"""Inference one time step at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkern.modules import _CELLS
from seqkern.ops import CUDA_KERNELS, PACK, STREAM_STEP

__all__ = ["Stream"]

_SINGLE = {"LSTMCell": "lstm", "GRUCell": "gru"}


class _Layer:
    """One layer's packed weights, and its state and output for the batch size in use."""

    def __init__(self, cell: str, w_ih: Tensor, w_hh: Tensor, biases):
        self.op = STREAM_STEP[cell]
        self.has_c = cell == "lstm"
        self.hidden_size = w_hh.size(1)
        self.w_ih, self.w_hh, self.vector_bytes = PACK[cell](w_ih, w_hh)
        self.b_ih, self.b_hh = (b.clone() for b in biases) if biases else (None, None)
        self.h = self.c = self.output = None

    def allocate(self, batch: int) -> None:
        self.h = self.w_hh.new_zeros(batch, self.hidden_size)
        self.c = torch.zeros_like(self.h) if self.has_c else None
        self.output = torch.empty_like(self.h)


class Stream:
    """A recurrent module that is fed one time step at a time and keeps its state.

    ``Stream(module)`` takes an LSTM, GRU or RNN of seqkern's or torch.nn's, of any number of
    layers, or a cell. It packs a copy of the weights for the kernels once; ``pack()`` does so
    again after they have changed or moved. Steps compute as in eval mode and without gradients, and
    after the first one nothing is allocated (on CUDA: nothing that stays).

    float32 and float64, on the CPU and, where the build has kernels for them, on CUDA devices; the
    state is on the weights' device. ValueError for a bidirectional module, a projection, another
    dtype or another device; TypeError for other modules.

    Example::

        stream = seqkern.Stream(seqkern.GRU(10, 20, num_layers=2))
        for x in torch.randn(5, 3, 10):
            y = stream.step(x)  # [3, 20]
        stream.reset(torch.tensor([True, False, False]))  # the first row begins anew
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._shape = None
        self._layers = []
        self.pack()

    def step(self, input: Tensor) -> Tensor:
        """The next output ``[B, H]`` for input ``[B, I]``, or ``[H]`` for ``[I]``.

        The output is overwritten by the next step: clone it to keep it. The batch size is that of
        the first step since the last reset of all rows; then the state is zero. ValueError names
        what does not fit.
        """
        if input.shape != self._shape:
            self._start(input)
        with torch.no_grad():
            x = input if input.dim() == 2 else input.unsqueeze(0)
            if not x.is_contiguous():
                x = x.contiguous()
            for layer in self._layers:
                output = layer.output
                layer.op(
                    x,
                    layer.h,
                    layer.c,
                    layer.w_ih,
                    layer.w_hh,
                    layer.b_ih,
                    layer.b_hh,
                    output,
                    layer.vector_bytes,
                )
                x = output
        return x if input.dim() == 2 else x[0]

    @property
    def state(self):
        """A copy of the state, shaped as the module takes it: (h, c) for the LSTM, else h;
        ``[L, B, H]`` (``[B, H]`` for a cell; without B for unbatched steps), or None before the
        first step. May be set."""
        if self._shape is None:
            return None
        states = tuple(
            torch.stack(tensors)
            for tensors in zip(
                *([la.h, la.c] if la.has_c else [la.h] for la in self._layers), strict=True
            )
        )
        if len(self._shape) == 1:
            states = tuple(s.squeeze(1) for s in states)
        if self._is_cell:
            states = tuple(s.squeeze(0) for s in states)
        return states if len(states) == 2 else states[0]

    @state.setter
    def state(self, state) -> None:
        has_c = self._layers[0].has_c
        if has_c and not (isinstance(state, (tuple, list)) and len(state) == 2):
            raise ValueError(f"state must be (h, c), got {type(state).__name__}")
        states = tuple(state) if has_c else (state,)
        dim = states[0].dim() + self._is_cell
        if dim not in (2, 3):
            raise ValueError(
                f"state must be [L, B, H] ([B, H] for a cell) or without B, got {list(states[0].shape)}"
            )
        batch = states[0].size(-2) if dim == 3 else 1
        hidden = self._layers[0].hidden_size
        layers = len(self._layers)
        for tensor in states:
            expected = () if self._is_cell else (layers,)
            expected += (batch, hidden) if dim == 3 else (hidden,)
            if tensor.shape != expected:
                raise ValueError(f"state must be {list(expected)}, got {list(tensor.shape)}")
        self._allocate(batch, unbatched=dim == 2)
        for k, layer in enumerate(self._layers):
            for own, given in zip((layer.h, layer.c), states, strict=False):
                own.copy_(given.detach().reshape(layers, batch, hidden)[k])

    def reset(self, mask: Tensor | None = None) -> None:
        """Zero state for the rows where mask ``[B]`` (bool) is true; without a mask for all, and
        the next step may have another batch size."""
        if mask is None:
            self._shape = None
            return
        if self._shape is None:
            return
        batch = self._layers[0].h.size(0)
        if mask.dtype != torch.bool or mask.shape != (batch,):
            raise ValueError(
                f"mask must be a bool tensor of shape [{batch}], got {mask.dtype} "
                f"{list(mask.shape)}"
            )
        for layer in self._layers:
            layer.h[mask] = 0
            if layer.has_c:
                layer.c[mask] = 0

    def pack(self) -> None:
        """Takes over the module's weights as they are now; the state stays."""
        before, self._layers = self._layers, [_Layer(*given) for given in _weights(self.module)]
        self._is_cell = isinstance(self.module, nn.RNNCellBase)
        for layer, old in zip(self._layers, before, strict=False):
            layer.h, layer.c, layer.output = old.h, old.c, old.output

    def _start(self, input: Tensor) -> None:
        """The first step, or a wrong one."""
        size = self.module.input_size
        if input.dim() not in (1, 2) or input.size(-1) != size:
            raise ValueError(f"input must be [B, {size}] or [{size}], got {list(input.shape)}")
        if self._shape is not None:
            raise ValueError(
                f"input must be {list(self._shape)} as in the steps before, got "
                f"{list(input.shape)}: reset() starts anew"
            )
        self._allocate(input.size(0) if input.dim() == 2 else 1, unbatched=input.dim() == 1)

    def _allocate(self, batch: int, unbatched: bool) -> None:
        for layer in self._layers:
            layer.allocate(batch)
        size = self.module.input_size
        self._shape = torch.Size((size,) if unbatched else (batch, size))

    def __getstate__(self):
        # Packed weights belong to this machine's SIMD level.
        return {"module": self.module, "state": self.state}

    def __setstate__(self, saved):
        self.__init__(saved["module"])
        if saved["state"] is not None:
            self.state = saved["state"]


def _weights(module: nn.Module):
    """(cell, w_ih, w_hh, biases) of each layer."""
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        raise TypeError(f"Stream takes an LSTM, GRU or RNN, or a cell, got {type(module).__name__}")
    if getattr(module, "bidirectional", False):
        raise ValueError("Stream takes one direction: the other one begins at the sequence's end")
    if getattr(module, "proj_size", 0):
        raise ValueError(f"Stream takes no projection, got proj_size={module.proj_size}")
    if isinstance(module, nn.RNNBase):
        cell = _CELLS[module.mode]
        suffixes = [f"_l{k}" for k in range(module.num_layers)]
    else:
        nonlinearity = getattr(module, "nonlinearity", None)
        cell = (
            f"rnn_{nonlinearity}"
            if nonlinearity
            else "lstm"
            if module.weight_ih.size(0) == 4 * module.hidden_size
            else "gru"
        )
        suffixes = [""]
    for suffix in suffixes:
        w_ih, w_hh = (getattr(module, f"weight_{n}{suffix}").detach() for n in ("ih", "hh"))
        has_kernels = w_ih.is_cpu or (CUDA_KERNELS and w_ih.is_cuda)
        if not has_kernels or w_ih.dtype not in (torch.float32, torch.float64):
            devices = (
                "the CPU or CUDA" if CUDA_KERNELS else "the CPU (this build has no CUDA kernels)"
            )
            raise ValueError(
                f"Stream takes float32 or float64 weights on {devices}, got {w_ih.dtype} on "
                f"{w_ih.device}"
            )
        biases = (
            [getattr(module, f"bias_{n}{suffix}") for n in ("ih", "hh")] if module.bias else None
        )
        yield cell, w_ih, w_hh, biases and [b.detach() for b in biases]
