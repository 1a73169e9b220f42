"""seqkern.functional: what it adds to the kernels."""

from __future__ import annotations

import inspect
import re
import textwrap
import warnings

import pytest
import torch
from layers import CELLS, Case, gradients
from tolerances import check, check_all
from torch import nn

import seqkern
from seqkern import functional, modules, ops, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def test_reference_has_the_same_signatures():
    assert sorted(functional.__all__) == sorted(reference.__all__)
    for name in functional.__all__:
        ours, theirs = getattr(functional, name), getattr(reference, name)
        assert inspect.signature(ours) == inspect.signature(theirs), name


def examples():
    for module in (functional, modules, reference):
        for name in module.__all__:
            yield pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("documented", list(examples()))
def test_examples_in_docstrings(documented):
    """Each public function and class has an example that runs, with the shapes it names."""
    code = textwrap.dedent(re.search(r"Example::\n\n(.*)", documented.__doc__, re.DOTALL)[1])
    scope = {**vars(functional), "torch": torch, "seqkern": seqkern, "reference": reference}
    exec(code, scope)  # noqa: S102
    for expression, shapes in re.findall(r"^(.*\.shape)  # (.*)$", code, re.MULTILINE):
        found = eval(expression, scope)
        found = list(found) if isinstance(found, tuple) and isinstance(found[0], tuple) else [found]
        assert str([list(shape) for shape in found])[1:-1] == shapes


@pytest.mark.parametrize("cell", CELLS)
def test_on_each_device(device, cell):
    """The kernels, or where a device has none the reference."""
    case = Case(cell, T=4, B=3, I=5, H=6, D=2)
    arguments = {name: t.to(device) for name, t in case.arguments().items()}
    functional._warn_no_kernels.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = gradients(lambda *t: case.call(functional, *t), arguments)
    told = [w for w in caught if "has no kernels for device" in str(w.message)]
    assert len(told) == (device != "cpu" and not ops.CUDA_KERNELS)
    exact = gradients(lambda *t: case.call(reference, *t), case.arguments())
    check_all({name: t.cpu() for name, t in ours.items()}, exact, exact)


def test_a_device_without_kernels_warns_once():
    functional._warn_no_kernels.cache_clear()
    with pytest.warns(UserWarning, match="no kernels for device 'a': .* loops of torch oper"):
        functional._warn_no_kernels("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional._warn_no_kernels("a")


@pytest.mark.parametrize("cell", ("lstm", "gru", "rnn_tanh"))
def test_a_dtype_without_kernels_takes_the_reference(cell):
    case = Case(cell, D=2)
    tensors = [t.to(torch.complex128) for t in case.arguments().values()]
    for a, b in zip(case.call(functional, *tensors), case.call_torch(*tensors), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_meta(cell):
    case = Case(cell, T=4, B=3, D=2)
    arguments = case.arguments()
    real = case.call(functional, *arguments.values())
    meta = case.call(functional, *(t.to("meta") for t in arguments.values()))
    for a, b in zip(meta, real, strict=True):
        assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize(
    "kind, options",
    (("LSTMCell", {}), ("GRUCell", {}), ("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"})),
)
def test_cells(kind, options, bias, dtype):
    name = {"LSTMCell": "lstm_cell", "GRUCell": "gru_cell", "RNNCell": "rnn_cell"}[kind]
    for B, I, H in ((1, 1, 1), (3, 5, 17), (40, 8, 64)):
        cell = getattr(nn, kind)(I, H, bias=bias, **options).to(dtype)
        states = [torch.randn(B, H).to(dtype) for _ in range(2 if kind == "LSTMCell" else 1)]
        tensors = [torch.randn(B, I).to(dtype), *states, *cell.parameters()]
        exact = [t.detach().double() for t in tensors]
        ours = getattr(functional, name)(*tensors, **options)
        with torch.no_grad():
            inferred = getattr(functional, name)(*tensors, **options)
        exact = getattr(reference, name)(*exact, **options)
        torchs = cell(tensors[0], tuple(states) if kind == "LSTMCell" else states[0])
        if kind != "LSTMCell":
            ours, inferred, exact, torchs = (ours,), (inferred,), (exact,), (torchs,)
        for a, i, b, c in zip(ours, inferred, exact, torchs, strict=True):
            check(a.detach(), b, c.detach())
            check(i, b, c.detach())


def test_one_bias_alone_counts():
    input, h, w_ih, w_hh, bias = (torch.randn(s) for s in ((2, 3), (2, 4), (12, 3), (12, 4), (12,)))
    zeros = torch.zeros(12)
    for pair, full in (((bias, None), (bias, zeros)), ((None, bias), (zeros, bias))):
        a = functional.gru_cell(input, h, w_ih, w_hh, *pair)
        assert torch.equal(a, functional.gru_cell(input, h, w_ih, w_hh, *full))


def test_unknown_nonlinearity():
    message = "nonlinearity must be 'tanh' or 'relu', got 'sin'"
    tensors = list(Case("rnn_tanh").arguments().values())
    with pytest.raises(ValueError, match=message):
        functional.rnn(*tensors[:2], tensors[2:], nonlinearity="sin")
    with pytest.raises(ValueError, match=message):
        functional.rnn_cell(tensors[0][0], tensors[1][0], *tensors[2:], nonlinearity="sin")


@pytest.mark.parametrize(
    "sizes, message",
    (
        ({"input": (5, 2, 3), "h_0": (1, 4, 4)}, r"h_0 must be \[D, B, K\] = \[1, 2, 4\]"),
        ({"input": (5, 2, 3), "h_0": ()}, r"the states' first dimension .* got h_0 \[\]"),
        ({"input": (5, 2, 7), "h_0": (1, 2, 4)}, r"w_ih must be \[G\*H, I\] = \[12, 7\]"),
        ({"input": (5, 2), "h_0": (1, 2, 4)}, r"input must be \[T, B, I\]"),
    ),
)
def test_errors_name_the_argument(sizes, message):
    params = [torch.zeros(12, 3), torch.zeros(12, 4), torch.zeros(12), torch.zeros(12)]
    input, h_0 = (torch.zeros(size) for size in sizes.values())
    for grad in (False, True):
        with pytest.raises(RuntimeError, match=message):
            functional.gru(input.requires_grad_(grad), h_0, params)
