"""Batch-major and other strided tensors, which the kernels of the CPU read where they lie: bit for bit what
contiguous ones give."""

from __future__ import annotations

import pytest
import torch
from layers import CELLS, Case, gradients

import seqkern
from seqkern import functional

FORMS = (
    ("LSTM", {}),
    ("LSTM", {"save": "states"}),
    ("LSTM", {"proj_size": 3, "num_layers": 2}),
    ("LSTM", {"bidirectional": True, "save": "states"}),
    ("GRU", {}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"num_layers": 2}),
)
# 2800 rows are several chunks; fewer rows or steps than threads; rows that are no multiple of 8.
SIZES = ((70, 40), (2, 3), (9, 12), (3, 2))
T, B, I, H = 9, 12, 6, 17


def pair(kind, options, dtype, size=I):
    """Batch-major and time-major, with the same parameters."""
    made = [
        getattr(seqkern, kind)(size, H, batch_first=first, dtype=dtype, **options)
        for first in (True, False)
    ]
    made[1].load_state_dict(made[0].state_dict())
    return made


def compare(kind, options, input, grad_of):
    """Inference and a step of training on input [B, T, I] and on the same as contiguous [T, B, I];
    grad_of(output) is the gradient of the former's output. Returns the former's gradient of input."""
    ours, other = pair(kind, options, input.dtype, input.size(2))
    x = input.detach().requires_grad_()
    y = input.detach().transpose(0, 1).contiguous().requires_grad_()
    with torch.no_grad():
        (output, states), (expected, expected_states) = ours(x), other(y)
    torch.testing.assert_close(output.transpose(0, 1), expected, rtol=0, atol=0)
    torch.testing.assert_close(states, expected_states, rtol=0, atol=0)
    (output, states), (expected, expected_states) = ours(x), other(y)
    grad = grad_of(output)
    output.backward(grad)
    expected.backward(grad.transpose(0, 1).contiguous())
    torch.testing.assert_close(output.transpose(0, 1), expected, rtol=0, atol=0)
    torch.testing.assert_close(states, expected_states, rtol=0, atol=0)
    torch.testing.assert_close(x.grad.transpose(0, 1), y.grad, rtol=0, atol=0)
    for (name, p), q in zip(ours.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0, msg=name)
    return x.grad


def contiguous_like(output):
    return torch.randn(output.shape, dtype=output.dtype)


@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize(
    "dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str
)
@pytest.mark.parametrize("kind, options", FORMS)
def test_same_bits(kind, options, dtype, threads):
    torch.set_num_threads(threads)
    for steps, batch in SIZES:
        grad = compare(kind, options, torch.randn(batch, steps, I, dtype=dtype), contiguous_like)
        assert grad.is_contiguous()  # what comes before takes it without a copy


INPUTS = {
    "columns": lambda: torch.randn(B, T, I + 5)[..., 1 : I + 1],
    "features_first": lambda: torch.randn(B, I, T).transpose(1, 2),
    "every_other_step": lambda: torch.randn(B, 2 * T, I)[:, ::2],
    "one_sequence_for_all": lambda: torch.randn(1, T, I).expand(B, T, I),
    "one_step_for_all": lambda: torch.randn(B, 1, I).expand(B, T, I),
    "one_feature": lambda: torch.randn(B, T, 2)[..., :1],
    "offset": lambda: torch.randn(B * T * I + 1)[1:].view(B, T, I),
}
GRADS = {
    "columns": lambda output: torch.randn(*output.shape[:2], H + 3)[..., 2:-1],
    "features_first": lambda output: torch.randn(B, H, T).transpose(1, 2),
    "ones": lambda output: torch.ones(()).expand_as(output),
    "one_sequence_for_all": lambda output: torch.randn(1, T, H).expand_as(output),
    "one_step_for_all": lambda output: torch.randn(B, 1, H).expand_as(output),
    "time_major": lambda output: torch.randn(T, B, H).transpose(0, 1),
}


@pytest.mark.parametrize("kind, options", (("LSTM", {}), ("LSTM", {"save": "states"}), ("GRU", {})))
@pytest.mark.parametrize("name", INPUTS)
def test_strided_input(name, kind, options):
    compare(kind, options, INPUTS[name](), contiguous_like)


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
@pytest.mark.parametrize("name", GRADS)
def test_strided_gradient(name, kind):
    compare(kind, {}, torch.randn(B, T, I), GRADS[name])


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("save", ("gates", "states"))
@pytest.mark.parametrize("cell", CELLS)
def test_strided_rows(cell, save, threads):
    """Ragged input whose rows lie apart."""
    torch.set_num_threads(threads)
    case = Case(cell, B=24, I=I, H=H, D=2, batch_sizes=(24, 24, 17, 9, 9, 3, 1))
    arguments = case.arguments(torch.float32)
    wide = torch.randn(len(arguments["input"]), I + 3)
    wide[:, 2:-1] = arguments["input"]
    found = [
        gradients(
            lambda input, *rest, take=take: case.call(functional, take(input), *rest, save=save),
            {**arguments, "input": input},
        )
        for input, take in ((arguments["input"], torch.clone), (wide, lambda t: t[:, 2:-1]))
    ]
    found[1]["grad_input"] = found[1]["grad_input"][:, 2:-1]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    rest = list(arguments.values())[1:]
    with torch.no_grad():
        results = [
            case.call(functional, input, *rest) for input in (arguments["input"], wide[:, 2:-1])
        ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_input_may_change_before_backward(kind):
    """As torch.nn's, whose layers too go by a copy of what is batch-major."""
    ours, other = pair(kind, {}, torch.float32)
    torchs = getattr(torch.nn, kind)(I, H, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(B, T, I)
    for module in (ours, torchs):
        given = x.clone()
        output, _ = module(given)
        given += output[..., :I].detach()
        output.sum().backward()
    other(x.transpose(0, 1).contiguous())[0].sum().backward()
    for p, q, r in zip(*(m.parameters() for m in (ours, torchs, other)), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        torch.testing.assert_close(p.grad, r.grad, rtol=0, atol=0)


def test_second_derivatives():
    ours, other = pair("LSTM", {}, torch.float64)
    x = torch.randn(2, 3, I, dtype=torch.float64, requires_grad=True)
    found = []
    for module, input in ((ours, x), (other, x.transpose(0, 1).contiguous())):
        (first,) = torch.autograd.grad(module(input)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)
