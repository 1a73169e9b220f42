"""The operators for one step of a cell, and the cells that call them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tolerances import check
from torch.overrides import BaseTorchFunctionMode

import seqkern
from seqkern import functional, ops, reference

TORCH = {
    "lstm": torch.nn.LSTMCell,
    "gru": torch.nn.GRUCell,
    "rnn_tanh": torch.nn.RNNCell,
    "rnn_relu": lambda *a, **k: torch.nn.RNNCell(*a, nonlinearity="relu", **k),
}
CELLS = tuple(TORCH)


def arguments(cell, B, I, H, bias=True, seed=0):
    """The operator's arguments in float64, and torch.nn's module with the parameters."""
    torch.manual_seed(seed)
    module = TORCH[cell](I, H, bias=bias).double()
    states = [torch.randn(B, H, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1)]
    params = [p.detach() for p in module.parameters()] if bias else [
        module.weight_ih.detach(), module.weight_hh.detach(), None, None,
    ]  # fmt: skip
    return [torch.randn(B, I, dtype=torch.float64), *states, *params], module


def to(values, dtype):
    return [v if v is None else v.to(dtype) for v in values]


def results(value):
    return value if isinstance(value, tuple) else (value,)


@torch.no_grad()
def compare(cell, given, module, dtype):
    n = 3 if cell == "lstm" else 2
    actual = results(ops.STEP[cell](*to(given, dtype)))
    x, *states = given[:n]
    exact = results(module(x, tuple(states) if n == 3 else states[0]))
    x, *states = to(given[:n], dtype)
    if dtype in (torch.float32, torch.float64):
        torchs = results(module.to(dtype)(x, tuple(states) if n == 3 else states[0]))
    else:
        torchs = [e.to(dtype) for e in exact]
    module.double()
    for a, e, t in zip(actual, exact, torchs, strict=True):
        check(a, e, t)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(capability, cell, bias, dtype):
    for B in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 64, 65):
        for I, H in ((1, 1), (3, 2), (17, 7), (5, 16), (16, 17), (33, 15), (40, 130)):
            compare(cell, *arguments(cell, B, I, H, bias), dtype)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_short_dtypes(cell, dtype):
    given, _ = arguments(cell, 3, 5, 17)
    given = to(given, dtype)
    n = 3 if cell == "lstm" else 2
    actual = results(ops.STEP[cell](*given))
    x, h, *c = (t.unsqueeze(0) for t in given[:n])
    expected = ops.FORWARD[cell](x, None, h, c[0] if c else None, given[n:], "none")[1:n]
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e[0])


@pytest.mark.parametrize("B", (0, 1, 70))
@pytest.mark.parametrize("cell", CELLS)
def test_no_state_is_a_state_of_zeros(cell, B):
    given, _ = arguments(cell, B, 5, 17)
    states = 2 if cell == "lstm" else 1
    x, params = given[0], given[1 + states :]
    zeros = results(ops.STEP[cell](x, *[torch.zeros(B, 17).double()] * states, *params))
    none = results(ops.STEP[cell](x, *[None] * states, *params))
    assert all(torch.equal(a, b) for a, b in zip(zeros, none, strict=True))
    torch.library.opcheck(ops.STEP[cell], (x, *[None] * states, *params))


def test_one_state_alone_is_refused():
    (x, h, _, *params), _ = arguments("lstm", 2, 5, 17)
    with pytest.raises(RuntimeError, match="expected both h and c or neither, got h alone"):
        ops.STEP["lstm"](x, h, None, *params)
    with pytest.raises(RuntimeError, match="w_hh"):
        ops.STEP["gru"](x, None, params[0], params[1][0], None, None)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="expected both h and c or neither, got c alone"):
        functional.lstm_cell(x, None, h, *params)
    with pytest.raises(RuntimeError, match="c_0 must be given"):
        functional.lstm_cell(x, h, None, *params)


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
@pytest.mark.parametrize("cell", CELLS)
def test_threads_do_not_change_the_result(cell, threads):
    given, _ = arguments(cell, 2, 300, 500)
    given = to(given, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(ops.STEP[cell](*given))
        torch.set_num_threads(threads)
        together = results(ops.STEP[cell](*given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("cell", CELLS)
def test_weights_larger_than_the_cache(cell, threads):
    """Where they are read from the last to the first every other time, by a cell and by a Stream."""
    torch.set_num_threads(threads)
    given, module = arguments(cell, B=2, I=900, H=1100)
    for _ in range(2):
        compare(cell, given, module, torch.float32)
    name = type(module).__name__.removesuffix("Cell")
    relu = {"nonlinearity": "relu"} if cell == "rnn_relu" else {}
    stream = seqkern.Stream(getattr(seqkern, name)(900, 1100, **relu))
    input = given[0].float()
    first = [stream.step(input).clone() for _ in range(3)]
    stream.reset()
    assert all(torch.equal(stream.step(input), y) for y in first)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("cell", CELLS)
def test_bad_row_stays_alone(capability, cell, bad):
    given, _ = arguments(cell, 5, 19, 19)
    given = to(given, torch.float32)
    clean = results(ops.STEP[cell](*given))
    given[0][2, 17] = bad
    dirty = results(ops.STEP[cell](*given))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]])
        assert not torch.equal(a[2], b[2])


@pytest.mark.parametrize("cell", CELLS)
def test_infinite_weight_counts_once(capability, cell):
    """Where the last vector overlaps the one before, 0 * inf must not get in."""
    given, module = arguments(cell, 1, 17, 17)
    at = 3 if cell == "lstm" else 2
    given[at][:, 1:16] = float("inf")
    given[0].abs_()
    with torch.no_grad():
        module.weight_ih.copy_(given[at])
        states = given[1:at]
        expected = results(module(given[0], tuple(states) if len(states) == 2 else states[0]))
    for a, e in zip(results(ops.STEP[cell](*given)), expected, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


@pytest.mark.parametrize("cell", CELLS)
def test_strides(cell):
    given, _ = arguments(cell, 3, 6, 10)
    strided = [g if g.dim() == 1 else g.t().contiguous().t() for g in given]
    for a, b in zip(
        results(ops.STEP[cell](*given)), results(ops.STEP[cell](*strided)), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_names_what_does_not_fit(cell):
    given, _ = arguments(cell, 2, 3, 4)
    bad = list(given)
    bad[0] = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"seqkern::{cell}: w_ih must be"):
        ops.STEP[cell](*bad)
    bad = list(given)
    bad[1] = bad[1].float()
    with pytest.raises(RuntimeError, match="h_0 must have the input's dtype"):
        ops.STEP[cell](*bad)


@pytest.mark.parametrize("missing", ("ih", "hh"))
@pytest.mark.parametrize("B", (2, 20))
@pytest.mark.parametrize("cell", CELLS)
def test_a_lone_bias_is_refused(cell, B, missing):
    given, _ = arguments(cell, B, 3, 4)
    given[-2 if missing == "ih" else -1] = None
    there = "hh" if missing == "ih" else "ih"
    with pytest.raises(RuntimeError, match=f"both biases or none, got b_{there} alone"):
        ops.STEP[cell](*given)


@pytest.mark.parametrize("missing", ("bias_ih", "bias_hh"))
@pytest.mark.parametrize("name", ("LSTMCell", "GRUCell", "RNNCell"))
def test_a_module_with_a_lone_bias(name, missing):
    torchs = getattr(torch.nn, name)(5, 7)
    setattr(torchs, missing, None)
    ours = seqkern.convert(torchs)
    x = torch.randn(3, 5)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(ours(x), torchs(x))


@pytest.mark.parametrize("cell", CELLS)
def test_has_no_derivative_and_says_so(cell):
    given, _ = arguments(cell, 2, 3, 4)
    given[0].requires_grad_()
    with pytest.raises(RuntimeError, match=f"{cell}_step has no derivative"):
        ops.STEP[cell](*given)
    with torch.no_grad():
        ops.STEP[cell](*given)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell):
    given, _ = arguments(cell, 2, 3, 4)
    torch.library.opcheck(ops.STEP[cell], tuple(given))


@pytest.mark.parametrize("cell", ("LSTMCell", "GRUCell", "RNNCell"))
def test_cells_take_the_step_without_grad_only(cell):
    module = getattr(seqkern, cell)(5, 7)
    x = torch.randn(3, 5)

    def ops_of(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            result = call()
        names = {event.key for event in profile.key_averages() if "seqkern::" in event.key}
        return names, results(result)[0]

    with torch.no_grad():
        names, stepped = ops_of(lambda: module(x))
    assert {n.rpartition("_")[2] for n in names} == {"step"}
    names, differentiable = ops_of(lambda: module(x))
    assert {n.rpartition("_")[2] for n in names} == {"forward"}
    torch.testing.assert_close(stepped, differentiable)


@pytest.mark.parametrize("cell", ("LSTMCell", "GRUCell", "RNNCell"))
def test_transforms_and_compile_around_a_step(cell):
    module = getattr(seqkern, cell)(5, 7)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        rows = [results(module(row))[0] for row in x]
        vmapped = results(torch.vmap(module)(x))[0]
        compiled = results(torch.compile(module, fullgraph=True, backend="aot_eager")(x[0]))[0]
    torch.testing.assert_close(vmapped, torch.stack(rows))
    torch.testing.assert_close(compiled, rows[0])


def test_reference_agrees():
    """The arguments of this file, once through seqkern.reference."""
    (x, h, c, *params), _ = arguments("lstm", 2, 3, 4)
    _, h_n, c_n = reference.layer("lstm", x[None], None, h[None], c[None], params)
    h_1, c_1 = ops.STEP["lstm"](x, h, c, *params)
    torch.testing.assert_close(h_1, h_n[0])
    torch.testing.assert_close(c_1, c_n[0])


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_training_is_one_node(cell):
    """Results are no views, so that they may be changed in place, wherever torch.nn lets them."""
    (x, *_), torchs = arguments(cell, 3, 5, 7)
    ours = seqkern.convert(torchs)
    gradients = []
    for module in (ours, torchs):
        input = x.clone().requires_grad_()
        h, *c = results(module(input))
        if module is ours:
            assert "StepFunction" in h.grad_fn.name() and not h._is_view()
        if cell.startswith("rnn"):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(h.mul_(2).sum(), input)
            h, *c = results(module(input))
        else:
            h.mul_(2)
        (h.sum() + sum(t.mul_(3).sum() for t in c)).backward()
        gradients.append([input.grad, *(p.grad for p in module.parameters())])
        torchs.zero_grad()
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_training_where_someone_looks_on(cell):
    """Then it is a layer, whose operator they see."""
    (x, *_), torchs = arguments(cell, 3, 5, 7)
    ours = seqkern.convert(torchs)
    found = []
    for context in (contextlib.nullcontext(), BaseTorchFunctionMode()):
        input = x.clone().requires_grad_()
        with context:
            new = results(ours(input))
        assert ("StepFunction" in new[0].grad_fn.name()) is (not found)
        sum(t.sin().sum() for t in new).backward()
        found.append((new, input.grad, [p.grad for p in ours.parameters()]))
        torchs.zero_grad()
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", ("h", "c", "input", "weight", "second derivative"))
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_training_in_part(cell, wanted):
    given, torchs = arguments(cell, 3, 5, 7)
    states = given[1 : 3 if cell == "lstm" else 2]
    if wanted == "c" and len(states) == 1:
        pytest.skip("no c")
    ours = seqkern.convert(torchs)
    gradients = []
    for module in (ours, torchs):
        x, state, weight = given[0].clone(), [t.clone() for t in states], module.weight_hh
        which = {"h": state[0], "c": state[-1], "input": x, "weight": weight}.get(wanted, x)
        for parameter in module.parameters():
            parameter.requires_grad_(parameter is which)
        which.requires_grad_()
        new = results(module(x, tuple(state) if len(state) == 2 else state[0]))
        loss = new[-1].square().sum()  # of an LSTM c alone
        (gradient,) = torch.autograd.grad(loss, which, create_graph=True)
        if wanted == "second derivative":
            (gradient,) = torch.autograd.grad(gradient.square().sum(), x)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)
