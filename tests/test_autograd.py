"""Derivatives through the production kernels, and torch.func on top of them."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import ClassVar

import pytest
import torch
from layers import CELLS, Case, count_kernels, gradients
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import seqkern
from seqkern import _C, autograd, functional, reference

KINDS = (*((cell, 0) for cell in CELLS), ("lstm", 2))

# Central differences are good to about 1e-9 here; gradcheck's own bounds would let 1e-4 pass.
TIGHT = {"rtol": 1e-5, "atol": 1e-7}


def leaves(case: Case, dtype=torch.float64) -> list[torch.Tensor]:
    return [t.requires_grad_() for t in case.arguments(dtype).values()]


@pytest.mark.parametrize("sizes", (None, (2, 2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell, P", KINDS)
def test_gradcheck(cell, P, D, bias, sizes):
    """Every differentiable input: input, h_0, c_0, weights, biases, projection."""
    case = Case(cell, T=3, B=2, I=2, H=3, P=P, D=D, bias=bias, batch_sizes=sizes)
    assert gradcheck(lambda *t: case.call(functional, *t), leaves(case), **TIGHT)


@pytest.mark.parametrize("sizes", (None, (2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell, P", KINDS)
def test_gradgradcheck(cell, P, D, sizes):
    """As above for second derivatives; by random projections, which see every entry at once."""
    case = Case(cell, T=2, B=2, I=2, H=3, P=P, D=D, batch_sizes=sizes)
    assert gradgradcheck(
        lambda *t: case.call(functional, *t), leaves(case), fast_mode=True, **TIGHT
    )


@pytest.mark.parametrize("cell, P", KINDS)
def test_gradgradcheck_entry_by_entry(cell, P):
    case = Case(cell, T=2, B=1, I=1, H=2, P=min(P, 1))
    assert gradgradcheck(lambda *t: case.call(functional, *t), leaves(case), **TIGHT)


@pytest.mark.parametrize("cell", CELLS)
def test_third_derivative(cell):
    case = Case(cell, T=2, B=1, I=2, H=2)
    results = []
    for module in (functional, reference):
        tensors = leaves(case)
        value = case.call(module, *tensors)[0].pow(2).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True)
            value = sum(g.pow(2).sum() for g in grads if g is not None)
        results.append(value)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("sizes", (None, (2, 2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("cell", CELLS)
def test_each_input_alone(cell, sizes):
    """One tensor at a time requires grad; its gradient is the one it has among all."""
    case = Case(cell, T=3, B=2, D=2, batch_sizes=sizes)
    arguments = case.arguments()
    everything = gradients(lambda *t: case.call(functional, *t), arguments)
    g = torch.Generator()
    for name in arguments:
        tensors = {key: t.clone().requires_grad_(key == name) for key, t in arguments.items()}
        results = case.call(functional, *tensors.values())
        g.manual_seed(1)
        weights = [torch.randn(r.shape, generator=g, dtype=r.dtype) for r in results]
        torch.autograd.backward(results, weights)
        assert torch.equal(tensors[name].grad, everything[f"grad_{name}"]), name
        assert all(t.grad is None for key, t in tensors.items() if key != name)


@pytest.mark.parametrize("which", ("output", "h_n", "c_n"))
def test_each_result_alone(which):
    """Gradients through one result only, the others unused."""
    case = Case("lstm", D=2)
    position = ("output", "h_n", "c_n").index(which)
    ours, exact = leaves(case), leaves(case)
    case.call(functional, *ours)[position].pow(2).sum().backward()
    case.call(reference, *exact)[position].pow(2).sum().backward()
    for a, b in zip(ours, exact, strict=True):
        expected = torch.zeros_like(b) if b.grad is None else b.grad
        torch.testing.assert_close(torch.zeros_like(a) if a.grad is None else a.grad, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_through_one_graph(cell):
    case = Case(cell)
    tensors = leaves(case)
    loss = case.call(functional, *tensors)[0].pow(2).sum()
    first = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, tensors, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert a is b is None or torch.equal(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, tensors, allow_unused=True)


@pytest.mark.parametrize("name", ("input", "h_0", "w_ih_0", "w_hh_0"))
def test_changed_between_forward_and_backward(name):
    case = Case("gru")
    arguments = {key: t.requires_grad_() for key, t in case.arguments().items()}
    loss = case.call(functional, *arguments.values())[0].sum()
    with torch.no_grad():
        arguments[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_saved_without_grad():
    case = Case("lstm")
    tensors = list(case.arguments().values())
    assert all(r.grad_fn is None for r in case.call(functional, *tensors))
    with torch.no_grad(), count_kernels() as calls:
        case.call(functional, *(t.requires_grad_() for t in tensors))
    assert calls == {"lstm_forward": 1}


# The node of plain eager mode, and the Function for what else is at work


class Watched(torch.Tensor):
    """Sees with __torch_function__ what is called with it."""

    calls: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls[str(func)] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class Asked(TorchDispatchMode):
    """The kernels that are called, each with what it is asked for."""

    def __enter__(self):
        super().__enter__()
        self.calls = []
        return self.calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "seqkern":
            flags = [a for a in args if isinstance(a, bool)]
            self.calls.append((func._schema.name.removeprefix("seqkern::"), flags))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", CELLS)
def test_which_node(cell):
    case = Case(cell)
    tensors = leaves(case)

    def node():
        return case.call(functional, *tensors)[0].grad_fn.name()

    assert "LayerFunction" in node()
    with BaseTorchFunctionMode():
        assert node() == "LayerBackward"
    for i in range(len(tensors)):
        plain, tensors[i] = tensors[i], tensors[i].as_subclass(Watched)
        Watched.calls.clear()
        assert node() == "LayerBackward"
        assert Watched.calls[f"seqkern.{cell}_forward.default"] == 1
        tensors[i] = plain


def test_calls_of_a_node_that_do_not_fit():
    with pytest.raises(ValueError, match="there is no cell 'mgu'"):
        _C.step("mgu")
    with pytest.raises(TypeError, match="not the arguments of this cell's step"):
        _C.step("lstm", torch.ones(2, 3))
    params, states = [torch.ones(3, 3)] * 4, torch.zeros(3, 2, 3)

    def layers(batch_sizes, states, params):
        input = torch.ones(4, 2, 3)
        _C.layers("rnn_tanh", input, batch_sizes, states, None, params, 2, 1, 0.0, "gates")

    with pytest.raises(RuntimeError, match=r"2 layers times 1 directions, got h_0 \[3, 2, 3\]"):
        layers(None, states, params)
    with pytest.raises(RuntimeError, match="as many parameters for each of 2 layers, got 3"):
        layers(None, states[:2], params[:3])
    with pytest.raises(RuntimeError, match="only padded input .* has states by default"):
        layers(torch.tensor([2, 2]), None, params)
    with pytest.raises(RuntimeError, match=r"expected w_ih \[G\*H, I\], .* got \[3\]"):
        layers(None, None, [torch.ones(3)] * 4)


def test_layers_are_nodes_where_a_gradient_is_wanted():
    """Layers below the first parameter that is trained keep nothing."""
    gru = seqkern.GRU(3, 4, 3)
    for name, param in gru.named_parameters():
        param.requires_grad_(name.endswith("l1"))
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output, _ = gru(torch.randn(5, 2, 3))
    gates = [t for t in saved if t.shape == (1, 10, 16)]
    assert len(gates) == 2
    output.sum().backward()
    assert [name for name, p in gru.named_parameters() if p.grad is not None] == [
        f"{kind}_{of}_l1" for kind in ("weight", "bias") for of in ("ih", "hh")
    ]


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
@pytest.mark.parametrize("cell, P", KINDS)
def test_without_grad_the_operator_alone_runs(cell, P, mode):
    """With nothing kept, and results that may be changed in place."""
    case = Case(cell, T=3, B=2, P=P, D=2)
    tensors = [t.requires_grad_() for t in leaves(case)]
    expected = case.call(functional, *tensors)
    with mode(), Asked() as asked:
        results = case.call(functional, *tensors)
    assert asked == [(f"{cell}_forward", [])]
    for got, want in zip(results, expected, strict=True):
        assert torch.equal(got, want)
        assert not got.requires_grad and not got._is_view()
        assert got.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("save", ("gates", "states"))
@pytest.mark.parametrize("sizes", (None, (2, 2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell, P", KINDS)
def test_node_and_function_are_one(cell, P, D, bias, sizes, save):
    """Results, what is saved, which kernels run, gradients, and those that no one wants."""
    case = Case(cell, T=3, B=2, P=P, D=D, bias=bias, batch_sizes=sizes)

    states, count = (3 if cell == "lstm" else 2), len(leaves(case))

    def function(*tensors):
        given = (*tensors[:states], None)[:3]
        return autograd.Layer.apply(cell, save, case.sizes(), *given, *tensors[states:])[:states]

    params = range(states, count)
    for frozen in ((), (0,), (1,), params, params[:-1]):
        found = []
        for layer in (lambda *t: case.call(functional, *t, save=save), function):
            tensors = [t.requires_grad_(i not in frozen) for i, t in enumerate(leaves(case))]
            saved = Counter()

            def pack(tensor, saved=saved):
                saved[
                    tuple(tensor.shape), tensor.dtype, round(tensor.double().sum().item(), 6)
                ] += 1
                return tensor

            with Asked() as asked:
                with saved_tensors_hooks(pack, lambda t: t):
                    results = layer(*tensors)
                sum(r.sin().sum() for r in results).backward()
            assert all(r.requires_grad and not r._is_view() for r in results)
            wanted = [0 not in frozen, 1 not in frozen, any(p not in frozen for p in params), False]
            assert asked == [(f"{cell}_forward", []), (f"{cell}_backward", wanted)]
            found.append((saved, [*results, *(t.grad for t in tensors)]))
        (saved, ours), (expected, others) = found
        assert saved == expected
        for a, b in zip(ours, others, strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivative_inside_of_a_transform(cell):
    """The graph is that of plain eager mode; a transform is at work when it is differentiated."""
    case = Case(cell)
    found = []
    for module in (functional, reference):
        tensors = leaves(case)
        output = case.call(module, *tensors)[0]

        def pull_back(seed, output=output, tensors=tensors):
            return torch.autograd.grad(output, tensors, seed, retain_graph=True, create_graph=True)

        seeds = torch.arange(2 * output.numel(), dtype=output.dtype).view(2, *output.shape).sin()
        firsts = torch.vmap(pull_back)(seeds)
        seconds = torch.autograd.grad(
            sum(g.pow(2).sum() for g in firsts), tensors, retain_graph=True
        )

        loss = output.sin().sum()

        def product(x, loss=loss, input=tensors[0]):
            (grad,) = torch.autograd.grad(loss, input, retain_graph=True, create_graph=True)
            return (grad * x).sum()

        found.append((firsts, seconds, torch.func.grad(product)(tensors[0].detach())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_tensor_that_outlived_its_transform(cell):
    case = Case(cell)
    arguments = case.arguments()
    outlived = []
    torch.func.grad(lambda x: outlived.append(x) or x.sum())(arguments["input"])
    found = []
    for input in (outlived[0], arguments["input"]):
        tensors = [input, *leaves(case)[1:]]
        results = case.call(functional, *tensors)
        sum(r.sin().sum() for r in results).backward()
        found.append((results, [t.grad for t in tensors[1:]]))
    torch.testing.assert_close(*found)
    assert outlived[0].grad is None


def test_errors_of_hooks_and_of_what_they_call_come_out(monkeypatch):
    case = Case("lstm")

    def fail(*_):
        raise KeyError("one of Python's")

    with saved_tensors_hooks(lambda t: t, fail):
        output = case.call(functional, *leaves(case))[0]
    with pytest.raises(KeyError, match="one of Python's"):
        output.sum().backward()
    with saved_tensors_hooks(fail, lambda t: t), pytest.raises(KeyError, match="one of Python's"):
        case.call(functional, *leaves(case))
    monkeypatch.setattr(autograd.LayerGrad, "forward", fail)
    with pytest.raises(KeyError, match="one of Python's"):
        tensors = leaves(case)
        output = case.call(functional, *tensors)[0]
        torch.autograd.grad(output.sum(), tensors[0], create_graph=True)


@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_goes_with_its_results(cell):
    """Without a cycle that would wait for the garbage collector."""
    case = Case(cell)
    tensors = leaves(case)
    input = tensors[0].clone()
    results = case.call(functional, input, *tensors[1:])
    gone = weakref.ref(input)
    gc.disable()
    try:
        del input, results
        assert gone() is None
    finally:
        gc.enable()


# torch.func


@pytest.mark.parametrize("cell", CELLS)
def test_func_grad_runs_the_kernels(cell):
    case = Case(cell, D=2)
    tensors = tuple(case.arguments().values())

    def loss(module):
        return lambda *t: sum(r.pow(2).sum() for r in case.call(module, *t))

    every = tuple(range(len(tensors)))
    with count_kernels() as calls:
        ours = torch.func.grad(loss(functional), every)(*tensors)
    assert calls == {f"{cell}_forward": 1, f"{cell}_backward": 1}
    torch.testing.assert_close(ours, torch.func.grad(loss(reference), every)(*tensors))


@pytest.mark.parametrize("cell", CELLS)
def test_jacrev_runs_the_kernels(cell):
    case = Case(cell, T=2, B=1, H=2)
    tensors = tuple(case.arguments().values())
    jacobians = {}
    for module in (functional, reference):

        def results(*t, module=module):
            return case.call(module, *t)

        with count_kernels() as calls:
            jacobians[module] = torch.func.jacrev(results, (0, 1, len(tensors) - 1))(*tensors)
        if module is functional:
            assert calls[f"{cell}_forward"] == 1 and calls[f"{cell}_backward"] >= 1
    torch.testing.assert_close(jacobians[functional], jacobians[reference])


@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_nested_jacrev_and_hessian(cell):
    case = Case(cell, T=2, B=1, I=1, H=1)
    tensors = tuple(case.arguments().values())

    def loss(module):
        return lambda x, w: case.call(module, x, *tensors[1:-3], w, *tensors[-2:])[0].pow(2).sum()

    at = (tensors[0], tensors[-3])
    for twice in (
        lambda f: torch.func.jacrev(torch.func.jacrev(f, (0, 1)), (0, 1)),
        lambda f: torch.func.hessian(f, (0, 1)),
    ):
        torch.testing.assert_close(twice(loss(functional))(*at), twice(loss(reference))(*at))


@pytest.mark.parametrize("cell, P", KINDS)
def test_forward_mode_takes_the_reference(cell, P):
    case = Case(cell, P=P)
    tensors = tuple(case.arguments().values())
    tangents = tuple(torch.randn_like(t) for t in tensors)
    with count_kernels() as calls:
        ours = torch.func.jvp(lambda *t: case.call(functional, *t), tensors, tangents)
    assert not calls
    exact = torch.func.jvp(lambda *t: case.call(reference, *t), tensors, tangents)
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize(
    "in_dims", ((0, None, None), (0, 1, 2), (2, 0, None), (None, 1, 0)), ids=str
)
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell, P", KINDS)
def test_vmap_over_batches_is_one_call(cell, P, D, in_dims):
    """The vmapped dimension becomes part of the batch; results and gradients are those of a
    loop."""
    case = Case(cell, T=3, B=2, P=P, D=D)
    arguments = case.arguments()
    states = ("input", "h_0", "c_0") if cell == "lstm" else ("input", "h_0")
    in_dims = in_dims[: len(states)]
    stacked = []
    for name, dim in zip(states, in_dims, strict=True):
        shape = list(arguments[name].shape)
        if dim is not None:
            shape.insert(dim, 4)
        stacked.append(torch.randn(shape, dtype=torch.float64))
    params = [t for key, t in arguments.items() if key not in states]

    def layer(*states):
        return case.call(functional, *states, *params)

    with count_kernels() as calls:
        ours = torch.vmap(layer, in_dims)(*stacked)
    assert calls == {f"{cell}_forward": 1}

    def pull_back(*states):
        results, vjp = torch.func.vjp(layer, *states)
        return vjp(results)

    with count_kernels() as calls:
        ours_grads = torch.vmap(pull_back, in_dims)(*stacked)
    assert calls == {f"{cell}_forward": 1, f"{cell}_backward": 1}
    for i in range(4):
        own = [t if d is None else t.select(d, i) for t, d in zip(stacked, in_dims, strict=True)]
        for a, b in zip(ours, layer(*own), strict=True):
            torch.testing.assert_close(a[i], b)
        for a, b in zip(ours_grads, pull_back(*own), strict=True):
            torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize("sizes", (None, (2, 2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("cell, P", KINDS)
def test_vmap_over_weights_runs_the_kernels(cell, P, sizes):
    """An ensemble: every parameter stacked, one shared input."""
    case = Case(cell, T=3, B=2, P=P, batch_sizes=sizes)
    members = [replace_seed(case, seed).arguments() for seed in range(3)]
    states = 3 if cell == "lstm" else 2
    shared = list(members[0].values())[:states]
    params = [
        torch.stack(p) for p in zip(*(list(m.values())[states:] for m in members), strict=True)
    ]

    def loss(params, *states):
        return sum(r.pow(2).sum() for r in case.call(functional, *states, *params))

    per_member = torch.vmap(torch.func.grad_and_value(loss), (0,) + (None,) * states)
    with count_kernels() as calls:
        grads, values = per_member(params, *shared)
    assert calls == {f"{cell}_forward": 3, f"{cell}_backward": 3}
    for i in range(3):
        own = [p[i] for p in params]
        expected, value = torch.func.grad_and_value(loss)(own, *shared)
        torch.testing.assert_close(values[i], value)
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize("cell", CELLS)
def test_per_sample_gradients(cell):
    """vmap of grad by shared weights: one weight gradient for each sample."""
    case = Case(cell, T=3, B=1)
    arguments = case.arguments()
    states = 3 if cell == "lstm" else 2
    params = list(arguments.values())[states:]
    inputs = torch.randn(5, *arguments["input"].shape, dtype=torch.float64)
    zeros = list(arguments.values())[1:states]

    def loss(params, input):
        return case.call(functional, input, *zeros, *params)[0].pow(2).sum()

    with count_kernels() as calls:
        grads = torch.vmap(torch.func.grad(loss), (None, 0))(params, inputs)
    assert calls[f"{cell}_forward"] == 1 and calls[f"{cell}_backward"] == 5
    for i, input in enumerate(inputs):
        for a, b in zip(grads, torch.func.grad(loss)(params, input), strict=True):
            torch.testing.assert_close(a[i], b)


def test_grad_of_vmap_and_nested_vmap():
    """Transforms the other way round, and two levels of vmap."""
    case = Case("lstm", T=2, B=1)
    arguments = case.arguments()
    params = list(arguments.values())[3:]
    states = list(arguments.values())[1:3]
    inputs = torch.randn(2, 3, *arguments["input"].shape, dtype=torch.float64)

    def layer(input, params):
        return case.call(functional, input, *states, *params)[0]

    def loss(params):
        twice = torch.vmap(torch.vmap(layer, (0, None)), (0, None))
        return twice(inputs, params).pow(2).sum()

    def loop(params):
        return sum(layer(x, params).pow(2).sum() for row in inputs for x in row)

    torch.testing.assert_close(torch.func.grad(loss)(params), torch.func.grad(loop)(params))


def replace_seed(case: Case, seed: int) -> Case:
    return Case(**{**vars(case), "seed": seed})


# torch.compile


@pytest.mark.parametrize("sizes", (None, (2, 2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("cell", CELLS)
def test_compile(cell, sizes):
    """fullgraph, forward and backward, static and dynamic, on the aot_eager backend."""
    torch._dynamo.reset()
    case = Case(cell, T=3, B=2, batch_sizes=sizes)
    arguments = case.arguments()

    def layer(*tensors):
        return case.call(functional, *tensors)

    eager = gradients(layer, arguments)
    compiled = gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), arguments)
    torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("grad", (True, False))
def test_compile_with_one_tensor_twice(grad):
    torch._dynamo.reset()
    case = Case("lstm", B=2)
    arguments = case.arguments()
    input, zeros, *params = (arguments.pop("input"), arguments.pop("h_0"), *arguments.values())
    params = [p.requires_grad_(grad) for p in params[1:]]

    def layer(input, h, params):
        return functional.lstm(input, h, h, params)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input, zeros, params), layer(input, zeros, params))


@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_compile_dynamic_shapes(cell):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False):
        graphs = Counter()

        def backend(graph, inputs):
            graphs["compiled"] += 1
            return graph.forward

        case = Case(cell, I=6)
        params = [
            p.requires_grad_()
            for p in list(case.arguments().values())[3 if cell == "lstm" else 2 :]
        ]

        def layer(input, h):
            return case.call(
                functional, input, h, *((h.clone(),) if cell == "lstm" else ()), *params
            )[0]

        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
        for T, B in ((3, 2), (7, 5), (11, 4)):
            input, h = torch.randn(T, B, 6).double(), torch.randn(1, B, 4).double()
            torch.testing.assert_close(compiled(input, h), layer(input, h))
        assert graphs["compiled"] == 1
