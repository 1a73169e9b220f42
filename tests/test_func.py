"""torch.func on whole modules: what torch.nn's layers give, transform by transform.

The transforms of single layers, and which kernels they run, are in test_autograd.py. Everything
here is in float64: torch.nn's float32 LSTM runs in oneDNN, which no transform can enter.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from layers import count_kernels
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils._pytree import tree_leaves, tree_map

import seqkern

pytestmark = pytest.mark.usefixtures("float64")

STACK = {"num_layers": 2, "bidirectional": True}
FORMS = [
    ("LSTM", {}),
    ("LSTM", STACK),
    ("LSTM", {"proj_size": 2, "batch_first": True, "bias": False}),
    ("GRU", STACK),
    ("RNN", {"num_layers": 2, "nonlinearity": "relu"}),
    ("LSTMCell", {}),
    ("GRUCell", {"bias": False}),
    ("RNNCell", {}),
]
every_form = pytest.mark.parametrize("kind, options", FORMS, ids=str)


def twins(kind, options):
    """The same module of seqkern and of torch.nn."""
    ours, torchs = (getattr(N, kind)(3, 4, **options).double() for N in (seqkern, nn))
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def input_for(module, *leading, batch=2):
    sizes = (batch, 3) if isinstance(module, nn.RNNCellBase) else (5, batch, 3)
    if getattr(module, "batch_first", False):
        sizes = (batch, 5, 3)
    return torch.randn(*leading, *sizes)


def parameters(module):
    return {name: p.detach() for name, p in module.named_parameters()}


def flat(module, params, *args):
    """Every result of the module as one vector: a function that any transform can take."""
    return torch.cat([r.flatten() for r in tree_leaves(functional_call(module, params, args))])


def loss(module, params, *args):
    return flat(module, params, *args).sin().sum()


def both(kind, options, transform, *args):
    """transform(module, params, *args) with seqkern's module equals that with torch.nn's."""
    ours, torchs = twins(kind, options)
    params = parameters(ours)
    with count_kernels() as calls:
        result = transform(ours, params, *args)
    torch.testing.assert_close(result, transform(torchs, params, *args))
    return calls


def layers_of(module):
    return getattr(module, "num_layers", 1)


@every_form
def test_vmap_over_batches(kind, options):
    """Folded into the batch: one kernel call a layer, whatever dimension is mapped."""
    ours, torchs = twins(kind, options)
    x = input_for(ours, 6)
    for dim in (0, 1, -1):
        mapped = x.movedim(0, dim).contiguous()
        with count_kernels() as calls:
            results = vmap(ours, dim)(mapped)
        assert sum(calls.values()) == layers_of(ours)
        expected = [tree_leaves(torchs(x_i)) for x_i in x]
        expected = [torch.stack(parts) for parts in zip(*expected, strict=True)]
        torch.testing.assert_close(tree_leaves(results), expected)


@every_form
def test_vmap_over_unbatched_sequences(kind, options):
    """vmap of the unbatched form is the batched form."""
    ours, _ = twins(kind, options)
    samples = torch.randn(6, 3) if isinstance(ours, nn.RNNCellBase) else torch.randn(6, 5, 3)
    with count_kernels() as calls:
        results = tree_leaves(vmap(ours)(samples))
    assert sum(calls.values()) == layers_of(ours)
    expected = [tree_leaves(ours(sample)) for sample in samples]
    expected = [torch.stack(parts) for parts in zip(*expected, strict=True)]
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("in_dims", (0, None), ids=("own input", "shared input"))
@every_form
def test_ensemble(kind, options, in_dims):
    """stack_module_state and vmap, as in torch's tutorial: results, losses and gradients of each
    member are its own."""
    members = [twins(kind, options)[0] for _ in range(3)]
    params, buffers = stack_module_state(members)
    params = {name: p.detach() for name, p in params.items()}
    base = copy.deepcopy(members[0]).to("meta")
    x = input_for(base, 3) if in_dims == 0 else input_for(base)

    def member_loss(params, x):
        results = tree_leaves(functional_call(base, (params, buffers), (x,)))
        return sum(r.sin().sum() for r in results)

    with count_kernels() as calls:
        grads, losses = vmap(grad_and_value(member_loss), (0, in_dims))(params, x)
    assert sum(calls.values()) == 2 * 3 * layers_of(base)
    for i, member in enumerate(members):
        torchs = getattr(nn, kind)(3, 4, **options)
        torchs.load_state_dict(member.state_dict())
        results = tree_leaves(torchs(x[i] if in_dims == 0 else x))
        expected = sum(r.sin().sum() for r in results)
        expected.backward()
        torch.testing.assert_close(losses[i], expected.detach())
        for name, p in torchs.named_parameters():
            torch.testing.assert_close(grads[name][i], p.grad)


def test_ensemble_trains():
    """Steps on stacked parameters are the steps of each member alone."""
    members = [twins("GRU", STACK)[0] for _ in range(2)]
    params, buffers = stack_module_state(members)
    params = {name: p.detach() for name, p in params.items()}
    x = input_for(members[0])

    def member_loss(params):
        return functional_call(members[0], (params, buffers), (x,))[0].square().mean()

    for _ in range(3):
        grads, _ = vmap(grad_and_value(member_loss))(params)
        params = {name: p - 0.5 * grads[name] for name, p in params.items()}
    for i, member in enumerate(members):
        optimizer = torch.optim.SGD(member.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            member(x)[0].square().mean().backward()
            optimizer.step()
        for name, p in member.named_parameters():
            torch.testing.assert_close(params[name][i], p.detach())


@every_form
def test_grad_and_vjp(kind, options):
    x = input_for(twins(kind, options)[0])
    both(kind, options, lambda m, p, x: grad(partial(loss, m), (0, 1))(p, x), x)

    def pull_back(module, params, x):
        results, back = vjp(partial(flat, module), params, x)
        return back(results.cos())

    calls = both(kind, options, pull_back, x)
    assert len(calls) == 2  # the forward and the backward kernel


@every_form
def test_per_sample_gradients(kind, options):
    """vmap of grad over shared weights, and the same by torch.nn one by one."""
    ours, torchs = twins(kind, options)
    params, samples = parameters(ours), input_for(ours, 4, batch=1)
    with count_kernels() as calls:
        grads = vmap(grad(partial(loss, ours)), (None, 0))(params, samples)
    assert any("backward" in name for name in calls)
    for i, sample in enumerate(samples):
        expected = grad(partial(loss, torchs))(params, sample)
        for name in params:
            torch.testing.assert_close(grads[name][i], expected[name])


@every_form
def test_jacobians(kind, options):
    """jacrev and jacfwd, of results by input and by a recurrent weight."""
    name = "weight_hh" if "Cell" in kind else "weight_hh_l0"
    x = input_for(twins(kind, options)[0], batch=1)

    def jacobian(transform, module, params, x):
        def results(weight, x):
            return flat(module, params | {name: weight}, x)

        return transform(results, (0, 1))(params[name], x)

    both(kind, options, partial(jacobian, jacrev), x)
    both(kind, options, partial(jacobian, jacfwd), x)


# torch's own: its linearize still goes through jit.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@every_form
def test_forward_mode(kind, options):
    """torch.func.jvp, linearize and dual tensors; these run the readable loops."""
    ours, torchs = twins(kind, options)
    params, x = parameters(ours), input_for(ours)
    tangents = tree_map(torch.randn_like, (params, x))
    results = [jvp(partial(flat, m), (params, x), tangents) for m in (ours, torchs)]
    torch.testing.assert_close(*results)
    _, linear = linearize(partial(flat, ours), params, x)
    torch.testing.assert_close(linear(*tangents), results[1][1])
    with forward_ad.dual_level():
        dual = functional_call(
            ours,
            {n: forward_ad.make_dual(p, tangents[0][n]) for n, p in params.items()},
            (forward_ad.make_dual(x, tangents[1]),),
        )
        dual = [forward_ad.unpack_dual(r).tangent for r in tree_leaves(dual)]
    torch.testing.assert_close(torch.cat([t.flatten() for t in dual]), results[1][1])


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"))
def test_hessian(kind):
    """Forward over reverse and reverse over reverse, by two parameters at once; and the product of
    the Hessian with a vector."""
    suffix = "" if "Cell" in kind else "_l0"
    names = f"weight_ih{suffix}", f"bias_hh{suffix}"
    ours, torchs = (getattr(N, kind)(1, 2).double() for N in (seqkern, nn))
    torchs.load_state_dict(ours.state_dict())
    params = parameters(ours)
    x = torch.randn(1, 1) if "Cell" in kind else torch.randn(3, 1, 1)

    def by(module):
        return lambda *chosen: loss(module, params | dict(zip(names, chosen, strict=True)), x)

    at = tuple(params[name] for name in names)
    directions = tree_map(torch.randn_like, at)
    for twice in (
        lambda f: hessian(f, (0, 1))(*at),
        lambda f: jacrev(jacrev(f, (0, 1)), (0, 1))(*at),
        lambda f: jvp(grad(f, (0, 1)), at, directions)[1],
    ):
        torch.testing.assert_close(twice(by(ours)), twice(by(torchs)))


@every_form
def test_functional_call(kind, options):
    """Other weights, some of them only, tied ones; the module keeps its own."""
    ours, torchs = twins(kind, options)
    before = parameters(copy.deepcopy(ours))
    names = list(before)
    x = input_for(ours)
    same_shape = [n for n in names if before[n].shape == before[names[1]].shape]
    for given in (
        {n: 2 * p for n, p in before.items()},
        {names[0]: before[names[0]] + 1},
        {n: before[names[1]] for n in same_shape},
    ):
        torch.testing.assert_close(
            flat(ours, given, x), flat(torchs, before | given, x), rtol=1e-9, atol=1e-9
        )
    torch.testing.assert_close(parameters(ours), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_dropout_under_vmap(kind):
    """vmap's rules for randomness: an error by default, one mask for all, or one for each."""
    ours, _ = twins(kind, {"num_layers": 2, "dropout": 0.5})
    x = torch.ones(4, 5, 2, 3)
    with pytest.raises(RuntimeError, match="random operation while in randomness error mode"):
        vmap(ours)(x)
    same = vmap(ours, randomness="same")(x)[0]
    assert torch.equal(same, same[:1].expand_as(same))
    different = vmap(ours, randomness="different")(x)[0]
    assert not torch.equal(different[0], different[1])


@pytest.mark.parametrize(
    "transform",
    (grad, lambda f: vmap(f, (None, 0)), lambda f: vmap(grad(f), (None, 0))),
    ids=("grad", "vmap", "vmap of grad"),
)
@every_form
def test_compiled_transforms(kind, options, transform):
    """A transform inside of one graph, which runs the readable loops."""
    torch._dynamo.reset()
    ours, _ = twins(kind, options)
    params = parameters(ours)
    x = input_for(ours) if transform is grad else input_for(ours, 3)
    transformed = transform(partial(loss, ours))
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params, x), transformed(params, x))
