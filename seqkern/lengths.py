"""Padded batches with a length for each sequence: from padded rows to the ragged ones of the ops and back.

T padded steps, B sequences, R rows, W features. The layers never see padding: ``Layout.pack`` gathers the
rows of all steps, sequences sorted by length, and ``Layout.unpack`` puts results where they belong and
zeros at the padding. Where the numbers in lengths are known, as in eager mode, R is their sum, and operators
do all three. Where they are not (``torch.compile``, ``torch.export``, ``vmap`` over lengths), everything is
tensor arithmetic, and R is T*B with the padding's rows last, which the ops leave over, so that no size depends
on what lengths hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from seqkern import _C
from seqkern.ops import LAYOUT

__all__ = ["last_output"]


class Layout(NamedTuple):
    """Where the rows of a padded batch go. Each method takes and returns tensors on the input's device."""

    batch_sizes: Tensor  # [T + 1] on the CPU; the last is 0: rows may be left over
    source: Tensor  # [R]: where in the padded batch, flattened, each row lies
    padding: Tensor | None  # [T*B - R]: the padded batch's other rows, where R is known
    order: Tensor  # [B]: sequences, longest first
    place: Tensor  # [B]: of each sequence in order

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, W], or [B, T, W] where the layout was made for that, -> [R, W]."""
        if not self._plain() or (rows := _C.take_rows(padded, self.source, self.padding)) is None:
            rows = padded.flatten(0, 1).index_select(0, self.source)
        return rows

    def unpack(self, rows: Tensor, padded: Tensor) -> Tensor:
        """[R, W] -> [T, B, W] or [B, T, W] as padded has it, zero at the padding."""
        first, second, _ = padded.shape
        if (
            not self._plain()
            or (back := _C.put_rows(rows, self.source, self.padding, first, second)) is None
        ):
            flat = rows.new_zeros(first * second, rows.size(1)).index_copy(0, self.source, rows)
            back = flat.unflatten(0, (first, second))
        return back

    def _plain(self) -> bool:
        """Whether the operators may do it, which know no transforms and no forward mode."""
        return self.padding is not None and forward_ad._current_level < 0

    def sort(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """States [L*D, B, W] in the order of the rows."""
        return tuple([s.index_select(1, self.order) for s in states])

    def unsort(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple([s.index_select(1, self.place) for s in states])


def layout(lengths: Tensor | Sequence[int], padded: Tensor, batch_first: bool) -> Layout:
    """The layout of a batch [T, B, W], or [B, T, W] with batch_first. ValueError or TypeError names what does not fit."""
    steps, batch = padded.shape[1::-1] if batch_first else padded.shape[:2]
    lengths = _integers(lengths, batch)
    device = padded.device
    if known(lengths):
        batch_sizes, *indices = LAYOUT(lengths.cpu().contiguous(), steps, batch_first)
        if not padded.is_cpu:
            indices = [index.to(device) for index in indices]
        return Layout(batch_sizes, *indices)
    lengths = checked(lengths, steps, batch)
    if not lengths.is_meta:
        lengths = lengths.cpu()
    order = lengths.argsort(descending=True, stable=True)
    step = torch.arange(steps + 1, device=lengths.device).unsqueeze(1)
    taken = lengths.index_select(0, order) > step  # [T + 1, B]
    batch_sizes = taken.sum(1)
    taken, step = taken[:-1].flatten(), step[:-1]
    source = (order * steps + step if batch_first else step * batch + order).flatten()
    among_taken, among_left = taken.cumsum(0), taken.logical_not().cumsum(0)
    row = torch.where(taken, among_taken, taken.sum() + among_left) - 1
    source = torch.zeros_like(source).scatter(0, row, source)
    place = torch.zeros_like(order).scatter(0, order, torch.arange(batch, device=lengths.device))
    return Layout(batch_sizes, source.to(device), None, order.to(device), place.to(device))


def last_output(
    output: Tensor,  # [T, B, D*W], [B, T, D*W] with batch_first
    lengths: Tensor | Sequence[int],  # [B]
    batch_first: bool = False,
    bidirectional: bool = False,
) -> Tensor:
    """What each sequence's last step gave: ``[B, D*W]``, zeros for a sequence of length 0.

    output is that of a layer with the same lengths. With bidirectional its second half is the backward
    direction's, whose last step is step 0; the first half comes from step ``length - 1``. ValueError (for
    another type than tensor or list: TypeError) names the argument that does not fit.

    Example::

        gru = seqkern.GRU(3, 4, bidirectional=True)
        output, h_n = gru(torch.randn(5, 2, 3), lengths=[3, 5])
        last = seqkern.last_output(output, [3, 5], bidirectional=True)
        torch.testing.assert_close(last, torch.cat(h_n.unbind(), 1))  # [2, 8]
    """
    if isinstance(output, PackedSequence) or output.dim() != 3:
        shape = "a PackedSequence" if isinstance(output, PackedSequence) else list(output.shape)
        raise ValueError(
            f"output must be [T, B, D*W], or [B, T, D*W] with batch_first, got {shape}"
        )
    if bidirectional and output.size(2) % 2:
        raise ValueError(
            f"output must have an even last dimension with bidirectional, got {list(output.shape)}"
        )
    if batch_first:
        output = output.transpose(0, 1)
    steps, batch, width = output.shape
    if steps == 0:
        raise ValueError(f"output must have at least one time step, got {list(output.shape)}")
    lengths = checked(lengths, steps, batch).to(output.device)
    index = (lengths - 1).clamp(0, steps - 1).view(1, batch, 1).expand(1, batch, width)
    last = output.gather(0, index).squeeze(0)
    if bidirectional:
        half = width // 2
        last = torch.cat([last[:, :half], output[0, :, half:]], 1)
    return torch.where((lengths > 0).unsqueeze(1), last, 0)


def checked(lengths: Tensor | Sequence[int], steps: int, batch: int) -> Tensor:
    """lengths as an int64 tensor, on its own device."""
    lengths = _integers(lengths, batch)
    if known(lengths):
        outside = (lengths < 0) | (lengths > steps)
        if outside.any():
            raise ValueError(
                f"lengths must lie between 0 and T = {steps}, got {lengths[outside][0].item()}"
            )
    elif torch.compiler.is_compiling():
        outside = (lengths < 0) | (lengths > steps)
        torch._assert_async(~outside.any(), "lengths must lie between 0 and T")
    return lengths


def _integers(lengths: Tensor | Sequence[int], batch: int) -> Tensor:
    """The same, whatever the numbers are."""
    if not isinstance(lengths, Tensor):
        if not isinstance(lengths, Sequence) or isinstance(lengths, str):
            raise TypeError(
                f"lengths must be a tensor or a list of integers, got {type(lengths).__name__}"
            )
        # Without an element torch.tensor makes it float32.
        lengths = torch.tensor(lengths, dtype=None if lengths else torch.int64, device="cpu")
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.dim() != 1 or lengths.size(0) != batch:
        raise ValueError(f"lengths must be [B] = [{batch}], got {list(lengths.shape)}")
    return lengths.to(torch.int64)


def known(lengths: Tensor) -> bool:
    """Whether its numbers can be looked at now."""
    return not (
        torch.compiler.is_compiling()
        or type(lengths) is not Tensor
        or lengths.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(lengths)
    )
