"""Layers as ONNX's operators LSTM, GRU and RNN, for ``torch.onnx.export(..., dynamo=True)``.

While torch exports, ``seqkern.functional`` comes here, and each layer becomes one node. The
operators are those of https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours; GRU has
``linear_before_reset=1``, the reset gate after the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["exporting", "layer", "refuse_packed"]

# Where each of ONNX's gates stands in torch's order: LSTM i o f c, GRU z r h.
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}


def exporting() -> bool:
    """Whether torch exports to ONNX. torch.onnx, which is slow to import, is asked last."""
    if not (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return False
    torch.compiler.allow_in_graph(torch.onnx.ops.symbolic_multi_out)  # Dynamo would skip it
    return True


# What torch.compiler.assume_constant_result does, without importing Dynamo, which takes as long as
# torch. Dynamo would take torch's answer for False.
exporting._dynamo_marked_constant = True


def refuse_packed() -> None:
    """RuntimeError while torch exports to ONNX."""
    if exporting():
        raise RuntimeError("ONNX export needs padded input, got a PackedSequence")


def layer(
    cell: str,  # "lstm", "gru", "rnn_tanh" or "rnn_relu"
    input: Tensor,  # [T, B, I]
    lengths: Tensor | None,  # [B]
    h_0: Tensor,  # [D, B, H]
    c_0: Tensor | None,  # [D, B, H]
    params: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The node that stands for ``seqkern.functional.layer``: output ``[T, B, D*H]``, h_n and c_n
    ``[D, B, H]``, the last empty for cells without c. They have shapes and dtypes, not numbers.
    Instead of batch_sizes it takes lengths, as the operators do.

    RuntimeError for what ONNX's operators do not have: packed input and projections.
    """
    if input.dim() == 2:
        refuse_packed()
    directions, batch, hidden = h_0.shape
    per_direction = len(params) // directions
    if per_direction in (3, 5):
        raise RuntimeError("ONNX export needs proj_size=0: ONNX's LSTM has no projection")
    if input.dtype == torch.bfloat16:  # which the operators do not take; the kernels' arithmetic
        c_0 = None if c_0 is None else c_0.float()
        params = [p.float() for p in params]
        results = layer(cell, input.float(), lengths, h_0.float(), c_0, params)
        return tuple([result.to(input.dtype) for result in results])
    gates = torch.tensor(GATES[cell], device=input.device)

    def in_order(tensors):
        """[D, n*G*H, ...] from n*D tensors [G*H, ...]."""
        joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        split = joined.unflatten(0, (-1, len(gates), hidden))
        return split.index_select(1, gates).unflatten(0, (directions, -1)).flatten(1, 3)

    weights = [params[k::per_direction] for k in range(2)]
    biases = [b for d in range(directions) for b in params[d * per_direction :][2:per_direction]]
    inputs = [*map(in_order, weights), in_order(biases) if biases else None]
    attributes = {
        "direction": "forward" if directions == 1 else "bidirectional",
        "hidden_size": hidden,
    }
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    elif cell != "lstm":
        attributes["activations"] = [cell.removeprefix("rnn_").capitalize()] * directions
    states = [h_0] if c_0 is None else [h_0, c_0]
    if lengths is not None:
        lengths = lengths.to(torch.int32)
    results = torch.onnx.ops.symbolic_multi_out(
        cell.partition("_")[0].upper(),
        [input, *inputs, lengths, *states],  # X W R B sequence_lens initial_h initial_c
        attributes,
        dtypes=[input.dtype] * (1 + len(states)),
        shapes=[(input.size(0), directions, batch, hidden), *[h_0.shape] * len(states)],
    )
    output, *finals = [result.to(input.device) for result in results]
    if lengths is not None:  # ONNX Runtime's final state of an empty row is zero
        empty = (lengths == 0).unsqueeze(1)
        finals = [
            torch.where(empty, first, last) for first, last in zip(states, finals, strict=True)
        ]
    output = output.squeeze(1) if directions == 1 else output.transpose(1, 2).flatten(2)
    return (output, *finals) if len(finals) == 2 else (output, *finals, input.new_empty(0))
