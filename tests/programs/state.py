"""Copies, pickles and state dicts."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn, randn

from .table import LAYERS, grads, input_of, loss, other, recurrent_weight, row


@row()
def state_dict_is_torchs(C):
    m = C(3, 4)
    saved = m.state_dict(prefix="rnn.")
    return dict(saved), saved._metadata


@row()
def load_not_strict(C):
    m = C(3, 4)
    saved = m.state_dict()
    saved["extra"] = saved.pop(recurrent_weight(m))
    result = m.load_state_dict(saved, strict=False)
    return result.missing_keys, result.unexpected_keys


@row()
def load_missing(C):
    m = C(3, 4)
    saved = m.state_dict()
    del saved[recurrent_weight(m)]
    return m.load_state_dict(saved)


@row()
def load_wrong_shape(C):
    return C(3, 4).load_state_dict(C(3, 5).state_dict())


@row()
def load_assign(C):
    m = C(3, 4)
    saved = {n: randn(p.shape) for n, p in m.named_parameters()}
    m.load_state_dict(saved, assign=True)
    assert all(p.data_ptr() == saved[n].data_ptr() for n, p in m.named_parameters())
    return m(input_of(m))


@row()
def load_into_meta(C):
    m = C(3, 4, device="meta")
    m.load_state_dict(C(3, 4).state_dict(), assign=True)
    return m(input_of(m))


@row()
def state_is_what_pickles_keep(C):
    return sorted(C(3, 4).__getstate__())


@row()
def pickle_keeps_flags(C):
    m = C(3, 4).eval()
    m.extra = {"a": 1}
    getattr(m, recurrent_weight(m)).requires_grad_(False)
    m = pickle.loads(pickle.dumps(m))
    return m.training, m.extra, other(m)


@row()
def pickle_of_a_parent(C):
    m = nn.ModuleDict({"a": C(3, 4)})
    m["b"] = m["a"]
    m = pickle.loads(pickle.dumps(m))
    assert m["a"] is m["b"]
    return m["a"](input_of(m["a"]))


@row(*LAYERS)
def old_pickle_without_proj_size(C):
    old = C(3, 4).__getstate__()
    del old["proj_size"]
    m = C.__new__(C)
    m.__setstate__(old)
    return m.proj_size, m(input_of(m))


@row(*LAYERS)
def old_pickle_with_all_weights(C):
    """Before torch 1.4: _all_weights held tensors and there were no flat weights."""
    source = C(3, 4, 2, bidirectional=True)
    old = source.__getstate__()
    old["_all_weights"] = source.all_weights
    for name in ("_flat_weights", "_flat_weights_names", "proj_size"):
        del old[name]
    m = C.__new__(C)
    m.__setstate__(old)
    return m._flat_weights_names, m._all_weights, m(input_of(m))


@row()
def deepcopy_of_a_tied_pair(C):
    pair = nn.ModuleList([C(3, 4), C(3, 4)])
    setattr(pair[1], recurrent_weight(pair[1]), getattr(pair[0], recurrent_weight(pair[0])))
    pair = copy.deepcopy(pair)
    assert getattr(pair[0], recurrent_weight(pair[0])) is getattr(
        pair[1], recurrent_weight(pair[1])
    )
    return len(list(pair.parameters())), pair[1](input_of(pair[1]))


@row()
def deepcopy_keeps_gradients(C):
    m = C(3, 4)
    loss(m(input_of(m))).backward()
    return grads(copy.deepcopy(m))


@row()
def copy_shares_parameters(C):
    m = C(3, 4)
    n = copy.copy(m)
    with torch.no_grad():
        getattr(m, recurrent_weight(m)).zero_()
    return n(input_of(n))
