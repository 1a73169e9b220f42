"""seqkern.diagnostics: each step's gradient against autograd through the reference, one step a node."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import TorchFunctionMode

import seqkern
from seqkern import reference
from seqkern.diagnostics import gradient_flow

T, B, I, H = 6, 3, 4, 5
FORMS = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "save": "states"}),
    ("LSTM", {"num_layers": 2, "proj_size": 2}),
    ("GRU", {"num_layers": 3}),
    ("GRU", {"bidirectional": True, "bias": False}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu"}),
]
CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
LENGTHS = [2, 6, 4]

forms = pytest.mark.parametrize("kind, options", FORMS)


def loss(output, *_):
    """Depends on every output, by weights of their own."""
    return (output * torch.arange(output.numel()).view_as(output).sin()).sum()


class KeepCells(TorchFunctionMode):
    """Keeps the gradient of every c_t of the reference, the argument of each step's second tanh."""

    def __init__(self):
        super().__init__()
        self.tanh_of = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.tanh:
            args[0].retain_grad()
            self.tanh_of.append(args[0])
        return func(*args, **(kwargs or {}))


def expected(module, sequences, target):
    """Norms of h and c, [L, D, T], through the reference: every h_t and c_t is a node of the graph.

    sequences are [T_b, I]; target takes their outputs [T_b, D*W] and h_n of the last layer.
    """
    directions = 2 if module.bidirectional else 1
    parameters = module._weights()
    per = len(parameters) // (module.num_layers * directions)
    squares = torch.zeros(2, module.num_layers, directions, T, dtype=torch.float64)
    nodes, outputs, finals = [], [], []
    for sequence in sequences:
        rows = list(sequence.detach().requires_grad_().unsqueeze(1).unbind())
        for k in range(module.num_layers):
            ways = []
            for d in range(directions):
                own = parameters[(k * directions + d) * per :][:per]
                state = [torch.zeros(1, 1, module.proj_size or H, dtype=torch.float64)]
                if module.mode == "LSTM":
                    state.append(torch.zeros(1, 1, H, dtype=torch.float64))
                times, way = range(len(rows)), {}
                for t in reversed(times) if d else times:
                    c = state[1] if len(state) == 2 else None
                    step = rows[t].unsqueeze(0)
                    with KeepCells() as keep:
                        _, *state = reference.layer(
                            CELLS[module.mode], step, None, state[0], c, own
                        )
                    way[t] = state[0][0]
                    state[0].retain_grad()
                    nodes.append((0, k, d, t, state[0]))
                    if module.mode == "LSTM":
                        nodes.append((1, k, d, t, keep.tanh_of[1]))
                ways.append(way)
                finals.append(state[0])
            # h itself is the node: what follows must read it, not a copy beside it.
            rows = [torch.cat([way[t] for way in ways], 1) for t in range(len(rows))]
        outputs.append(torch.cat(rows))
    target(outputs, finals).backward()
    for n, k, d, t, s in nodes:
        if s.grad is not None:
            squares[n, k, d, t] += s.grad.square().sum()
    return squares.sqrt()


def check(flow, norms):
    torch.testing.assert_close(flow.h, norms[0])
    assert (flow.c is None) == (not norms[1].any())
    if flow.c is not None:
        torch.testing.assert_close(flow.c, norms[1])


@forms
@pytest.mark.parametrize("batch_first", (False, True))
def test_padded(float64, kind, options, batch_first):
    module = getattr(seqkern, kind)(I, H, **options, batch_first=batch_first)
    input = torch.randn(T, B, I)
    norms = expected(module, input.unbind(1), lambda outputs, _: loss(torch.stack(outputs, 1)))
    given = input.transpose(0, 1) if batch_first else input

    def target(output, _):
        return loss(output.transpose(0, 1) if batch_first else output)

    check(gradient_flow(module, given, target), norms)


def padded(sequences):
    return nn.utils.rnn.pad_sequence(sequences)


@forms
@pytest.mark.parametrize("how", ("lengths", "packed"))
def test_ragged(float64, kind, options, how):
    module = getattr(seqkern, kind)(I, H, **options)
    input = torch.randn(T, B, I)
    sequences = [input[:n, b] for b, n in enumerate(LENGTHS)]
    norms = expected(module, sequences, lambda outputs, _: loss(padded(outputs)))
    if how == "lengths":
        flow = gradient_flow(module, input, loss, lengths=LENGTHS)
    else:
        packed = pack_padded_sequence(input, LENGTHS, enforce_sorted=False)
        flow = gradient_flow(
            module, packed, lambda o, _: loss(nn.utils.rnn.pad_packed_sequence(o)[0])
        )
    check(flow, norms)


def test_unbatched_and_given_state(float64):
    module = seqkern.GRU(I, H)
    input, h_0 = torch.randn(T, I), torch.randn(1, H)
    flow = gradient_flow(module, input, lambda output, h_n: h_n.sum(), hx=h_0)
    # One step back in front: h_0's gradient is not among them, h at the first step is.
    states, h = [], h_0.clone()
    for x in input:
        h = reference.gru_cell(x[None], h, *module.parameters())
        h.retain_grad()
        states.append(h)
    h.sum().backward()
    torch.testing.assert_close(flow.h[0, 0], torch.stack([s.grad.norm() for s in states]))


def test_layers_the_loss_does_not_see_have_zeros(float64):
    module = seqkern.LSTM(I, H, num_layers=3)
    flow = gradient_flow(module, torch.randn(T, B, I), lambda _, states: states[0][0].sum())
    assert (flow.h[0] > 0).all() and (flow.c[0] > 0).all()
    assert not flow.h[1:].any() and not flow.c[1:].any()


def test_ratio_goes_the_gradients_way(float64):
    module = seqkern.LSTM(I, H, bidirectional=True)
    flow = gradient_flow(module, torch.randn(T, B, I), loss)
    assert flow.h_ratio.shape == flow.c_ratio.shape == (1, 2, T - 1)
    torch.testing.assert_close(flow.h_ratio[0, 0] * flow.h[0, 0, 1:], flow.h[0, 0, :-1])
    torch.testing.assert_close(flow.c_ratio[0, 1] * flow.c[0, 1, :-1], flow.c[0, 1, 1:])
    assert gradient_flow(seqkern.RNN(I, H), torch.randn(T, B, I), loss).c_ratio is None


def test_leaves_gradients_alone_and_needs_none():
    module = seqkern.RNN(I, H, num_layers=2)
    input = torch.randn(T, B, I, requires_grad=True)
    with torch.no_grad():
        before = gradient_flow(module, input, loss)
    assert input.grad is None and all(p.grad is None for p in module.parameters())
    torch.testing.assert_close(gradient_flow(module.requires_grad_(False), input, loss).h, before.h)


def test_short_dtype():
    module = seqkern.LSTM(I, H, dtype=torch.bfloat16)
    input = torch.randn(T, B, I, dtype=torch.bfloat16)
    short = gradient_flow(module, input, lambda output, _: output[-1].sum())
    wide = gradient_flow(module.float(), input.float(), lambda output, _: output[-1].sum())
    torch.testing.assert_close(short.h, wide.h, rtol=0.05, atol=0.01)


def test_one_step():
    module = seqkern.GRU(I, H, num_layers=2)
    flow = gradient_flow(module, torch.randn(1, B, I), lambda output, _: output.sum())
    torch.testing.assert_close(flow.h[1], torch.tensor([[float(B * H) ** 0.5]]).double())
    assert flow.h_ratio.shape == (2, 1, 0)


@pytest.mark.parametrize(
    "module, input, target, error, message",
    (
        (nn.Linear(2, 2), torch.zeros(1, 2), loss, TypeError, "LSTM, GRU or RNN, got Linear"),
        (nn.LSTM(I, H), torch.zeros(T, B, I), loss, TypeError, "seqkern LSTM, .*, got LSTM"),
        (seqkern.RNN(I, H), [1.0], loss, TypeError, "input must be a tensor .*, got list"),
        (seqkern.RNN(I, H), torch.zeros(T, B, 9), loss, RuntimeError, "Expected 4, got 9"),
        (seqkern.RNN(I, H), torch.zeros(T), loss, ValueError, "Expected input to be 2D or 3D"),
        (
            seqkern.RNN(I, H),
            torch.zeros(T, B, I),
            lambda output, _: output,
            ValueError,
            r"target_fn must return one real number, got torch.float32 \[6, 3, 5\]",
        ),
        (
            seqkern.RNN(I, H),
            torch.zeros(T, B, I),
            lambda output, _: output.sum().item(),
            TypeError,
            "target_fn must return a tensor of one number, got float",
        ),
        (
            seqkern.RNN(I, H),
            torch.zeros(T, B, I),
            lambda output, _: output.detach().sum(),
            ValueError,
            "target_fn must return what follows from output or hx_n, got a constant",
        ),
    ),
)
def test_errors(module, input, target, error, message):
    with pytest.raises(error, match=message):
        gradient_flow(module, input, target)


def test_no_kernels():
    module = seqkern.RNN(I, H, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="needs kernels, and there are none for torch.complex64"):
        gradient_flow(
            module, torch.zeros(T, B, I, dtype=torch.complex64), lambda o, _: o.abs().sum()
        )


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    module = seqkern.LSTM(I, H, num_layers=2, bidirectional=True)
    flow = gradient_flow(module, torch.randn(T, B, I), lambda output, _: output[2].sum())
    axes = flow.plot()
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_yscale() == "log"
    labels = [line.get_label() for line in axes.lines]
    assert len(set(labels)) == 8 and "c, layer 1, reverse" in labels
    drawn = torch.tensor(axes.lines[labels.index("h, layer 1")].get_ydata())
    torch.testing.assert_close(drawn[:3], flow.h[1, 0, :3])
    assert drawn[3:].isnan().all()  # the loss does not see what comes after it
    assert flow.plot(axes) is axes
