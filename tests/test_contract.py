"""What programs do with recurrent modules besides calling them: one table, run with both.

A row is a function of a class; what it returns, warns and raises must be the same for
``torch.nn``'s class and seqkern's. (The table of constructors and calls is in test_modules.py; here
its rows run once more through ``seqkern.patch``.) A row that differs on purpose has its reason in
DIFFERENT and must differ.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from test_modules import CELLS, LAYERS, ROWS, _first, _x, outcome, same, state, trained
from torch import nn, randn, zeros
from torch.nn.utils import parametrize, prune, stateless
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves, tree_map

import seqkern

KINDS = (*LAYERS, *CELLS)
TABLE = {}


def row(*kinds):
    """Adds a function of a class to the table, once for each kind of module."""

    def add(function):
        for kind in kinds or KINDS:
            TABLE[f"{function.__name__.strip('_')}-{kind}"] = (function, kind)
        return function

    return add


def loss(results):
    return sum(t.sin().sum() for t in tree_leaves(results) if isinstance(t, torch.Tensor))


def grads(module):
    return {name: p.grad for name, p in module.named_parameters()}


def other(module):
    """The parameters' names and shapes, and a result: what a changed module comes to."""
    shapes = {n: (tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()}
    return shapes, module(_x(module).to(next(module.parameters()).dtype))


# ---- Calls ----


class InPlaceOfATensor:
    """Not a Tensor: it has one, and a __torch_function__ that lets it pass for one."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        value = getattr(self.tensor, name)
        if not callable(value) or isinstance(value, torch.device):
            return value
        return lambda *args, **kwargs: tree_map(
            lambda r: type(self)(r) if isinstance(r, torch.Tensor) else r, value(*args, **kwargs)
        )

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = tree_map(lambda a: a.tensor if isinstance(a, cls) else a, args)
        return function(*args, **(kwargs or {}))


@row()
def object_in_place_of_a_tensor(C):
    m = C(3, 4)
    return m(InPlaceOfATensor(_x(m)))


@row()
def object_in_place_of_a_tensor_without_grad(C):
    m = C(3, 4)
    with torch.no_grad():
        return m(InPlaceOfATensor(_x(m)))


@row(*LAYERS)
def flat_weights_set_by_hand(C):
    m = C(3, 4, 2, bidirectional=True)
    x = _x(m)
    before = m(x)
    m._flat_weights = [w.detach() / 2 for w in m._flat_weights]
    results = [before, m(x), copy.deepcopy(m)(x)]
    m.weight_ih_l0 = nn.Parameter(randn(m.weight_ih_l0.shape))
    results.append(m(x))
    m._flat_weights = [getattr(m, name) for name in m._flat_weights_names]
    results.append(m(x))
    m._flat_weights = [w.detach() / 2 for w in m._flat_weights]
    return [*results, m.double()(x.double())]


@row()
def by_keyword(C):
    m = C(3, 4)
    return m(input=_x(m), hx=state(m)), m(hx=None, input=_x(m))


@row()
def unknown_keyword(C):
    m = C(3, 4)
    return m(_x(m), foo=1)


@row()
def no_input(C):
    return C(3, 4)()


@row()
def call_forward_itself(C):
    m = C(3, 4)
    return m.forward(_x(m))


@row()
def strided(C):
    m = C(3, 4)
    x = _x(m)
    wide = torch.stack([x, x], -1)[..., 0]
    hx = tree_map(lambda t: torch.stack([t, t], -1)[..., 1], state(m))
    return trained(m, wide, hx)


@row()
def flipped_and_offset(C):
    m = C(3, 4)
    return trained(m, torch.cat([_x(m), _x(m)], -1)[..., 2:5].flip(0))


@row()
def parameter_as_input(C):
    m = C(3, 4)
    return trained(m, nn.Parameter(_x(m)))


@row()
def dtype_strings(C):
    return C(3, 4, dtype="float32")


@row()
def device_string(C):
    return C(3, 4, device="nowhere")


@row()
def dtype_int(C):
    return C(3, 4, dtype=torch.int64)


@row()
def requires_grad_flags(C):
    m = C(3, 4).requires_grad_(False)
    x = _x(m)
    flags = [t.requires_grad for t in tree_leaves(m(x))]
    return flags + [t.requires_grad for t in tree_leaves(m(x.requires_grad_()))]


@row()
def only_hx_wants_gradients(C):
    m = C(3, 4).requires_grad_(False)
    return trained(m, _x(m), state(m, requires_grad=True))


@row()
def one_state_alone_gets_a_gradient(C):
    m = C(3, 4)
    x = _x(m).requires_grad_()
    tree_leaves(m(x))[-1].sin().sum().backward()
    return x.grad, grads(m)


@row()
def first_result_alone_gets_a_gradient(C):
    m = C(3, 4)
    x = _x(m).requires_grad_()
    tree_leaves(m(x))[0].sin().sum().backward()
    return x.grad, grads(m)


@row()
def same_tensor_for_input_and_hx(C):
    m = C(4, 4)
    x = randn(1, 2, 4) if isinstance(m, nn.RNNBase) else randn(2, 4)
    x.requires_grad_()
    return trained(m, x, (x, x) if "LSTM" in C.__name__ else x)


@row()
def backward_twice(C):
    m = C(3, 4)
    value = loss(m(_x(m)))
    value.backward(retain_graph=True)
    value.backward()
    return grads(m)


@row()
def backward_twice_without_retaining(C):
    m = C(3, 4)
    value = loss(m(_x(m)))
    value.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        value.backward()


@row()
def unused_parameter(C):
    m = C(3, 4)
    return torch.autograd.grad(
        loss(m(_x(m))), [nn.Parameter(zeros(2)), *m.parameters()], allow_unused=True
    )


@row()
def batched_gradients(C):
    m = C(3, 4)
    x = _x(m).requires_grad_()
    y = tree_leaves(m(x))[0]
    return torch.autograd.grad(y, [x, *m.parameters()], randn(3, *y.shape), is_grads_batched=True)


@row()
def jacobian(C):
    m = C(3, 4)
    return [
        torch.autograd.functional.jacobian(lambda x: tree_leaves(m(x))[0], _x(m), vectorize=v)
        for v in (False, True)
    ]


@row()
def anomaly_mode(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            return trained(m, _x(m))


@row()
def checkpointed(C):
    m = C(3, 4)
    x = _x(m).requires_grad_()
    loss(torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False)).backward()
    return x.grad, grads(m)


@row()
def saved_on_the_side(C):
    m = C(3, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        results = m(_x(m))
    loss(results).backward()
    return grads(m)


@row()
def input_changed_before_backward(C):
    m = C(3, 4)
    x = _x(m)
    value = loss(m(x))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@row()
def backward_from_inference_mode(C):
    m = C(3, 4)
    with torch.inference_mode():
        results = m(_x(m))
    return loss(results).backward()


@row()
def vmap_over_models(C):
    models = [C(3, 4) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x = _x(models[0])

    def call(params, buffers):
        return tree_leaves(torch.func.functional_call(models[0], (params, buffers), (x,)))

    return [call({n: p[i] for n, p in params.items()}, buffers) for i in range(3)]


@row()
def functional_call_of_one_parameter(C):
    m = C(3, 4)
    name = _first(m)
    changed = {name: 2 * getattr(m, name).detach()}
    x = _x(m)
    return torch.func.functional_call(m, changed, x), m(x)


@row()
def functional_call_strict(C):
    m = C(3, 4)
    return torch.func.functional_call(m, {}, _x(m), strict=True)


@row()
def functional_call_with_gradients(C):
    m = C(3, 4)
    leaves = {n: p.detach().mul(2).requires_grad_() for n, p in m.named_parameters()}
    loss(torch.func.functional_call(m, leaves, _x(m))).backward()
    return {n: p.grad for n, p in leaves.items()}, grads(m)


@row()
def stateless_call(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stateless.functional_call(m, {n: 2 * p for n, p in m.named_parameters()}, _x(m))


# ---- Hooks ----


@row()
def forward_hooks_change_things(C):
    m = C(3, 4)
    m.register_forward_pre_hook(lambda m, args: (2 * args[0], *args[1:]))
    m.register_forward_hook(lambda m, args, results: tree_map(lambda t: t + 1, results))
    return trained(m, _x(m))


@row()
def forward_hooks_with_keywords(C):
    m = C(3, 4)
    m.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "hx": None}), with_kwargs=True
    )
    m.register_forward_hook(lambda m, a, k, r: (r, sorted(k)), with_kwargs=True)
    return m(_x(m), hx=state(m))


@row()
def forward_hook_always_called(C):
    m, seen = C(3, 4), []
    m.register_forward_hook(lambda m, args, result: seen.append(result), always_call=True)
    with pytest.raises((RuntimeError, ValueError)), warnings.catch_warnings():
        m(randn(1, 1, 1, 3))
    return seen


@row()
def removed_hook(C):
    m = C(3, 4)
    m.register_forward_hook(lambda m, args, result: None / 0).remove()
    return m(_x(m))


@row()
def full_backward_hooks(C):
    m, seen = C(3, 4), []
    m.register_full_backward_pre_hook(lambda m, grads: seen.extend(grads))
    m.register_full_backward_hook(lambda m, gi, go: seen.extend(gi))
    x = _x(m).requires_grad_()
    loss(m(x)).backward()
    return seen, x.grad


@row()
def tensor_hooks(C):
    m = C(3, 4)
    getattr(m, _first(m)).register_hook(lambda grad: 3 * grad)
    return trained(m, _x(m))


@row()
def post_accumulate_hook(C):
    m, seen = C(3, 4), []
    for p in m.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.shape)))
    loss(m(_x(m))).backward()
    return sorted(seen)


@row()
def global_hook(C):
    m, seen = C(3, 4), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, r: seen.append(1))
    try:
        m(_x(m))
    finally:
        handle.remove()
    return seen


@row()
def state_dict_hooks(C):
    m = C(3, 4)
    m.register_state_dict_post_hook(lambda m, d, prefix, meta: d.update({prefix + "x": zeros(1)}))
    m.register_load_state_dict_pre_hook(lambda m, d, *rest: d.pop("x"))
    saved = m.state_dict()
    m.load_state_dict(saved, strict=True)
    return list(saved)


# ---- State ----


@row()
def state_dict_is_torchs(C):
    m = C(3, 4)
    saved = m.state_dict(prefix="rnn.")
    return dict(saved), saved._metadata


@row()
def load_not_strict(C):
    m = C(3, 4)
    saved = m.state_dict()
    saved["extra"] = saved.pop(_first(m))
    result = m.load_state_dict(saved, strict=False)
    return result.missing_keys, result.unexpected_keys


@row()
def load_missing(C):
    m = C(3, 4)
    saved = m.state_dict()
    del saved[_first(m)]
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
    return m(_x(m))


@row()
def load_into_meta(C):
    m = C(3, 4, device="meta")
    m.load_state_dict(C(3, 4).state_dict(), assign=True)
    return m(_x(m))


@row()
def state_is_what_pickles_keep(C):
    return sorted(C(3, 4).__getstate__())


@row()
def pickle_keeps_flags(C):
    m = C(3, 4).eval()
    m.extra = {"a": 1}
    getattr(m, _first(m)).requires_grad_(False)
    m = pickle.loads(pickle.dumps(m))
    return m.training, m.extra, other(m)


@row()
def pickle_of_a_parent(C):
    m = nn.ModuleDict({"a": C(3, 4)})
    m["b"] = m["a"]
    m = pickle.loads(pickle.dumps(m))
    assert m["a"] is m["b"]
    return m["a"](_x(m["a"]))


@row(*LAYERS)
def old_pickle_without_proj_size(C):
    old = C(3, 4).__getstate__()
    del old["proj_size"]
    m = C.__new__(C)
    m.__setstate__(old)
    return m.proj_size, m(_x(m))


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
    return m._flat_weights_names, m._all_weights, m(_x(m))


@row()
def deepcopy_of_a_tied_pair(C):
    pair = nn.ModuleList([C(3, 4), C(3, 4)])
    setattr(pair[1], _first(pair[1]), getattr(pair[0], _first(pair[0])))
    pair = copy.deepcopy(pair)
    assert getattr(pair[0], _first(pair[0])) is getattr(pair[1], _first(pair[1]))
    return len(list(pair.parameters())), pair[1](_x(pair[1]))


@row()
def deepcopy_keeps_gradients(C):
    m = C(3, 4)
    loss(m(_x(m))).backward()
    return grads(copy.deepcopy(m))


@row()
def copy_shares_parameters(C):
    m = C(3, 4)
    n = copy.copy(m)
    with torch.no_grad():
        getattr(m, _first(m)).zero_()
    return n(_x(n))


# ---- Parameters ----


@row()
def replaced_parameter(C):
    m = C(3, 4)
    name = _first(m)
    setattr(m, name, nn.Parameter(zeros(getattr(m, name).shape)))
    return list(m.state_dict()), trained(m, _x(m))


@row()
def tensor_for_parameter(C):
    m = C(3, 4)
    setattr(m, _first(m), zeros(4))


@row()
def reregistered_parameter(C):
    m = C(3, 4)
    name = _first(m)
    raw = getattr(m, name)
    delattr(m, name)
    m.register_parameter(name, nn.Parameter(raw.detach().sin()))
    return list(m.state_dict()), trained(m, _x(m))


@row()
def edited_parameters_dict(C):
    m = C(3, 4)
    name = _first(m)
    m._parameters[name] = nn.Parameter(m._parameters[name].detach().cos())
    return trained(m, _x(m))


@row()
def hidden_and_input_weights_tied(C):
    m = C(4, 4)
    setattr(m, _first(m), getattr(m, _first(m).replace("hh", "ih")))
    x = randn(5, 2, 4) if isinstance(m, nn.RNNBase) else randn(2, 4)
    return len(list(m.parameters())), trained(m, x)


@row()
def non_leaf_weight(C):
    m = C(3, 4)
    name = _first(m)
    scale = nn.Parameter(torch.tensor(0.5))
    raw = m._parameters.pop(name)
    setattr(m, name, raw * scale)
    loss(m(_x(m))).backward()
    return raw.grad, scale.grad


@row()
def non_contiguous_weight(C):
    m = C(3, 4)
    name = _first(m)
    raw = getattr(m, name).detach()
    setattr(m, name, nn.Parameter(raw.t().contiguous().t()))
    return trained(m, _x(m))


@row()
def vector_of_parameters(C):
    m = C(3, 4)
    vector = nn.utils.parameters_to_vector(m.parameters())
    nn.utils.vector_to_parameters(vector * 2, m.parameters())
    return vector, m(_x(m))


@row()
def clipped(C):
    m = C(3, 4)
    loss(m(_x(m))).backward()
    return nn.utils.clip_grad_norm_(m.parameters(), 0.1), grads(m)


@row()
def applied(C):
    m = nn.Sequential(C(3, 4))

    def initialise(module):
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            for p in module.parameters():
                nn.init.constant_(p, 0.1)

    return m.apply(initialise)(_x(m[0]))


@row()
def forget_bias(C):
    """As written for years: .data of a slice of a bias."""
    m = C(3, 4)
    bias = dict(m.named_parameters())[_first(m).replace("weight", "bias")]
    bias.data[1:2].fill_(1)
    return m(_x(m))


@row()
def zero_grad(C):
    m = C(3, 4)
    loss(m(_x(m))).backward()
    m.zero_grad(set_to_none=False)
    return grads(m)


@row()
def moved_to_and_fro(C):
    m = C(3, 4)
    kept = list(m.parameters())
    m.float().double().half().to(torch.float64).cpu()
    assert all(a is b for a, b in zip(m.parameters(), kept, strict=True))
    return other(m)


@row()
def moved_by_swapping(C):
    m = C(3, 4)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        m.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    return other(m)


@row()
def moved_by_overwriting(C):
    m = C(3, 4)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        m.float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    return other(m)


@row()
def moved_to_meta(C):
    m = C(3, 4).to("meta")
    return [(p.device, p.shape) for p in m.parameters()], m(_x(m).to("meta"))


@row()
def moved_to_int(C):
    return C(3, 4).to(torch.int64)


@row()
def made_empty_recursively(C):
    m = nn.Sequential(C(3, 4, device="meta")).to_empty(device="cpu")
    nn.utils.vector_to_parameters(torch.ones(10_000), m.parameters())
    return m(_x(m[0]))


@row()
def default_dtype(C):
    torch.set_default_dtype(torch.float32)
    try:
        return dict(C(3, 4).named_parameters())
    finally:
        torch.set_default_dtype(torch.float64)


@row()
def skip_init_with_device(C):
    m = nn.utils.skip_init(C, 3, 4, device="cpu")
    return [p.shape for p in m.parameters()]


# ---- Parametrizations ----


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@row()
def parametrized(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, _first(m), Doubled())
    return type(m).__name__, list(m.state_dict()), trained(m, _x(m))


@row()
def parametrized_twice(C):
    m = C(3, 4)
    for name, _ in list(m.named_parameters())[:2]:
        parametrize.register_parametrization(m, name, Doubled())
        parametrize.register_parametrization(m, name, Doubled())
    return list(m.state_dict()), trained(m, _x(m))


@row()
def parametrized_with_caching(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, _first(m), Doubled())
    with parametrize.cached():
        return m(_x(m)), m(_x(m))


@row()
def parametrization_removed(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, _first(m), Doubled())
    parametrize.remove_parametrizations(m, _first(m))
    assert type(m) is C
    return list(m.state_dict()), trained(m, _x(m))


@row()
def parametrized_deepcopy(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, _first(m), Doubled())
    return copy.deepcopy(m)(_x(m))


@row()
def parametrized_pickle(C):
    m = C(3, 4)
    parametrize.register_parametrization(m, _first(m), Doubled())
    return pickle.dumps(m)


@row()
def orthogonal(C):
    m = C(3, 4)
    nn.utils.parametrizations.orthogonal(m, _first(m))
    return trained(m, _x(m))


@row()
def weight_norm_removed(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(m, _first(m))
    m(_x(m))
    nn.utils.remove_weight_norm(m, _first(m))
    return list(m.state_dict()), m(_x(m))


@row()
def old_spectral_norm(C):
    m = C(3, 4).eval()
    nn.utils.spectral_norm(m, _first(m))
    return list(m.state_dict()), m(_x(m))


@row()
def pruned_for_good(C):
    m = C(3, 4)
    prune.random_unstructured(m, _first(m), 0.5)
    m(_x(m))
    prune.remove(m, _first(m))
    return list(m.state_dict()), m(_x(m))


# ---- Names ----


@row()
def names(C):
    m = C(3, 4)
    return m._get_name(), m.extra_repr(), C.__name__, C.__constants__


@row()
def repr_in_a_model(C):
    return repr(nn.Sequential(C(3, 4), C(4, 5, bias=False)))


@row()
def attributes(C):
    """Every attribute that torch's module has of its own: seqkern's has it too, and no other."""
    return sorted(vars(C(3, 4)))


@row(*LAYERS)
def assigned_dropout(C):
    m = C(3, 4, 2)
    m.dropout = 0.5
    return m(_x(m))


@row(*LAYERS)
def flatten_parameters(C):
    return C(3, 4).flatten_parameters()


@row(*LAYERS)
def checks_by_hand(C):
    m = C(3, 4)
    m.check_input(randn(5, 2, 3), None)
    m.check_forward_args(randn(5, 2, 3), state(m), None)
    return m.get_expected_hidden_size(randn(5, 2, 3), None)


@row(*LAYERS)
def permuted_by_hand(C):
    m = C(3, 4)
    return m.permute_hidden(state(m), torch.tensor([1, 0])), m.permute_hidden(state(m), None)


@row("LSTM")
def expected_cell_size(C):
    return C(3, 4, proj_size=2).get_expected_cell_size(randn(5, 2, 3), None)


@row(*LAYERS)
def packed_hx_list(C):
    m = C(3, 4)
    packed = pack_sequence([randn(3, 3), randn(2, 3)])
    hx = state(m)
    return m(packed, list(hx) if isinstance(hx, tuple) else hx)


@row("GRU", "RNN")
def packed_hx_of_one_sequence(C):
    m = C(3, 4)
    return m(pack_sequence([randn(3, 3), randn(2, 3)]), state(m, unbatched=True))


@row(*LAYERS)
def packed_of_all_lengths(C):
    m = C(3, 4, 2, bidirectional=True)
    sequences = [randn(n, 3) for n in (1, 5, 2, 5, 1)]
    return trained(m, pack_sequence(sequences, enforce_sorted=False))


@row(*LAYERS)
def packed_moved(C):
    m = C(3, 4).float()
    return m(pack_sequence([randn(3, 3), randn(2, 3)]).to(torch.float32))


@row(*LAYERS)
def scripted(C):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = torch.jit.script(C(3, 4, 2))
    return m.forward__0(randn(5, 2, 3))


@row()
def traced(C):
    m = C(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(m, (_x(m),))
    assert "seqkern::" not in str(traced.inlined_graph)
    return traced(_x(m))


@row()
def fx_traced(C):
    m = nn.Sequential(C(3, 4))
    graph = torch.fx.symbolic_trace(m)
    return [node.op for node in graph.graph.nodes], graph(_x(m[0]))


@row(*LAYERS)
def per_sample_gradients(C):
    m = C(3, 4, 2)
    call = call_for_per_sample_grads(m, batch_size=2)
    call(randn(5, 2, 3))[0].sin().sum().backward()
    return {n: p.grad_sample for n, p in m.named_parameters()}


# ---- What differs ----


@row(*LAYERS)
def output_changed_before_backward(C):
    m = C(3, 4)
    results = m(_x(m))
    value = loss(results)
    results[0].detach().mul_(2)
    value.backward()


@row(*LAYERS)
def deleted_weight(C):
    m = C(3, 4)
    del m.weight_hh_l0
    return m(_x(m))


@row(*LAYERS)
def weight_of_another_shape(C):
    m = C(3, 4)
    m.weight_hh_l0 = nn.Parameter(zeros(2, 2))
    return m(_x(m))


@row("LSTM", "LSTMCell")
def one_tensor_for_hx(C):
    m = C(3, 4)
    return m(_x(m), torch.stack(state(m)))


@row("LSTM")
def packed_input_size(C):
    return C(3, 4)(pack_sequence([randn(2, 7)]))


@row("LSTM")
def packed_hx_batch(C):
    m = C(3, 4)
    return m(pack_sequence([randn(2, 3)]), state(m, 5))


# Row, with or without its kind: why it differs.
DIFFERENT = {
    "output_changed_before_backward": "the kernels' backward pass reads output where torch's "
    "keeps a copy of each step",
    "deleted_weight": "torch goes on with its copy of what was deleted; a missing parameter is "
    "an error here",
    "weight_of_another_shape": "torch's error is that of a product somewhere inside; ours names "
    "the argument",
    "one_tensor_for_hx": "torch's text lists the overloads of its own C++ function",
    "packed_input_size-LSTM": "torch's LSTM does not look and fails inside; ours says what "
    "torch's GRU does",
    "packed_hx_batch-LSTM": "as with packed_input_size",
}


def test_the_table_is_long():
    assert len(TABLE) >= 150


@pytest.mark.parametrize("name", TABLE)
def test_row(float64, name):
    function, kind = TABLE[name]
    (torchs, torch_warnings), (ours, our_warnings) = (
        outcome(lambda N: function(getattr(N, kind)), N) for N in (nn, seqkern)
    )
    assert "module 'torch" not in str(torchs), "the row is wrong, not the classes"
    if name in DIFFERENT or function.__name__ in DIFFERENT:
        assert isinstance(ours, Exception), "it no longer differs as it says"
        with pytest.raises(AssertionError):
            same(ours, torchs)
        return
    agree(ours, our_warnings, torchs, torch_warnings)


@pytest.mark.parametrize("program", ROWS)
def test_patched(float64, program):
    """The rows of test_modules.py: torch.nn's names in a patch do what they do outside."""
    torchs = outcome(program, nn)
    with seqkern.patch():
        ours = outcome(program, nn)
    agree(*ours, *torchs)


def agree(ours, our_warnings, torchs, torch_warnings):
    if isinstance(ours, Exception) and not isinstance(torchs, Exception):
        raise ours
    same(ours, torchs)
    assert our_warnings == torch_warnings
