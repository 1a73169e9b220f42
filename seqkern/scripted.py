"""What ``torch.jit.script`` compiles for seqkern's layers: torch's own functions.

TorchScript cannot call the kernels through ``seqkern.functional``, so the modules' ``forward``
branches here while it is compiled. Methods of the classes below follow torch's ``forward`` in its
checks and in their order; the argument types are TorchScript's, hence one class for the cells with
one state and one for LSTM. What they repeat they must: TorchScript knows an overload by its class and
by its lines in the file, so neither a base class nor a shared function can hold it. T time steps, B batch, I input size, K = projected or hidden size, H
hidden size, L*D layers times directions.
"""

import types

import torch
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["ScriptedLSTM", "ScriptedOneState", "scripted_cell"]


def scripted_cell(torch_class: type):
    """The forward of a cell of torch.nn under another name: TorchScript goes by a function's."""
    forward = torch_class.forward
    return types.FunctionType(
        forward.__code__, forward.__globals__, "_scripted", forward.__defaults__
    )


class _Scripted(nn.RNNBase):
    def _scripted_input(self, input: Tensor) -> Tensor:
        """input with its batch dimension."""
        if input.dim() not in (2, 3):
            name, word = self.mode[:4], ""
            if name == "RNN_":
                name, word = "RNN", " tensor"
            raise ValueError(
                f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{word} instead"
            )
        if input.dim() == 2:
            input = input.unsqueeze(0 if self.batch_first else 1)
        return input

    def _scripted_zeros(self, input: Tensor, batch: int, width: int) -> Tensor:
        rows = self.num_layers * 2 if self.bidirectional else self.num_layers
        return torch.zeros(rows, batch, width, dtype=input.dtype, device=input.device)


class ScriptedOneState(_Scripted):
    """GRU and RNN."""

    def _scripted(self, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        """input [T, B, I], [B, T, I] or [T, I]; hx [L*D, B, H] or [L*D, H]."""
        dim = input.dim()
        batched = self._scripted_input(input)
        if hx is None:
            batch = batched.size(0) if self.batch_first else batched.size(1)
            hx = self._scripted_zeros(batched, batch, self.hidden_size)
        else:
            if hx.dim() != dim:
                kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx should also be {dim}-D but got {hx.dim()}-D tensor"
                )
            if dim == 2:
                hx = hx.unsqueeze(1)
        self.check_forward_args(batched, hx, None)
        if self.mode == "GRU":
            output, h_n = _VF.gru(
                batched,
                hx,
                self._flat_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
                self.batch_first,
            )
        elif self.mode == "RNN_TANH":
            output, h_n = _VF.rnn_tanh(
                batched,
                hx,
                self._flat_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
                self.batch_first,
            )
        else:
            output, h_n = _VF.rnn_relu(
                batched,
                hx,
                self._flat_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
                self.batch_first,
            )
        if dim == 2:
            return output.squeeze(0 if self.batch_first else 1), h_n.squeeze(1)
        return output, h_n

    def _scripted_packed(
        self, packed: PackedSequence, hx: Tensor | None
    ) -> tuple[PackedSequence, Tensor]:
        """hx [L*D, B, H] in the user's order."""
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        if hx is None:
            hx = self._scripted_zeros(input, int(batch_sizes[0]), self.hidden_size)
        else:
            hx = self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(input, hx, batch_sizes)
        if self.mode == "GRU":
            output, h_n = _VF.gru(
                input,
                batch_sizes,
                hx,
                self._flat_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
            )
        elif self.mode == "RNN_TANH":
            output, h_n = _VF.rnn_tanh(
                input,
                batch_sizes,
                hx,
                self._flat_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
            )
        else:
            output, h_n = _VF.rnn_relu(
                input,
                batch_sizes,
                hx,
                self._flat_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
            )
        output_packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output_packed, self.permute_hidden(h_n, unsorted_indices)


class ScriptedLSTM(_Scripted):
    def _scripted_states(self, input: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        width = self.proj_size if self.proj_size > 0 else self.hidden_size
        h_0 = self._scripted_zeros(input, batch, width)
        return h_0, self._scripted_zeros(input, batch, self.hidden_size)

    def _scripted(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """input [T, B, I], [B, T, I] or [T, I]; hx [L*D, B, K] and [L*D, B, H], or without B."""
        dim = input.dim()
        batched = self._scripted_input(input)
        if hx is None:
            batch = batched.size(0) if self.batch_first else batched.size(1)
            hx = self._scripted_states(batched, batch)
        else:
            if hx[0].dim() != dim or hx[1].dim() != dim:
                kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {dim}-D but got "
                    f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
            if dim == 2:
                hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self.check_forward_args(batched, hx, None)
        output, h_n, c_n = _VF.lstm(
            batched,
            hx,
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
        )
        if dim == 2:
            output = output.squeeze(0 if self.batch_first else 1)
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
        return output, (h_n, c_n)

    def _scripted_packed(
        self, packed: PackedSequence, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        """hx [L*D, B, K] and [L*D, B, H] in the user's order."""
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        if hx is None:
            hx = self._scripted_states(input, int(batch_sizes[0]))
        else:
            hx = self.permute_hidden(hx, sorted_indices)
        output, h_n, c_n = _VF.lstm(
            input,
            batch_sizes,
            hx,
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
        )
        output_packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output_packed, self.permute_hidden((h_n, c_n), unsorted_indices)
