"""Calls of layers: input, states and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn, randn, zeros
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from .table import LAYERS, ROWS, changed, rows, state, trained

SHAPES = {
    "plain": ((3, 4), {}),
    "no_bias": ((3, 4), {"bias": False}),
    "layers": ((3, 4, 3), {}),
    "bidirectional": ((3, 4), {"bidirectional": True}),
    "all": ((3, 4, 2), {"bidirectional": True, "bias": False}),
    "batch_first": ((3, 4, 2), {"batch_first": True, "bidirectional": True}),
    "dropout": ((3, 4, 3), {"dropout": 0.5, "bidirectional": True}),
    "dropout_batch_first": ((3, 4, 2), {"dropout": 0.3, "batch_first": True}),
    "dropout_all": ((3, 4, 2), {"dropout": 1.0}),
}
PROJECTED = {
    "proj": ((3, 4), {"proj_size": 2}),
    "proj_all": ((3, 4, 2), {"proj_size": 1, "bidirectional": True, "bias": False}),
}
MODES = [(kind, name, *shape) for kind in LAYERS for name, shape in SHAPES.items()]
MODES += [("LSTM", name, *shape) for name, shape in PROJECTED.items()]
MODES += [("RNN", "relu", (3, 4, 2, "relu"), {"bidirectional": True})]


def _lengths(lengths, enforce_sorted):
    return pack_sequence([randn(n, 3) for n in lengths], enforce_sorted)


INPUTS = {
    "padded": lambda m: (randn(5, 2, 3, requires_grad=True),),
    "hx": lambda m: (
        randn(5, 2, 3, requires_grad=True),
        state(m, 5 if m.batch_first else 2, requires_grad=True),
    ),
    "one_step": lambda m: (randn(1, 1, 3), state(m, 1)),
    "unbatched": lambda m: (randn(5, 3, requires_grad=True),),
    "unbatched_hx": lambda m: (randn(5, 3), state(m, unbatched=True, requires_grad=True)),
    "packed": lambda m: (_lengths((4, 4, 2), True),),
    "packed_hx": lambda m: (_lengths((4, 2, 1), True), state(m, 3, requires_grad=True)),
    "packed_unsorted": lambda m: (_lengths((2, 5, 3), False),),
    "packed_unsorted_hx": lambda m: (_lengths((2, 5, 3), False), state(m, 3, requires_grad=True)),
    "empty_batch": lambda m: (
        randn((0, 5, 3) if m.batch_first else (5, 0, 3), requires_grad=True),
    ),
}
for _kind, _name, _args, _kwargs in MODES:
    for _input, _make in INPUTS.items():

        def _program(N, kind=_kind, args=_args, kwargs=_kwargs, make=_make):
            module = getattr(N, kind)(*args, **kwargs)
            return trained(module, *make(module))

        ROWS.append(pytest.param(_program, id=f"{_input}-{_kind}-{_name}"))

rows(
    {
        "eval_no_dropout": lambda C: C(3, 4, 2, dropout=0.5).eval()(randn(5, 2, 3)),
        "backward_in_eval": lambda C: trained(C(3, 4, 2, dropout=0.5).eval(), randn(5, 2, 3)),
        "no_grad": lambda C: torch.no_grad()(C(3, 4, 2))(randn(5, 2, 3)),
        "inference_mode": lambda C: torch.inference_mode()(C(3, 4, 2))(randn(5, 2, 3))[0].clone(),
        "frozen": lambda C: C(3, 4).requires_grad_(False)(randn(5, 2, 3)),
        "transposed": lambda C: C(3, 4)(randn(2, 5, 3).transpose(0, 1)),
        "expanded": lambda C: C(3, 4)(randn(1, 1, 3).expand(5, 2, 3)),
        "transposed_hx": lambda C: (m := C(3, 4, 2))(
            randn(5, 2, 3),
            (randn(2, 2, 4).transpose(0, 1),) * 2
            if m.mode == "LSTM"
            else randn(2, 2, 4).transpose(0, 1),
        ),
        "expanded_hx": lambda C: (m := C(3, 4))(
            randn(5, 2, 3),
            (randn(1, 1, 4).expand(1, 2, 4),) * 2
            if m.mode == "LSTM"
            else randn(1, 1, 4).expand(1, 2, 4),
        ),
        "meta": lambda C: C(3, 4, 2, device="meta")(zeros(5, 2, 3, device="meta")),
        "complex": lambda C: C(3, 4, dtype=torch.complex128)(randn(5, 2, 3) + 1j * randn(5, 2, 3)),
        "many_calls": lambda C: _stateful(C(3, 4)),
        # Errors
        "steps_0": lambda C: C(3, 4)(zeros(0, 2, 3)),
        "steps_0_batch_first": lambda C: C(3, 4, batch_first=True)(zeros(2, 0, 3)),
        "steps_0_unbatched": lambda C: C(3, 4)(zeros(0, 3)),
        "steps_0_batch_0": lambda C: C(3, 4)(zeros(0, 0, 3)),
        "input_1d": lambda C: C(3, 4)(zeros(3)),
        "input_4d": lambda C: C(3, 4)(zeros(1, 1, 1, 3)),
        "input_0d": lambda C: C(3, 4)(torch.tensor(1.0)),
        "input_list": lambda C: C(3, 4)([1.0, 2.0]),
        "input_none": lambda C: C(3, 4)(None),
        "input_size": lambda C: C(3, 4)(zeros(5, 2, 7)),
        "input_size_unbatched": lambda C: C(3, 4)(zeros(5, 7)),
        "input_size_batch_first": lambda C: C(3, 4, batch_first=True)(zeros(5, 2, 7)),
        "input_float32": lambda C: C(3, 4)(zeros(5, 2, 3, dtype=torch.float32)),
        "input_int": lambda C: C(3, 4)(zeros(5, 2, 3, dtype=torch.int64)),
        "input_bool": lambda C: C(3, 4)(zeros(5, 2, 3, dtype=torch.bool)),
        "input_bfloat16": lambda C: C(3, 4)(zeros(5, 2, 3, dtype=torch.bfloat16)),
        "packed_float32": lambda C: (
            None
            if C.__name__ == "LSTM"
            else C(3, 4)(pack_sequence([zeros(2, 3, dtype=torch.float32)]))
        ),
        "packed_no_steps": lambda C: C(3, 4)(
            PackedSequence(zeros(0, 3), torch.tensor([], dtype=torch.int64))
        ),
        "hx_batch": lambda C: (m := C(3, 4, 2))(zeros(5, 2, 3), state(m, 3)),
        "hx_batch_batch_first": lambda C: (m := C(3, 4, batch_first=True))(
            zeros(5, 2, 3), state(m, 2)
        ),
        "hx_layers": lambda C: C(3, 4, 2)(zeros(5, 2, 3), state(C(3, 4, 3))),
        "hx_hidden": lambda C: C(3, 4)(zeros(5, 2, 3), state(C(3, 5))),
        "hx_rank": lambda C: (m := C(3, 4))(zeros(5, 2, 3), state(m, unbatched=True)),
        "hx_rank_unbatched": lambda C: (m := C(3, 4))(zeros(5, 3), state(m)),
        "hx_hidden_unbatched": lambda C: C(3, 4)(zeros(5, 3), state(C(3, 5), unbatched=True)),
        "hx_tuple_of_one": lambda C: C(3, 4)(zeros(5, 2, 3), (zeros(1, 2, 4),)),
        "hx_tuple_of_three": lambda C: C(3, 4)(zeros(5, 2, 3), (zeros(1, 2, 4),) * 3),
        "hx_tuple_of_two": lambda C: C(3, 4)(zeros(5, 2, 3), (zeros(1, 2, 4),) * 2),
        "hx_list": lambda C: C(3, 4)(zeros(5, 2, 3), [zeros(1, 2, 4)] * 2),
        "hx_float32": lambda C: (m := C(3, 4))(zeros(5, 2, 3), state(m, dtype=torch.float32)),
        "hx_float32_one_step": lambda C: (m := C(3, 4))(
            zeros(1, 2, 3), state(m, dtype=torch.float32)
        ),
        "weight_none": lambda C: changed(C(3, 4), weight_hh_l0=None)(zeros(5, 2, 3)),
        "weight_float32": lambda C: changed(
            C(3, 4), weight_hh_l0=nn.Parameter(zeros(C(3, 4).weight_hh_l0.shape).float())
        )(zeros(5, 2, 3)),
        "bias_float32": lambda C: changed(
            C(3, 4), bias_ih_l0=nn.Parameter(zeros(C(3, 4).bias_ih_l0.shape).float())
        )(zeros(5, 2, 3)),
        "second_layer_float32": lambda C: changed(
            C(3, 4, 2), weight_ih_l1=nn.Parameter(zeros(C(3, 4, 2).weight_ih_l1.shape).float())
        )(zeros(5, 2, 3)),
    },
    *LAYERS,
)


def _stateful(module):
    """One step at a time with explicit states, truncated gradients and all."""
    hx, outputs = None, []
    for _ in range(20):
        output, hx = module(randn(1, 2, 3), hx)
        outputs.append(output)
    torch.cat(outputs).sin().sum().backward()
    return outputs, hx, {n: p.grad for n, p in module.named_parameters()}
