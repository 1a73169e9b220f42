"""Mixed precision: torch.nn's result dtypes under autocast, accuracy, GradScaler, short weights."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from tolerances import check, check_all
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

import seqkern

SHORT = (torch.bfloat16, torch.float16)
STACK = {"num_layers": 2, "bidirectional": True}
FORMS = [
    *((kind, options) for kind in ("LSTM", "GRU", "RNN") for options in ({}, STACK)),
    ("LSTM", {"bias": False}),
    ("LSTM", {"proj_size": 2, "num_layers": 2}),
    ("RNN", {"nonlinearity": "relu"}),
    *((kind, {}) for kind in ("LSTMCell", "GRUCell", "RNNCell")),
    ("RNNCell", {"nonlinearity": "relu"}),
]
LAYOUTS = [
    pytest.param(kind, options, packed, id=f"{kind}-{options}-{packed or 'padded'}")
    for kind, options in FORMS
    for packed in ((None,) if "Cell" in kind else (None, "packed", "ending together"))
]


def pair(kind, options, device="cpu"):
    """The same layer of seqkern and of torch.nn."""
    ours, torchs = (getattr(N, kind)(3, 4, **options).to(device) for N in (seqkern, nn))
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def arguments(module, packed=None, device="cpu"):
    """Input and initial states in float32."""
    is_lstm, B = "LSTM" in type(module).__name__, 2
    if isinstance(module, nn.RNNCellBase):
        input, rows, width = torch.randn(B, 3), (B,), module.hidden_size
    else:
        input = torch.randn(5, B, 3)
        rows = (module.num_layers * (2 if module.bidirectional else 1), B)
        width = module.proj_size or module.hidden_size
    h, c = torch.randn(*rows, width), torch.randn(*rows, module.hidden_size)
    input, h, c = (t.to(device) for t in (input, h, c))
    if packed:
        shorter = input if packed == "ending together" else input[:3]
        input = pack_sequence([input[:, 0], shorter[:, 1]])
    return input, ((h, c) if is_lstm else h)


def floats(results):
    return [r for r in tree_leaves(results) if r is not None and r.is_floating_point()]


def converted(tree, dtype):
    """A tensor, a tuple of tensors or a PackedSequence in another dtype; None stays."""
    if type(tree) is tuple:
        return tuple(converted(t, dtype) for t in tree)
    return None if tree is None else tree.to(dtype)


# torch's own, for its LSTM with projections.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("autocast", SHORT, ids=str)
@pytest.mark.parametrize("kind, options, packed", LAYOUTS)
def test_dtypes(device, kind, options, packed, autocast):
    """Every dtype of input and states, with and without grad: the result dtypes are torch.nn's."""
    ours, torchs = pair(kind, options, device)
    input, hx = arguments(ours, packed, device)
    every = (torch.float32, *SHORT)
    answered = 0
    for x_dtype, hx_dtype, grad in itertools.product(every, (None, *every), (True, False)):
        x = converted(input, x_dtype)
        given = () if hx_dtype is None else (converted(hx, hx_dtype),)
        case = f"input {x_dtype}, hx {hx_dtype}, grad {grad}"
        with torch.autocast(device, dtype=autocast), torch.set_grad_enabled(grad):
            results = floats(ours(x, *given))
            try:
                expected = floats(torchs(x, *given))
            except RuntimeError as error:
                # The plain LSTM, packed sequences ending together too, where oneDNN can't compute in
                # this dtype; packed sequences where both short dtypes meet.
                plain = kind == "LSTM" and "proj_size" not in options and packed != "packed"
                meet = packed and {x_dtype, hx_dtype or x_dtype, autocast} >= set(SHORT)
                assert plain or meet, (case, error)
                assert all(r.dtype == autocast for r in results), case
                continue
        answered += 1
        for a, b in zip(results, expected, strict=True):
            assert a.dtype == b.dtype, case
            torch.testing.assert_close(a.float(), b.float(), atol=0.03, rtol=0.03, msg=case)
    # float16 input with grad never takes oneDNN, so torch answers that everywhere.
    assert answered >= 4


@pytest.mark.parametrize("autocast", SHORT, ids=str)
@pytest.mark.parametrize("kind, options", FORMS)
def test_dtypes_of_an_empty_batch(kind, options, autocast):
    for x_dtype, grad in itertools.product((torch.float32, *SHORT), (True, False)):
        ours, torchs = pair(kind, options)
        x = torch.empty((0, 3) if "Cell" in kind else (5, 0, 3), dtype=x_dtype)
        with torch.autocast("cpu", dtype=autocast), torch.set_grad_enabled(grad):
            results, expected = floats(ours(x)), floats(torchs(x))
        for a, b in zip(results, expected, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), (x_dtype, grad)


@pytest.mark.parametrize("kind, options", FORMS)
def test_float64_is_left_alone(kind, options):
    ours, torchs = (module.double() for module in pair(kind, options))
    input, hx = (converted(a, torch.float64) for a in arguments(ours))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = ours(input, hx), torchs(input, hx)
    torch.testing.assert_close(*results)
    assert all(r.dtype == torch.float64 for r in floats(results))


def results_and_gradients(module, input, hx, autocast=None):
    """By name; backward outside of the autocast block, as torch's documentation has it."""
    module.zero_grad()
    x = input.detach().requires_grad_()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        results = floats(module(x, hx))
    sum((r.double() ** 2).sum() for r in results).backward()
    grads = {name: p.grad for name, p in module.named_parameters()} | {"input": x.grad}
    return dict(zip("ohc", (r.detach() for r in results), strict=False)), grads


@pytest.mark.parametrize("autocast", SHORT, ids=str)
@pytest.mark.parametrize("kind, options", FORMS)
def test_accuracy(kind, options, autocast):
    """Results in torch.nn's accuracy; gradients come in the parameters' float32 and are as good."""
    ours, torchs = pair(kind, options)
    exact = copy.deepcopy(torchs).double()
    input, hx = arguments(ours)
    results, grads = results_and_gradients(ours, input, hx, autocast)
    reference, exact_grads = results_and_gradients(
        exact, converted(input, torch.float64), converted(hx, torch.float64)
    )
    try:
        expected, expected_grads = results_and_gradients(torchs, input, hx, autocast)
    except RuntimeError:  # no oneDNN kernel in this dtype here: the float32 result rounded
        expected, expected_grads = results_and_gradients(torchs, input, hx)
        expected = {name: r.to(autocast) for name, r in expected.items()}
    check_all(results, reference, expected)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        # Of the accuracy of the dtype that it was computed in.
        check(
            grad.to(autocast),
            exact_grads[name],
            expected_grads[name].to(autocast),
            f"grad of {name}",
        )


class Sums(nn.Module):
    """Learns to add up a sequence: a recurrent layer or cell and a linear head."""

    def __init__(self, namespace, kind):
        super().__init__()
        self.layers = getattr(namespace, kind)(2, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, input):
        if isinstance(self.layers, nn.RNNBase):
            return self.head(self.layers(input)[0][-1])
        hx = None
        for x in input:
            hx = self.layers(x, hx)
        return self.head(hx[0] if isinstance(hx, tuple) else hx)


def learn(model, step, dtype=torch.float32, steps=60):
    """Losses of `steps` training steps on fresh data, each made by step(loss closure)."""
    generator = torch.Generator().manual_seed(1)
    device = model.head.weight.device
    losses = []
    for _ in range(steps):
        input = (torch.rand(6, 8, 2, generator=generator) - 0.5).to(device)
        target = input.sum((0, 2))[:, None].to(dtype)
        input = input.to(dtype)
        losses.append(step(lambda x=input, y=target: (model(x) - y).float().square().mean()))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return losses


def learned(losses):
    return sum(losses[-8:]) < 0.5 * sum(losses[:8])


KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


@pytest.mark.parametrize("kind", KINDS)
def test_grad_scaler(device, kind):
    """float16 autocast with a scaler: a step with infinite gradients is skipped, the rest learn."""
    model = Sums(seqkern, kind).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**40, growth_interval=1000)
    steps_done = []
    optimizer.register_step_post_hook(lambda *_: steps_done.append(scaler.get_scale()))

    def step(loss_of):
        with torch.autocast(device, dtype=torch.float16):
            loss = loss_of()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.item()

    losses = learn(model, step)
    assert scaler.get_scale() < 2.0**40 and len(steps_done) < 60  # overflowed and backed off
    assert len(steps_done) > 30
    assert learned(losses), losses


@pytest.mark.parametrize("kind", KINDS)
def test_unscaled_gradients_are_those_without_a_scaler(kind):
    """A scale of a power of two changes nothing but the exponent."""
    model = Sums(seqkern, kind)
    input = torch.rand(6, 8, 2)
    grads = []
    for scale in (1.0, 256.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_short_weights_learn(kind, dtype):
    """A whole model in a short dtype: results, states and gradients have it, and it learns as
    torch.nn's does in that dtype."""
    model, twin = Sums(seqkern, kind).to(dtype), Sums(nn, kind).to(dtype)
    twin.load_state_dict(model.state_dict())
    curves = {}
    for name, m in (("seqkern", model), ("torch.nn", twin)):
        # Adam's usual eps is zero in float16.
        optimizer = torch.optim.Adam(m.parameters(), lr=0.02, eps=1e-3)

        def step(loss_of, m=m, optimizer=optimizer):
            loss = loss_of()
            loss.backward()
            assert all(p.grad.dtype == dtype for p in m.parameters())
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        curves[name] = learn(m, step, dtype)
    assert model(torch.rand(6, 8, 2).to(dtype)).dtype == dtype
    assert learned(curves["seqkern"]), curves["seqkern"]
    for a, b in zip(curves["seqkern"][:10], curves["torch.nn"][:10], strict=True):
        assert abs(a - b) < 0.1 * b + 0.01, (a, b)


def test_two_calls_in_one_block():
    """One cast of a weight serves several calls in a block, and its gradient is the sum."""
    model = seqkern.GRU(3, 4)
    input = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (model(input)[0] + model(input)[0]).float().sum().backward()
    twice = model.weight_hh_l0.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input)[0].float().sum().backward()
    torch.testing.assert_close(twice, 2 * model.weight_hh_l0.grad, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind, options", FORMS)
def test_compiled(kind, options):
    """The casts are inside of the graph: no break, the same dtypes and numbers."""
    torch._dynamo.reset()
    module, _ = pair(kind, options)
    input, hx = arguments(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for x in (input, input.half()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(floats(compiled(x, hx)), floats(module(x, hx)))
