"""Calls of cells: input, states and errors."""

from __future__ import annotations

import torch
from torch import nn, randn, zeros

from .table import CELLS, changed, rows, state, trained

rows(
    {
        "step": lambda C: trained(C(3, 4), randn(2, 3, requires_grad=True)),
        "step_hx": lambda C: trained(
            m := C(3, 4), randn(2, 3, requires_grad=True), state(m, requires_grad=True)
        ),
        "step_no_bias": lambda C: trained(m := C(3, 4, bias=False), randn(2, 3), state(m)),
        "unbatched": lambda C: trained(C(3, 4), randn(3, requires_grad=True)),
        "unbatched_hx": lambda C: trained(m := C(3, 4), randn(3), state(m, unbatched=True)),
        "batch_0": lambda C: trained(C(3, 4), randn(0, 3, requires_grad=True)),
        "no_grad": lambda C: torch.no_grad()(C(3, 4))(randn(2, 3)),
        "one_bias": lambda C: changed(C(3, 4), bias_hh=None)(randn(2, 3)),
        "other_bias": lambda C: changed(C(3, 4), bias_ih=None)(randn(2, 3)),
        "meta": lambda C: C(3, 4, device="meta")(zeros(2, 3, device="meta")),
        "loop": lambda C: _cell_loop(C(3, 4)),
        # Errors
        "input_3d": lambda C: C(3, 4)(zeros(1, 2, 3)),
        "input_0d": lambda C: C(3, 4)(torch.tensor(0.0)),
        "input_size": lambda C: C(3, 4)(zeros(2, 7)),
        "input_size_unbatched": lambda C: C(3, 4)(zeros(7)),
        "input_float32": lambda C: C(3, 4)(zeros(2, 3, dtype=torch.float32)),
        "input_int": lambda C: C(3, 4)(zeros(2, 3, dtype=torch.int64)),
        "input_none": lambda C: C(3, 4)(None),
        "hx_3d": lambda C: C(3, 4)(
            zeros(2, 3), (zeros(1, 2, 4),) * 2 if "LSTM" in C.__name__ else zeros(1, 2, 4)
        ),
        "hx_1d": lambda C: (m := C(3, 4))(zeros(2, 3), state(m, unbatched=True)),
        "hx_2d_unbatched": lambda C: (m := C(3, 4))(zeros(3), state(m)),
        "hx_batch": lambda C: (m := C(3, 4))(zeros(2, 3), state(m, 5)),
        "hx_hidden": lambda C: C(3, 4)(zeros(2, 3), state(C(3, 5))),
        "hx_float32": lambda C: (m := C(3, 4))(zeros(2, 3), state(m, dtype=torch.float32)),
        "hx_tuple_of_one": lambda C: C(3, 4)(zeros(2, 3), (zeros(2, 4),)),
        "hx_tuple_of_three": lambda C: C(3, 4)(zeros(2, 3), (zeros(2, 4),) * 3),
        "hx_list": lambda C: C(3, 4)(zeros(2, 3), [zeros(2, 4)] * 2),
        "hx_tuple": lambda C: C(3, 4)(zeros(2, 3), (zeros(2, 4),) * 2),
        "weight_shape": lambda C: changed(C(3, 4), weight_hh=nn.Parameter(zeros(2, 2)))(
            zeros(2, 3)
        ),
        "bias_shape": lambda C: changed(C(3, 4), bias_hh=nn.Parameter(zeros(2)))(zeros(2, 3)),
    },
    *CELLS,
)
rows({"relu": lambda C: trained(C(3, 4, nonlinearity="relu"), randn(2, 3))}, "RNNCell")


def _cell_loop(cell):
    hx, outputs = None, []
    for _ in range(10):
        hx = cell(randn(2, 3), hx)
        outputs.append(hx[0] if isinstance(hx, tuple) else hx)
    torch.stack(outputs).sin().sum().backward()
    return outputs, hx, {n: p.grad for n, p in cell.named_parameters()}
