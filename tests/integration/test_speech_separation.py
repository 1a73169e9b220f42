"""Asteroid's dual-path RNN, which separates speakers: bidirectional LSTMs over chunks of audio."""

import pytest
import torch
from asteroid.models import DPRNNTasNet
from layers import count_kernels

import seqkern


def make(rnn_type="LSTM"):
    torch.manual_seed(0)
    return DPRNNTasNet(
        n_src=2,
        n_filters=16,
        kernel_size=8,
        stride=4,
        bn_chan=12,
        hid_size=16,
        chunk_size=20,
        n_repeats=2,
        rnn_type=rnn_type,
    )


def recurrent(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.RNNBase)]


def train(model, mixture, steps=3):
    """Losses of a few steps, and the gradients of the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, grads = [], {}
    for step in range(steps):
        optimizer.zero_grad()
        loss = (model(mixture) - 0.1 * mixture[:, None]).square().mean()
        loss.backward()
        if step == 0:
            grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return losses, grads


@pytest.mark.parametrize("rnn_type", ("LSTM", "GRU", "RNN"))
def test_converted_model_separates_alike(rnn_type):
    model = make(rnn_type).eval()
    fast = seqkern.convert(model)
    ours = recurrent(fast)
    assert ours and all(type(m) is getattr(seqkern, rnn_type) for m in ours)
    assert all(m.bidirectional for m in ours)
    mixture = torch.randn(2, 1000)
    with torch.no_grad():
        with count_kernels() as calls:
            separated = fast(mixture)
        assert sum(calls.values()) == len(ours)
        torch.testing.assert_close(separated, model(mixture))
        torch.testing.assert_close(seqkern.to_torch(fast)(mixture), model(mixture))


def test_training_under_the_patch():
    mixture = torch.randn(2, 1000)
    losses, grads = train(make(), mixture)
    with seqkern.patch():
        model = make()
    assert all(type(m) is seqkern.LSTM for m in recurrent(model))
    with count_kernels() as calls:
        ours = train(model, mixture)
    assert calls["lstm_backward"] == 3 * len(recurrent(model))
    torch.testing.assert_close(ours[0], losses, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        error = (ours[1][name] - grad).norm()
        assert error <= 1e-3 * grad.norm() + 1e-6, name
