"""Drop-in replacements for ``torch.nn.LSTM``, ``GRU``, ``RNN`` and their cells.

Constructors, parameters, initial values, results and errors are torch's; ``torch.nn``'s
documentation holds, and its formulas are the source of the arithmetic. Each class is a subclass of
torch's, for programs that ask with ``isinstance``.

This file knows parameters, batches and PackedSequence; all layers are one call into
``seqkern.functional``. ``torch.jit.script`` and ``torch.jit.trace`` take torch's own functions
instead, in modules alone or nested: the overloads below and the branches on
``torch.jit.is_scripting()`` are for the former.
"""

import functools

import torch
from torch import Tensor, nn
from torch._jit_internal import _overload_method
from torch.fx import Proxy
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.nn.utils.rnn import PackedSequence

from seqkern import dynamo, onnx
from seqkern.functional import gru_cell, layers, lstm_cell, plain_layers, plain_step, rnn_cell
from seqkern.lengths import checked, layout
from seqkern.scripted import ScriptedLSTM, ScriptedOneState, scripted_cell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

# Looked up once: torch._VF resolves names in Python, which a cell would pay at every step.
_torch_lstm_cell = torch._VF.lstm_cell
_torch_gru_cell = torch._VF.gru_cell
_torch_tanh_cell = torch._VF.rnn_tanh_cell
_torch_relu_cell = torch._VF.rnn_relu_cell
_tracing_state = torch._C._get_tracing_state

_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
_TORCH_FUNCTIONS = {
    "LSTM": torch._VF.lstm,
    "GRU": torch._VF.gru,
    "RNN_TANH": torch._VF.rnn_tanh,
    "RNN_RELU": torch._VF.rnn_relu,
}


class _Layers(nn.RNNBase):
    """What LSTM, GRU and RNN share. ``states`` is (h_0, c_0) or (h_0,), each [L*D, B, ...] in
    sorted order, or None."""

    # What forward keeps for backward; in a converted module this is its only place.
    save = "gates"

    def __init__(self, mode, *args, save="gates", **kwargs):
        if save not in ("gates", "states"):
            raise ValueError(f"save must be 'gates' or 'states', got {save!r}")
        # Not torch.nn.LSTM's and its like, which come next and take other arguments.
        nn.RNNBase.__init__(self, mode, *args, **kwargs)
        if save != "gates":
            self.save = save

    def extra_repr(self) -> str:
        own = "" if self.save == "gates" else f", save={self.save!r}"
        return super().extra_repr() + own

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the parameters as they lie."""

    # Whether someone has set _flat_weights to other tensors than the parameters, as programs do
    # that want torch's forward to use those.
    _flat_weights_given = False

    def __setattr__(self, name, value) -> None:
        super().__setattr__(name, value)
        if name == "_flat_weights":
            named = [getattr(self, n, None) for n in self._flat_weights_names]
            given = len(value) != len(named) or any(
                a is not b for a, b in zip(value, named, strict=True)
            )
            if given != self._flat_weights_given:
                self._flat_weights_given = given

    def _forward(self, input, states, lengths):
        """torch's forward: output and the tuple of final states."""
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError(
                    "lengths must be None with a PackedSequence, which has its own, got lengths"
                )
            return self._packed(input, states)
        batched = input.dim() == 3  # first: the error of what is no tensor is torch's
        shape = input.shape  # asked once: each question is a tenth of a microsecond
        weights = self._weights()
        if not self._fits(input, shape, states, weights):
            self._check(input, states)
        if lengths is not None:
            return self._with_lengths(input, states, lengths, weights)
        if shape[1 if batched and self.batch_first else 0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if not batched:
            time_major = input.unsqueeze(1)
            states = states and tuple([s.unsqueeze(1) for s in states])
        else:
            time_major = input.transpose(0, 1) if self.batch_first else input

        output, states = self._run(time_major, None, states, weights)
        if not batched:
            return output.squeeze(1), tuple([s.squeeze(1) for s in states])
        return (output.transpose(0, 1) if self.batch_first else output), states

    def _with_lengths(self, input, states, lengths, weights):
        """The same for a padded batch that is run as a ragged one."""
        if input.dim() != 3:
            raise ValueError(
                f"lengths must be None with unbatched input [T, I], got input {list(input.shape)}"
            )
        if _needs_torch(weights[0]):
            raise RuntimeError(
                "lengths can't be taken by torch.jit.trace and call_for_per_sample_grads, for which "
                "torch's own functions run: use torch.nn.utils.rnn.pack_padded_sequence"
            )
        steps, batch = input.shape[1::-1] if self.batch_first else input.shape[:2]
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if onnx.exporting():  # ONNX's operators take lengths in place of batch_sizes
            time_major = input.transpose(0, 1) if self.batch_first else input
            output, states = self._run(time_major, checked(lengths, steps, batch), states, weights)
            return (output.transpose(0, 1) if self.batch_first else output), states
        rows = layout(lengths, input, self.batch_first)
        states = self._zeros(input, batch) if states is None else rows.sort(states)
        output, states = self._run(rows.pack(input), rows.batch_sizes, states, weights)
        return rows.unpack(output, input), rows.unsort(states)

    def _packed(self, packed, states):
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        onnx.refuse_packed()
        weights = self._weights()
        if not torch.compiler.is_compiling():
            # A trace keeps it as a tensor, not as a number.
            batch = batch_sizes[0] if _tracing_state() else int(batch_sizes[0])
        # Sizes that are no tensor's value make no guess about values; the ops compare.
        elif sorted_indices is not None:
            batch = sorted_indices.size(0)
        elif states is not None:
            batch = states[0].size(1)
        else:  # as a shape: where Dynamo may break the graph, reading a number makes it warn
            batch = batch_sizes.new_zeros(1).repeat_interleave(batch_sizes[:1]).size(0)
        if states is None:
            states = self._zeros(input, batch)
        elif sorted_indices is not None:
            states = tuple([s.index_select(1, sorted_indices) for s in states])
        self._update_flat_weights()
        self.check_forward_args(input, self._hidden(states), (batch,))
        output, states = self._run(input, batch_sizes, states, weights)
        if unsorted_indices is not None:
            states = tuple([s.index_select(1, unsorted_indices) for s in states])
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), states

    def _run(self, input, batch_sizes, states, weights):
        """The layers one after the other, on time-major input and sorted states [L*D, B, ...], which
        are zeros where there are none and the input is padded."""
        if _needs_torch(weights[0]) or not isinstance(input, Tensor):
            output, *states = self._run_torch(input, batch_sizes, states, weights)
            return output, tuple(states)
        cell = _CELLS[self.mode]
        dropout = self.dropout if self.training else 0.0
        rest = (weights, self.num_layers, dropout, self.save)
        directions = 2 if self.bidirectional else 1
        try:
            results = plain_layers(cell, input, batch_sizes, *_h_and_c(states), *rest, directions)
            if results is None:
                states = states or self._zeros(input, input.size(1))
                input = input.contiguous()  # as torch's: it may change before backward
                results = layers(cell, input, batch_sizes, *_h_and_c(states), *rest)
            output, h_n, c_n = results
            return output, (h_n, c_n) if cell == "lstm" else (h_n,)
        except (AttributeError, RuntimeError):
            if _mixed(input, *(states or ()), *weights):
                self._run_torch(input, batch_sizes, states, weights)
            raise

    def _run_torch(self, input, batch_sizes, states, weights):
        """torch's own layers on the same arguments: output, h_n[, c_n]. Called for its error too,
        where dtypes or devices are mixed or a parameter is None."""
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if states is None:
            states = self._zeros(input, input.size(1))
        if batch_sizes is None:
            arguments = (input, self._hidden(states), weights, *options, False)
        else:
            arguments = (input, batch_sizes, self._hidden(states), weights, *options)
        return _TORCH_FUNCTIONS[self.mode](*arguments)

    def _weights(self) -> list[Tensor]:
        """The parameters in torch's flat order, by name at every call: users swap them in many
        ways."""
        if self._flat_weights_given:
            self._update_flat_weights()
            return self._flat_weights
        registered = self._parameters
        return [
            weight if (weight := registered.get(name)) is not None else getattr(self, name)
            for name in self._flat_weights_names
        ]

    def _zeros(self, input, batch: int) -> tuple[Tensor, ...]:
        rows = self.num_layers * 2 if self.bidirectional else self.num_layers
        return (torch.zeros(rows, batch, self.hidden_size, dtype=input.dtype, device=input.device),)

    def _state_widths(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def _fits(self, input, shape, states, weights) -> bool:
        """Whether padded arguments are plainly what they should be; if not, _check has the word."""
        dim = len(shape)
        if dim not in (2, 3) or shape[-1] != self.input_size or input.dtype != weights[0].dtype:
            return False
        if states is None:
            return True
        batch = () if dim == 2 else (shape[0 if self.batch_first else 1],)
        rows = self.num_layers * 2 if self.bidirectional else self.num_layers
        for state, width in zip(states, self._state_widths(), strict=True):
            if state.dim() != dim or state.shape != (rows, *batch, width):
                return False
        return True

    def _check(self, input, states) -> None:
        """torch's checks of padded arguments in torch's order; returns where torch goes on, as
        under autocast."""
        self._update_flat_weights()
        dim = input.dim()
        if dim not in (2, 3):
            name = self.mode.partition("_")[0]
            word = " tensor" if name == "RNN" else ""
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dim}D{word} instead")
        kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
        if states is not None and any(s.dim() != dim for s in states):
            raise RuntimeError(self._wrong_rank(states).format(kind=kind, dim=dim))
        if dim == 2:
            input = input.unsqueeze(0 if self.batch_first else 1)
            states = states and tuple(s.unsqueeze(1) for s in states)
        if states is None:
            self.check_input(input, None)
        else:
            self.check_forward_args(input, self._hidden(states), None)

    @staticmethod
    def _hidden(states):
        """The states as torch's methods take them."""
        return states[0]

    @staticmethod
    def _wrong_rank(states) -> str:
        (h_0,) = states
        return f"For {{kind}} input, hx should also be {{dim}}-D but got {h_0.dim()}-D tensor"


def _h_and_c(states) -> tuple[Tensor | None, Tensor | None]:
    if states is None:
        return None, None
    return states if len(states) == 2 else (states[0], None)


def _node(module: nn.Module, input: Proxy, hx, lengths=None) -> Proxy:
    """One node in a graph that torch.fx traces, which takes torch's modules for leaves by name."""
    tracer = input.tracer
    kwargs = {} if lengths is None else {"lengths": lengths}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), kwargs)


def _needs_torch(weight: Tensor) -> bool:
    """Whether torch's own functions have to run: torch.jit.trace records what others can load, and
    torch's per-sample gradients know no other functions. (Nor do objects in a tensor's place, with a
    __torch_function__ of their own.)"""
    return type(weight) is ExpandedWeight or _tracing_state() is not None


def _mixed(input: Tensor, *others: Tensor | None) -> bool:
    return any(t is None or t.dtype != input.dtype or t.device != input.device for t in others)


dynamo.accept(_Layers)


class LSTM(_Layers, ScriptedLSTM, nn.LSTM):
    """``torch.nn.LSTM`` on seqkern's kernels: same constructor, parameters, results and errors.

    ``LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None, *, save="gates")``; with save
    ``"states"`` backward computes the gates again instead of keeping them: less memory, more time.

    ``forward(input, hx=None, lengths=None)`` takes input ``[T, B, I]`` (``[B, T, I]`` with batch_first,
    ``[T, I]`` unbatched) or a PackedSequence, and hx = (h_0 ``[L*D, B, P or H]``, c_0
    ``[L*D, B, H]``), zeros by default. It returns output ``[T, B, D*(P or H)]`` (or as the input came) and (h_n,
    c_n), shaped as hx. float32, float64, bfloat16 or float16. ValueError or RuntimeError as torch
    raises them for arguments that do not fit.

    With lengths ``[B]`` (integers, a tensor or a list, unsorted, 0 allowed) sequence b of a padded batch ends
    after its first ``lengths[b]`` steps: no work is done on padding, output is zero there, and each final
    state is that of its sequence's own end (hx for an empty one). ValueError where lengths do not fit.

    Example::

        lstm = seqkern.LSTM(10, 20, num_layers=2)
        output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        output.shape, h_n.shape  # [5, 3, 20], [2, 3, 20]
    """

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    @_overload_method
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        pass

    @_overload_method
    def forward(  # noqa: F811
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        pass

    def forward(self, input, hx=None, lengths=None):  # noqa: F811
        if torch.jit.is_scripting():
            if lengths is not None:
                raise ValueError("lengths must be None in TorchScript: pack the sequences instead")
            if isinstance(input, PackedSequence):
                return self._scripted_packed(input, hx)
            else:
                return self._scripted(input, hx)
        else:
            if isinstance(input, Proxy):
                return _node(self, input, hx, lengths)
            if hx is not None and not (type(hx) is tuple and len(hx) == 2):
                hx = _pair(hx, "lstm")
            return self._forward(input, hx, lengths)

    def _state_widths(self) -> tuple[int, ...]:
        return self.proj_size or self.hidden_size, self.hidden_size

    def _zeros(self, input, batch: int) -> tuple[Tensor, ...]:
        (c_0,) = super()._zeros(input, batch)
        if self.proj_size == 0:
            return c_0, c_0
        return c_0.new_zeros(c_0.size(0), batch, self.proj_size), c_0

    @staticmethod
    def _hidden(states):
        return states

    @staticmethod
    def _wrong_rank(states) -> str:
        h_0, c_0 = states
        return (
            "For {kind} input, hx and cx should also be {dim}-D "
            f"but got ({h_0.dim()}-D, {c_0.dim()}-D) tensors"
        )


def _pair(hx, function: str) -> tuple[Tensor, Tensor]:
    """(h, c) from another sequence of two; errors as with torch's function of that name."""
    if isinstance(hx, Tensor):
        raise TypeError(f"{function}() takes hx as a tuple (h, c), got one tensor")
    if len(hx) != 2 and not (len(hx) < 2 and function == "lstm"):
        raise RuntimeError(f"{function} expects two hidden states")
    return hx[0], hx[1]


class GRU(_Layers, ScriptedOneState, nn.GRU):
    """``torch.nn.GRU`` on seqkern's kernels: same constructor, parameters, results and errors.

    ``GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, save="gates")``, save as in ``seqkern.LSTM``.

    ``forward(input, hx=None, lengths=None)`` takes input ``[T, B, I]`` (``[B, T, I]`` with batch_first,
    ``[T, I]`` unbatched) or a PackedSequence, and hx = h_0 ``[L*D, B, H]``, zeros by default. It
    returns output ``[T, B, D*H]`` (or as the input came) and h_n, shaped as h_0. float32, float64, bfloat16
    or float16. ValueError or RuntimeError as torch raises them for arguments that do not fit.

    With lengths ``[B]`` (integers, a tensor or a list, unsorted, 0 allowed) sequence b of a padded batch ends
    after its first ``lengths[b]`` steps: no work is done on padding, output is zero there, and each final
    state is that of its sequence's own end (hx for an empty one). ValueError where lengths do not fit.

    Example::

        gru = seqkern.GRU(10, 20, bidirectional=True)
        output, h_n = gru(torch.randn(5, 3, 10))
        output.shape, h_n.shape  # [5, 3, 40], [2, 3, 20]
    """

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError(_NO_PROJECTION)
        super().__init__("GRU", *args, **kwargs)

    @_overload_method
    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        pass

    @_overload_method
    def forward(  # noqa: F811
        self, input: PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]:
        pass

    def forward(self, input, hx=None, lengths=None):  # noqa: F811
        if torch.jit.is_scripting():
            if lengths is not None:
                raise ValueError("lengths must be None in TorchScript: pack the sequences instead")
            if isinstance(input, PackedSequence):
                return self._scripted_packed(input, hx)
            else:
                return self._scripted(input, hx)
        else:
            if isinstance(input, Proxy):
                return _node(self, input, hx, lengths)
            output, states = self._forward(input, None if hx is None else (hx,), lengths)
            return output, states[0]


_NO_PROJECTION = "proj_size argument is only supported for LSTM, not RNN or GRU"


class RNN(_Layers, ScriptedOneState, nn.RNN):
    """``torch.nn.RNN`` on seqkern's kernels: same constructor, parameters, results and errors.

    ``RNN(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, device=None, dtype=None, *, save="gates")``; nonlinearity is ``'tanh'``
    or ``'relu'``. save means nothing here: an RNN has no gates to keep.

    ``forward(input, hx=None, lengths=None)`` takes input ``[T, B, I]`` (``[B, T, I]`` with batch_first,
    ``[T, I]`` unbatched) or a PackedSequence, and hx = h_0 ``[L*D, B, H]``, zeros by default. It
    returns output ``[T, B, D*H]`` (or as the input came) and h_n, shaped as h_0. float32, float64, bfloat16
    or float16. ValueError or RuntimeError as torch raises them for arguments that do not fit.

    With lengths ``[B]`` (integers, a tensor or a list, unsorted, 0 allowed) sequence b of a padded batch ends
    after its first ``lengths[b]`` steps: no work is done on padding, output is zero there, and each final
    state is that of its sequence's own end (hx for an empty one). ValueError where lengths do not fit.

    Example::

        rnn = seqkern.RNN(10, 20, nonlinearity="relu")
        output, h_n = rnn(torch.randn(5, 3, 10))
        output.shape, h_n.shape  # [5, 3, 20], [1, 3, 20]
    """

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError(_NO_PROJECTION)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)

    @_overload_method
    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        pass

    @_overload_method
    def forward(  # noqa: F811
        self, input: PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]:
        pass

    def forward(self, input, hx=None, lengths=None):  # noqa: F811
        if torch.jit.is_scripting():
            if lengths is not None:
                raise ValueError("lengths must be None in TorchScript: pack the sequences instead")
            if isinstance(input, PackedSequence):
                return self._scripted_packed(input, hx)
            else:
                return self._scripted(input, hx)
        else:
            if isinstance(input, Proxy):
                return _node(self, input, hx, lengths)
            output, states = self._forward(input, None if hx is None else (hx,), lengths)
            return output, states[0]


class _Cell(nn.RNNCellBase):
    """What the cells share. ``states`` is (h, c), (h,) or None."""

    _no_states = (None,)  # an operator's state of zeros

    # Not torch.nn.LSTMCell's and its like, which come next and take other arguments.
    _init = nn.RNNCellBase.__init__

    def _step(self, cell: str, function, torch_function, input: Tensor, states):
        """The next states as ``function`` of seqkern.functional returns them. Plain arguments take
        a shorter way, as a step takes but microseconds."""
        if isinstance(input, Tensor) and input.dim() == 2 and _tracing_state() is None:
            get = self._parameters.get
            weights = get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh")
            if weights[0] is not None and weights[1] is not None:
                try:
                    new = plain_step(cell, input, *(states or self._no_states), *weights)
                    if new is not None:
                        return new
                except RuntimeError:
                    pass  # what does not fit is told apart below
        if input.dim() != 2:
            return self._unbatched(function, torch_function, input, states)
        try:
            return self._batched(function, torch_function, input, states)
        except (AttributeError, RuntimeError):
            self._check_ranks(input, states)
            raise

    def _batched(self, function, torch_function, input: Tensor, states):
        if states is None:
            states = self._zeros(input)
        weights = self._weights()
        # torch takes cells without units; the kernels have nothing to do for them.
        if _needs_torch(weights[0]) or self.hidden_size == 0 or not isinstance(input, Tensor):
            return torch_function(input, states if len(states) == 2 else states[0], *weights)
        try:
            return function(input, *states, *weights)
        except RuntimeError:
            # Arguments that do not fit: the error is torch's.
            torch_function(input, states if len(states) == 2 else states[0], *weights)
            raise

    def _unbatched(self, function, torch_function, input: Tensor, states):
        self._check_ranks(input, states)
        if states is not None:
            states = tuple([s.unsqueeze(0) for s in states])
        new = self._batched(function, torch_function, input.unsqueeze(0), states)
        return new.squeeze(0) if isinstance(new, Tensor) else tuple([s.squeeze(0) for s in new])

    def _weights(self) -> list[Tensor | None]:
        """The parameters, by name at every call: users swap them in many ways."""
        registered = self._parameters
        return [
            weight if (weight := registered.get(name)) is not None else getattr(self, name)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]

    def _zeros(self, input: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device),
        )

    def _check_ranks(self, input: Tensor, states) -> None:
        name = next(c.__name__ for c in type(self).__mro__ if c.__module__ == __name__)
        tensors = [("input", input)]
        if len(states or ()) == 2:
            tensors += [("hx[0]", states[0]), ("hx[1]", states[1])]
        elif states:
            tensors += [("hidden", states[0])]
        for argument, tensor in tensors:
            if tensor.dim() not in (1, 2):
                raise ValueError(
                    f"{name}: Expected {argument} to be 1D or 2D, got {tensor.dim()}D instead"
                )


class LSTMCell(_Cell, nn.LSTMCell):
    """``torch.nn.LSTMCell`` on seqkern's kernels: same constructor, parameters, results and errors.

    ``LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)``; ``forward(input,
    hx=None)`` takes input ``[B, I]`` or ``[I]`` and hx = (h, c), each ``[B, H]`` or ``[H]``, zeros
    by default, and returns the next (h, c). ValueError or RuntimeError as torch raises them for
    arguments that do not fit.

    Example::

        cell = seqkern.LSTMCell(10, 20)
        h, c = cell(torch.randn(3, 10))
        h, c = cell(torch.randn(3, 10), (h, c))
    """

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        self._init(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():
            return self._scripted(input, hx)
        else:
            if isinstance(input, Proxy):
                return _node(self, input, hx)
            if hx is not None and not (type(hx) is tuple and len(hx) == 2):
                hx = _pair(hx, "lstm_cell")
            return self._step("lstm", lstm_cell, _torch_lstm_cell, input, hx)

    _scripted = scripted_cell(nn.LSTMCell)

    _no_states = (None, None)

    def _zeros(self, input: Tensor) -> tuple[Tensor, ...]:
        return super()._zeros(input) * 2


class GRUCell(_Cell, nn.GRUCell):
    """``torch.nn.GRUCell`` on seqkern's kernels: same constructor, parameters, results and errors.

    ``GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)``; ``forward(input,
    hx=None)`` takes input ``[B, I]`` or ``[I]`` and hx ``[B, H]`` or ``[H]``, zeros by default, and
    returns the next h. ValueError or RuntimeError as torch raises them for arguments that do not
    fit.

    Example::

        cell = seqkern.GRUCell(10, 20)
        h = cell(torch.randn(3, 10))
        h = cell(torch.randn(3, 10), h)
    """

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        self._init(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():
            return self._scripted(input, hx)
        else:
            if isinstance(input, Proxy):
                return _node(self, input, hx)
            return self._step(
                "gru", gru_cell, _torch_gru_cell, input, None if hx is None else (hx,)
            )

    _scripted = scripted_cell(nn.GRUCell)


class RNNCell(_Cell, nn.RNNCell):
    """``torch.nn.RNNCell`` on seqkern's kernels: same constructor, parameters, results and errors.

    ``RNNCell(input_size, hidden_size, bias=True, nonlinearity='tanh', device=None, dtype=None)``,
    nonlinearity ``'tanh'`` or ``'relu'``; ``forward(input, hx=None)`` takes input ``[B, I]`` or
    ``[I]`` and hx ``[B, H]`` or ``[H]``, zeros by default, and returns the next h. ValueError or
    RuntimeError as torch raises them for arguments that do not fit.

    Example::

        cell = seqkern.RNNCell(10, 20, nonlinearity="relu")
        h = cell(torch.randn(3, 10))
        h = cell(torch.randn(3, 10), h)
    """

    __constants__ = nn.RNNCell.__constants__

    def __init__(
        self, input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None
    ):
        self._init(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():
            return self._scripted(input, hx)
        else:
            if isinstance(input, Proxy):
                return _node(self, input, hx)
            states = None if hx is None else (hx,)
            if self.nonlinearity == "tanh":
                return self._step("rnn_tanh", rnn_cell, _torch_tanh_cell, input, states)
            if self.nonlinearity == "relu":
                return self._step("rnn_relu", _relu_cell, _torch_relu_cell, input, states)
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")

    _scripted = scripted_cell(nn.RNNCell)


_relu_cell = functools.partial(rnn_cell, nonlinearity="relu")
