"""seqkern's modules are torch.nn's: one table of programs, run with both, results and errors equal.

Each row is a function of a namespace, ``torch.nn`` or ``seqkern``; random numbers start from the
same seed. What it returns, or the class and message of what it raises, must be the same. The
default dtype is float64, where equal means to rounding; tests of other dtypes follow below.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from tolerances import check
from torch import nn, randn, zeros
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import seqkern

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
ROWS = []


def rows(table, *kinds):
    """Adds named expressions of a class C to the table, once for each kind of module."""
    for kind in kinds:
        for name, function in table.items():
            ROWS.append(
                pytest.param(lambda N, f=function, k=kind: f(getattr(N, k)), id=f"{name}-{kind}")
            )


def state(module, batch=2, dtype=None, unbatched=False, requires_grad=False):
    """Random initial states for a module."""
    if isinstance(module, nn.RNNCellBase):
        shapes = [(batch, module.hidden_size)] * (2 if "LSTM" in type(module).__name__ else 1)
    else:
        rows = module.num_layers * (2 if module.bidirectional else 1)
        shapes = [(rows, batch, module.proj_size or module.hidden_size)]
        if module.mode == "LSTM":
            shapes.append((rows, batch, module.hidden_size))
    if unbatched:
        shapes = [tuple(n for i, n in enumerate(s) if i != len(s) - 2) for s in shapes]
    states = tuple(randn(s, dtype=dtype, requires_grad=requires_grad) for s in shapes)
    return states if len(states) == 2 else states[0]


def trained(module, *arguments):
    """Results and every gradient."""
    results = module(*arguments)
    leaves = [r for r in tree_leaves(results) if isinstance(r, torch.Tensor) and r.requires_grad]
    torch.autograd.backward([leaf.sin().sum() for leaf in leaves])
    inputs = [a for a in tree_leaves(arguments) if isinstance(a, torch.Tensor)]
    return results, [t.grad for t in inputs], {n: p.grad for n, p in module.named_parameters()}


def outcome(function, namespace):
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(namespace)
        except Exception as error:  # noqa: BLE001 (whatever it is, both must raise it)
            result = error
    # torch tells oneDNN's users what their layers lack; seqkern's need nothing of it.
    texts = [str(w.message) for w in caught if "oneDNN" not in str(w.message)]
    return result, texts


def same(ours, torchs, where="result"):
    """Equal structure, equal numbers to rounding."""
    if isinstance(torchs, Exception):
        assert isinstance(ours, Exception), f"torch raises {torchs!r}, seqkern returns {ours}"
        assert type(ours) is type(torchs), (ours, torchs)
        assert str(ours) == str(torchs)
    elif isinstance(torchs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), (where, ours)
        assert ours.shape == torchs.shape and ours.dtype == torchs.dtype, where
        assert ours.requires_grad == torchs.requires_grad, where
        assert ours.device == torchs.device, where
        if torchs.is_meta:
            return
        if not torchs.is_floating_point() or torchs.dtype != torch.float64:
            torch.testing.assert_close(ours, torchs)
        else:
            check(ours.detach(), torchs.detach(), torchs.detach(), where)
    elif isinstance(torchs, dict):
        assert list(ours) == list(torchs), where
        for key in torchs:
            same(ours[key], torchs[key], f"{where}[{key!r}]")
    elif isinstance(torchs, (tuple, list)):
        assert type(ours) is type(torchs) and len(ours) == len(torchs), where
        for i, pair in enumerate(zip(ours, torchs, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert ours == torchs, where


# ---- Construction ----

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


# ---- Forward: layers ----

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
        "weight_none": lambda C: _set(C(3, 4), weight_hh_l0=None)(zeros(5, 2, 3)),
        "weight_float32": lambda C: _set(
            C(3, 4), weight_hh_l0=nn.Parameter(zeros(C(3, 4).weight_hh_l0.shape).float())
        )(zeros(5, 2, 3)),
        "bias_float32": lambda C: _set(
            C(3, 4), bias_ih_l0=nn.Parameter(zeros(C(3, 4).bias_ih_l0.shape).float())
        )(zeros(5, 2, 3)),
        "second_layer_float32": lambda C: _set(
            C(3, 4, 2), weight_ih_l1=nn.Parameter(zeros(C(3, 4, 2).weight_ih_l1.shape).float())
        )(zeros(5, 2, 3)),
    },
    *LAYERS,
)


def _set(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _stateful(module):
    """One step at a time with explicit states, truncated gradients and all."""
    hx, outputs = None, []
    for _ in range(20):
        output, hx = module(randn(1, 2, 3), hx)
        outputs.append(output)
    torch.cat(outputs).sin().sum().backward()
    return outputs, hx, {n: p.grad for n, p in module.named_parameters()}


# ---- Forward: cells ----

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
        "one_bias": lambda C: _set(C(3, 4), bias_hh=None)(randn(2, 3)),
        "other_bias": lambda C: _set(C(3, 4), bias_ih=None)(randn(2, 3)),
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
        "weight_shape": lambda C: _set(C(3, 4), weight_hh=nn.Parameter(zeros(2, 2)))(zeros(2, 3)),
        "bias_shape": lambda C: _set(C(3, 4), bias_hh=nn.Parameter(zeros(2)))(zeros(2, 3)),
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


# ---- Life of a module ----


def _x(module):
    return randn(2, 3) if isinstance(module, nn.RNNCellBase) else randn(5, 2, 3)


def _first(module):
    """The name of a recurrent weight."""
    return "weight_hh" if isinstance(module, nn.RNNCellBase) else "weight_hh_l0"


def _reloaded(module, protocol=None):
    if protocol is not None:
        return pickle.loads(pickle.dumps(module, protocol))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _functional(module):
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    x = _x(module)
    return torch.func.functional_call(module, doubled, (x,)), module(x)


def _per_sample(module):
    params = dict(module.named_parameters())

    def loss(params, x):
        leaves = tree_leaves(torch.func.functional_call(module, params, (x.unsqueeze(-2),)))
        return sum(leaf.sin().sum() for leaf in leaves)

    return torch.func.grad(loss)(params, randn(3) if "Cell" in repr(module) else randn(5, 3))


def _weight_drop(module):
    """As in AWD-LSTM implementations: the parameter goes, a plain tensor takes its place."""
    name = _first(module)
    raw = getattr(module, name)
    del module._parameters[name]
    module.register_parameter(name + "_raw", nn.Parameter(raw.data))
    setattr(module, name, torch.dropout(getattr(module, name + "_raw"), 0.5, True))
    return trained(module, _x(module))


def _weight_norm(module):
    torch.nn.utils.parametrizations.weight_norm(module, _first(module))
    return trained(module, _x(module))


def _spectral_norm(module):
    """In eval mode: in training every look at the weight, and torch looks often, iterates."""
    torch.nn.utils.parametrizations.spectral_norm(module.eval(), _first(module))
    return trained(module, _x(module))


def _old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(module, _first(module))
    return trained(module, _x(module))


def _tied(module):
    other = copy.deepcopy(module)
    setattr(other, _first(module), getattr(module, _first(module)))
    pair = nn.ModuleList([module, other])
    sum(leaf.sin().sum() for m in pair for leaf in tree_leaves(m(_x(m)))).backward()
    return {n: p.grad for n, p in pair.named_parameters()}


def _in_place(module):
    loss = tree_leaves(module(_x(module), state(module, requires_grad=True)))[0].sum()
    with torch.no_grad():
        getattr(module, _first(module)).mul_(2)
    try:
        loss.backward()
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)


def _data_edit(module):
    """.data edits are seen by the next call."""
    before = module(_x(module))
    getattr(module, _first(module)).data.mul_(2)
    return before, module(_x(module))


def _hooks(module):
    seen = []
    module.register_forward_pre_hook(lambda m, a: seen.append(len(a)))
    module.register_forward_hook(lambda m, a, r: seen.append(len(tree_leaves(r))))
    module.register_full_backward_hook(lambda m, gi, go: seen.append((len(gi), len(go))))
    tree_leaves(module(_x(module).requires_grad_()))[0].sum().backward()
    return seen


def _optimizer(module):
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(leaf.pow(2).sum() for leaf in tree_leaves(module(_x(module)))).backward()
        optimizer.step()
    return module.state_dict()


def _double_backward(module):
    x = _x(module).requires_grad_()
    value = sum(leaf.sin().sum() for leaf in tree_leaves(module(x)))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    grad.pow(2).sum().backward()
    return x.grad, {n: p.grad for n, p in module.named_parameters()}


def _to_empty(C):
    module = C(3, 4, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    module.reset_parameters()
    return module(_x(module))


def _default_device(C):
    with torch.device("meta"):
        return dict(C(3, 4).named_parameters())


def _load_bad(module):
    module.load_state_dict({"weight_ih": zeros(1)})


def _prune(module):
    prune.l1_unstructured(module, _first(module), 0.5)
    return trained(module, _x(module))


def _stateful_copy(module):
    other = copy.deepcopy(module)
    with torch.no_grad():
        getattr(module, _first(module)).zero_()
    return module(_x(module)), other(_x(other))


rows(
    {
        "deepcopy": lambda C: copy.deepcopy(m := C(3, 4))(_x(m)),
        "deepcopy_is_apart": lambda C: _stateful_copy(C(3, 4)),
        "copy": lambda C: copy.copy(m := C(3, 4))(_x(m)),
        "pickle_2": lambda C: _reloaded(m := C(3, 4), 2)(_x(m)),
        "pickle_5": lambda C: _reloaded(m := C(3, 4), 5)(_x(m)),
        "torch_save": lambda C: _reloaded(m := C(3, 4))(_x(m)),
        "state_dict": lambda C: C(3, 4).state_dict(),
        "load_bad": lambda C: _load_bad(C(3, 4)),
        "functional_call": lambda C: _functional(C(3, 4)),
        "func_grad": lambda C: _per_sample(C(3, 4)),
        "weight_drop": lambda C: _weight_drop(C(3, 4)),
        "weight_norm": lambda C: _weight_norm(C(3, 4)),
        "old_weight_norm": lambda C: _old_weight_norm(C(3, 4)),
        "spectral_norm": lambda C: _spectral_norm(C(3, 4)),
        "prune": lambda C: _prune(C(3, 4)),
        "tied": lambda C: _tied(C(3, 4)),
        "in_place": lambda C: _in_place(C(3, 4)),
        "data_edit": lambda C: _data_edit(C(3, 4)),
        "hooks": lambda C: _hooks(C(3, 4)),
        "optimizer": lambda C: _optimizer(C(3, 4)),
        "double_backward": lambda C: _double_backward(C(3, 4)),
        "to_float32": lambda C: C(3, 4).to(torch.float32).state_dict(),
        "half": lambda C: C(3, 4).half().state_dict(),
        "to_empty": _to_empty,
        "device_context": _default_device,
        "skip_init": lambda C: {
            n: p.shape for n, p in nn.utils.skip_init(C, 3, 4).named_parameters()
        },
        "share_memory": lambda C: (m := C(3, 4)).share_memory()(_x(m)),
        "reset_parameters": lambda C: ((m := C(3, 4)).reset_parameters(), m.state_dict())[1],
        "delete_weight": lambda C: None if "Cell" not in C.__name__ else _deleted(C(3, 4)),
        "attribute": lambda C: C(3, 4).weights,
    },
    *LAYERS,
    *CELLS,
)


def _deleted(module):
    delattr(module, _first(module))
    return module(_x(module))


def test_the_table_is_long():
    assert len(ROWS) >= 150


@pytest.mark.parametrize("program", ROWS)
def test_same_as_torch(float64, program):
    torchs, torch_warnings = outcome(program, nn)
    ours, our_warnings = outcome(program, seqkern)
    if isinstance(torchs, Exception) and not isinstance(ours, Exception):
        pytest.fail(f"torch raises {torchs!r}")
    if isinstance(ours, Exception) and not isinstance(torchs, Exception):
        raise ours
    same(ours, torchs)
    assert our_warnings == torch_warnings


# ---- What takes more than one row ----

FORMS = [(kind, (3, 4, 2), {"bidirectional": True}) for kind in LAYERS]
FORMS += [("LSTM", (3, 4), {"proj_size": 2, "bias": False})]
FORMS += [(kind, (3, 4), {}) for kind in CELLS]


@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_state_dict_goes_both_ways(kind, args, kwargs):
    ours, torchs = getattr(seqkern, kind)(*args, **kwargs), getattr(nn, kind)(*args, **kwargs)
    for source, target in ((ours, torchs), (torchs, ours)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict(), strict=True)
        same(dict(target.named_parameters()), dict(source.named_parameters()))
        assert list(source.state_dict()) == list(target.state_dict())


@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_parameters_frozen_one_by_one(float64, kind, args, kwargs):
    names = list(dict(getattr(nn, kind)(*args, **kwargs).named_parameters()))
    for frozen in names:

        def program(N, frozen=frozen):
            module = getattr(N, kind)(*args, **kwargs)
            getattr(module, frozen).requires_grad_(False)
            return trained(module, _x(module))

        torchs, _ = outcome(program, nn)
        same(outcome(program, seqkern)[0], torchs)
        assert torchs[2][frozen] is None


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("bidirectional", (False, True))
def test_float32_dropout_has_torchs_masks(kind, batch_first, bidirectional):
    """In float32 torch's LSTM runs in oneDNN: the masks must be the same there too."""
    results = []
    for N in (nn, seqkern):
        torch.manual_seed(0)
        options = {"batch_first": batch_first, "bidirectional": bidirectional}
        module = getattr(N, kind)(3, 4, 3, dropout=0.4, **options)
        torch.manual_seed(1)
        results.append((*tree_leaves(module(torch.ones(5, 2, 3))), torch.rand(3)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("kind", (*LAYERS, *CELLS))
def test_short_dtypes(kind, dtype):
    """Weights in a short dtype: torch's results within the tolerance rule."""
    ours, torchs = getattr(seqkern, kind)(3, 16, dtype=dtype), getattr(nn, kind)(3, 16)
    torchs.load_state_dict(ours.state_dict())  # float32: what every machine can run
    exact = copy.deepcopy(torchs).double()
    x = _x(ours).to(dtype)
    for a, b, e in zip(
        *(
            tree_leaves(m(x.to(t)))
            for m, t in zip(
                (ours, torchs, exact), (dtype, torch.float32, torch.float64), strict=True
            )
        ),
        strict=True,
    ):
        assert a.dtype == dtype
        check(a, e, b.to(dtype))


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_shapes_are_checked(kind):
    """torch's LSTM does not look at them and fails inside; ours says what torch's GRU does."""
    module = getattr(seqkern, kind)(3, 4)
    packed = pack_sequence([randn(3, 3), randn(2, 3)])
    which = "hidden[0]" if kind == "LSTM" else "hidden"
    with pytest.raises(RuntimeError) as error:
        module(packed, state(module, 5))
    assert str(error.value) == f"Expected {which} size (1, 2, 4), got [1, 5, 4]"
    with pytest.raises(
        RuntimeError, match="input.size.-1. must be equal to input_size. Expected 3"
    ):
        module(pack_sequence([randn(3, 7)]))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(packed.to(torch.float64))
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        module(PackedSequence(randn(5, 1, 3), torch.tensor([2, 2, 1])))
    with pytest.raises(RuntimeError, match="batch_sizes must add up to the 6 rows of input"):
        module(PackedSequence(randn(6, 3), torch.tensor([2, 2, 1])))


@pytest.mark.parametrize("kind", (*LAYERS, *CELLS))
def test_one_tensor_for_hx_pair(kind):
    module = getattr(seqkern, kind)(3, 4)
    if not kind.startswith("LSTM"):
        with pytest.raises((RuntimeError, ValueError)):
            module(_x(module), zeros(2, 1, 2, 4))
        return
    with pytest.raises(TypeError, match="takes hx as a tuple"):
        module(_x(module), zeros(2, 1, 2, 4))


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_of_another_shape(kind):
    """torch reads past its end (oneDNN) or fails somewhere inside."""
    module = _set(getattr(seqkern, kind)(3, 4), weight_hh_l0=nn.Parameter(zeros(2, 2)))
    with pytest.raises(RuntimeError, match=r"w_hh must be \[G\*H, H\] = \[\d+, 4\], got \[2, 2\]"):
        module(randn(5, 2, 3))


@pytest.mark.parametrize("kind", LAYERS)
def test_deleted_weight(kind):
    """torch goes on with its copy of what was deleted; here a missing parameter is an error."""
    module = getattr(seqkern, kind)(3, 4)
    del module.weight_hh_l0
    with pytest.raises(AttributeError, match="no attribute 'weight_hh_l0'"):
        module(randn(5, 2, 3))


def test_flatten_parameters_does_nothing_and_may_be_replaced():
    module = seqkern.LSTM(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.flatten_parameters() is None
        module.flatten_parameters = lambda: None
        module(randn(5, 2, 3))


@pytest.mark.parametrize("kind", LAYERS)
def test_replica(float64, kind):
    """What DataParallel runs: a copy whose parameters are plain attributes."""
    module = getattr(seqkern, kind)(3, 4)
    replica = module._replicate_for_data_parallel()
    replica._parameters = {}
    for name, parameter in module._parameters.items():
        setattr(replica, name, 2 * parameter)
    x = randn(5, 2, 3)
    doubled = {name: 2 * p for name, p in module.named_parameters()}
    same(replica(x), torch.func.functional_call(module, doubled, (x,)))


def test_subclass_of_both():
    """As third-party code writes it: its own base first, torch's module second."""

    class Base(nn.RNNBase):
        def extra(self):
            return self.hidden_size

    class Own(Base, seqkern.LSTM):
        pass

    assert Own(3, 4).extra() == 4
    assert Own(3, 4)(randn(5, 2, 3))[0].shape == (5, 2, 4)


@pytest.mark.parametrize("learned", (True, False), ids=("hx learned", "hx given"))
@pytest.mark.parametrize("grad", (True, False), ids=("training", "inference"))
@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_flops_are_counted(kind, args, kwargs, grad, learned):
    """As torch counts them where its layers are made of products, as those in float64 are."""
    counts = []
    for namespace in (seqkern, nn):
        module = getattr(namespace, kind)(*args, **kwargs).double()
        x = _x(module).double().requires_grad_(grad)
        hx = tree_map(lambda s: s.double().requires_grad_(grad and learned), state(module))
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            results = module(x, hx)
            if grad:
                sum(r.sum() for r in tree_leaves(results)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", seqkern.modules.__all__)
def test_isinstance(kind):
    module = getattr(seqkern, kind)(3, 4)
    assert [k for k in seqkern.modules.__all__ if isinstance(module, getattr(nn, k))] == [kind]


# ---- torch.compile ----


@pytest.mark.parametrize("mode", ("train", "eval"))
@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_compile_without_graph_breaks(kind, args, kwargs, mode):
    torch._dynamo.reset()
    module = getattr(seqkern, kind)(*args, **kwargs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = _x(module).requires_grad_()
    with torch.set_grad_enabled(mode == "train"):
        for arguments in ((x,), (x, state(module))):
            expected, results = module(*arguments), compiled(*arguments)
            torch.testing.assert_close(results, expected)
    if mode == "train":
        tree_leaves(results)[0].sin().sum().backward()
        grads = [x.grad, *(p.grad for p in module.parameters())]
        x.grad = None
        module.zero_grad()
        tree_leaves(expected)[0].sin().sum().backward()
        torch.testing.assert_close(grads, [x.grad, *(p.grad for p in module.parameters())])


@pytest.mark.parametrize("kind", LAYERS)
def test_compile_dropout(kind):
    torch._dynamo.reset()
    module = getattr(seqkern, kind)(3, 4, 3, dropout=0.5, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = randn(2, 5, 3)
    torch.manual_seed(3)
    expected = module(x)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(x), expected)
