"""Constructors: their arguments, what they make and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import randn, zeros

from .table import CELLS, LAYERS, rows, trained

rows(
    {
        "repr": lambda C: repr(C(3, 4)),
        "repr_all": lambda C: repr(C(3, 4, 2, bias=False, batch_first=True, dropout=0.5)),
        "repr_bidirectional": lambda C: repr(C(3, 4, bidirectional=True)),
        "parameters": lambda C: dict(C(3, 4, 2, bidirectional=True).named_parameters()),
        "parameters_no_bias": lambda C: dict(C(3, 4, 2, bias=False).named_parameters()),
        "parameters_float32": lambda C: dict(C(3, 4, dtype=torch.float32).named_parameters()),
        "parameters_meta": lambda C: dict(C(3, 4, device="meta").named_parameters()),
        "all_weights": lambda C: C(3, 4, 2, bidirectional=True).all_weights,
        "flat_weights": lambda C: C(3, 4, 2)._flat_weights,
        "flat_names": lambda C: C(3, 4, 2, bidirectional=True)._flat_weights_names,
        "attributes": lambda C: {
            k: v
            for k, v in vars(C(3, 4, 2, dropout=0.5)).items()
            if isinstance(v, (int, float, str))
        },
        "keywords": lambda C: repr(C(input_size=3, hidden_size=4, num_layers=2)),
        "no_arguments": lambda C: C(),
        "one_argument": lambda C: C(3),
        "too_many": lambda C: C(*range(3, 30)),
        "unknown_keyword": lambda C: C(3, 4, size=3),
        "input_size_0": lambda C: C(0, 4),
        "input_size_float": lambda C: C(3.0, 4),
        "hidden_size_0": lambda C: C(3, 0),
        "hidden_size_negative": lambda C: C(3, -1),
        "hidden_size_str": lambda C: C(3, "4"),
        "num_layers_0": lambda C: C(3, 4, 0),
        "num_layers_negative": lambda C: C(3, 4, num_layers=-1),
        "bias_int": lambda C: C(3, 4, bias=1),
        "batch_first_none": lambda C: C(3, 4, batch_first=None),
        "dropout_2": lambda C: C(3, 4, 2, dropout=2),
        "dropout_negative": lambda C: C(3, 4, 2, dropout=-0.1),
        "dropout_bool": lambda C: C(3, 4, 2, dropout=True),
        "dropout_str": lambda C: C(3, 4, 2, dropout="x"),
        "dropout_one_layer_warns": lambda C: repr(C(3, 4, dropout=0.5)),
        "proj_size": lambda C: repr(C(3, 4, proj_size=2)),
        "proj_size_too_large": lambda C: C(3, 4, proj_size=4),
        "proj_size_negative": lambda C: C(3, 4, proj_size=-1),
        "nonlinearity": lambda C: repr(C(3, 4, nonlinearity="relu")),
        "nonlinearity_unknown": lambda C: C(3, 4, nonlinearity="sin"),
        "fourth_positional": lambda C: repr(C(3, 4, 1, "relu")),
        "fourth_positional_bool": lambda C: repr(C(3, 4, 1, False)),
    },
    *LAYERS,
)
rows(
    {
        "repr": lambda C: repr(C(3, 4)),
        "repr_no_bias": lambda C: repr(C(3, 4, bias=False)),
        "repr_positional": lambda C: repr(C(3, 4, False)),
        "parameters": lambda C: dict(C(3, 4).named_parameters()),
        "parameters_no_bias": lambda C: dict(C(3, 4, bias=False).named_parameters()),
        "registered_none": lambda C: C(3, 4, bias=False)._parameters["bias_hh"],
        "state_dict": lambda C: C(3, 4, dtype=torch.float32).state_dict(),
        "meta": lambda C: dict(C(3, 4, device="meta").named_parameters()),
        "hidden_size_0": lambda C: dict(C(3, 0).named_parameters()),
        "hidden_size_0_call": lambda C: trained(C(3, 0), randn(2, 3)),
        "hidden_size_0_unbatched": lambda C: C(3, 0)(randn(3)),
        "input_size_0_call": lambda C: trained(C(0, 4), zeros(2, 0)),
        "no_arguments": lambda C: _message_without_class(C),
        "nonlinearity": lambda C: repr(C(3, 4, nonlinearity="relu")),
        "nonlinearity_unknown": lambda C: C(3, 4, nonlinearity="sin")(randn(2, 3)),
    },
    *CELLS,
)


def _message_without_class(C):
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        C()
