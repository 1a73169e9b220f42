"""ESPnet's recurrent speech recognition: a pyramid of bidirectional layers on packed sequences, a decoder made of
cells, and a language model, which asks for the class of its layers to know what a state is."""

import pytest
import torch
from espnet2.asr.decoder.rnn_decoder import RNNDecoder
from espnet2.asr.encoder.vgg_rnn_encoder import VGGRNNEncoder
from espnet2.lm.seq_rnn_lm import SequentialRNNLM
from layers import count_kernels
from torch import nn
from torch.nn.functional import cross_entropy

import seqkern

TOKENS = 12
ATTENTION = {"adim": 8, "aheads": 1, "aconv_chans": 2, "aconv_filts": 3}


class Recognizer(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.encoder = VGGRNNEncoder(16, cell, num_layers=2, hidden_size=10, output_size=8)
        self.decoder = RNNDecoder(TOKENS, 8, cell, num_layers=2, hidden_size=10, att_conf=ATTENTION)

    def forward(self, speech, speech_lengths, text, text_lengths):
        encoded, lengths, _ = self.encoder(speech, speech_lengths)
        return self.decoder(encoded, lengths, text, text_lengths)[0]


def make(cell):
    torch.manual_seed(0)
    return Recognizer(cell)


def batch():
    speech, text = torch.randn(3, 40, 16), torch.randint(1, TOKENS - 1, (3, 5))
    return speech, torch.tensor([40, 33, 24]), text, torch.tensor([5, 4, 3])


def recurrent(model):
    return [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]


def train(model, arguments):
    """Losses of three steps; the weights then."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        torch.manual_seed(step)  # dropout
        scores = model.train()(*arguments)
        loss = cross_entropy(scores.flatten(0, 1), arguments[2].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.state_dict())


@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_converted_model_recognizes_alike(cell):
    model, arguments = make(cell).eval(), batch()
    fast = seqkern.convert(model)
    assert len(recurrent(fast)) == 4
    assert all(type(m).__module__ == "seqkern.modules" for m in recurrent(fast))
    with torch.no_grad():
        with count_kernels() as calls:
            scores = fast(*arguments)
        assert calls[f"{cell}_forward"] > 0 and calls[f"{cell}_step"] > 0
        torch.testing.assert_close(scores, model(*arguments))


@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_training_under_the_patch(cell):
    arguments = batch()
    expected = train(make(cell), arguments)
    with seqkern.patch():
        model = make(cell)
        with count_kernels() as calls:
            found = train(model, arguments)
    assert all(type(m).__module__ == "seqkern.modules" for m in recurrent(model))
    assert calls[f"{cell}_backward"] > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ("lstm", "gru", "rnn_tanh"))
def test_converted_language_model_scores_alike(kind):
    """Word by word from zero_state(), in a batch of hypotheses, as beam search does."""
    torch.manual_seed(0)
    model = SequentialRNNLM(TOKENS, unit=8, nlayers=2, rnn_type=kind).eval()
    fast = seqkern.convert(model)
    hypotheses, found = torch.randint(1, TOKENS, (3, 4)), []
    with torch.no_grad():
        for lm in (model, fast):
            states, scores = [lm.zero_state()] * 3, []
            for end in range(1, 5):
                score, states = lm.batch_score(hypotheses[:, :end], states, None)
                scores.append(score)
            found.append(scores)
    assert type(fast.rnn).__module__ == "seqkern.modules"
    torch.testing.assert_close(found[1], found[0])
