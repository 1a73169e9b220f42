"""Parametrizations, pruning and functional calls."""

from __future__ import annotations

import copy
import pickle
import warnings

from torch import nn
from torch.nn.utils import parametrize, prune

from .table import input_of, recurrent_weight, row, trained


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@row()
def parametrized(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, recurrent_weight(m), Doubled())
    return type(m).__name__, list(m.state_dict()), trained(m, input_of(m))


@row()
def parametrized_twice(C):
    m = C(3, 4)
    for name, _ in list(m.named_parameters())[:2]:
        parametrize.register_parametrization(m, name, Doubled())
        parametrize.register_parametrization(m, name, Doubled())
    return list(m.state_dict()), trained(m, input_of(m))


@row()
def parametrized_with_caching(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, recurrent_weight(m), Doubled())
    with parametrize.cached():
        return m(input_of(m)), m(input_of(m))


@row()
def parametrization_removed(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, recurrent_weight(m), Doubled())
    parametrize.remove_parametrizations(m, recurrent_weight(m))
    assert type(m) is C
    return list(m.state_dict()), trained(m, input_of(m))


@row()
def parametrized_deepcopy(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, recurrent_weight(m), Doubled())
    return copy.deepcopy(m)(input_of(m))


@row()
def parametrized_pickle(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, recurrent_weight(m), Doubled())
    return pickle.dumps(m)


@row()
def orthogonal(C):
    m = C(3, 4)
    nn.utils.parametrizations.orthogonal(m, recurrent_weight(m))
    return trained(m, input_of(m))


@row()
def weight_norm_removed(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(m, recurrent_weight(m))
    m(input_of(m))
    nn.utils.remove_weight_norm(m, recurrent_weight(m))
    return list(m.state_dict()), m(input_of(m))


@row()
def old_spectral_norm(C):
    m = C(3, 4).eval()
    nn.utils.spectral_norm(m, recurrent_weight(m))
    return list(m.state_dict()), m(input_of(m))


@row()
def pruned_for_good(C):
    m = C(3, 4)
    prune.random_unstructured(m, recurrent_weight(m), 0.5)
    m(input_of(m))
    prune.remove(m, recurrent_weight(m))
    return list(m.state_dict()), m(input_of(m))
