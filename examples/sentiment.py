"""Many-to-one: does a sentence of a film review praise or pan?

Sentences have 1 to 50 words. seqkern's LSTM takes the padded batch with `lengths=` and computes no
padding; with torch.nn the batch is packed first. Both directions' last states go into one linear layer.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import program
from .reviews import Reviews, load

BATCH, WORDS = 64, 8000


class Sentiment(nn.Module):
    def __init__(self, layers, words: int, size: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = layers.LSTM(size, size, bidirectional=True)
        self.head = nn.Linear(2 * size, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, numbers: Tensor, lengths: Tensor) -> Tensor:
        """numbers [T, B], lengths [B] -> logits [B, 2]."""
        x = self.dropout(self.embedding(numbers))
        h_n, _ = program.final_states(self.lstm, x, lengths)
        return self.head(self.dropout(torch.cat(h_n.unbind(), 1)))


@torch.no_grad()
def probabilities(model: Sentiment, reviews: Reviews) -> Tensor:
    """How sure the model is of praise, [N]."""
    numbers, lengths, _ = reviews.batch(torch.arange(len(reviews)))
    return model.eval()(numbers, lengths).softmax(1)[:, 1]


def accuracy_by_length(correct: Tensor, reviews: Reviews, options) -> None:
    lengths = torch.tensor([len(s) for s in reviews.sentences])
    edges = [1, 8, 13, 18, 23, 28, 61]
    parts = [(lengths >= a) & (lengths < b) for a, b in pairwise(edges)]
    labels = [f"{a}-{b - 1}" for a, b in pairwise(edges)]
    figure = program.new_figure()
    axes = figure.add_subplot(
        xlabel="words in the sentence",
        ylabel="accuracy on unseen sentences",
        title="Sentiment by length of the sentence",
        ylim=(0.4, 1),
    )
    bars = axes.bar(labels, [correct[part].float().mean().item() for part in parts])
    axes.bar_label(bars, [f"{int(part.sum())} sentences" for part in parts], fontsize=8)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1, label="guessing")
    axes.legend(loc="upper right")
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("sentiment", __doc__, 350, 200), arguments)
    vocabulary, train, test = load(WORDS)
    model = Sentiment(options.layers, len(vocabulary))
    padding = []

    def loss_of(step: int) -> tuple[Tensor, int]:
        numbers, lengths, labels = train.batch(program.draw(len(train), BATCH, step, options.seed))
        padding.append(1 - lengths.sum().item() / numbers.numel())
        return cross_entropy(model(numbers, lengths), labels), int(lengths.sum())

    training = program.train(loss_of, model.parameters(), options.steps, rate=5e-3)
    positive = probabilities(model, test)
    correct = (positive > 0.5) == test.labels
    order = positive.argsort().tolist()
    for title, n in (("most surely panned", order[0]), ("most surely praised", order[-1])):
        print(f"{title}: {' '.join(vocabulary[w] for w in test.sentences[n].tolist())}")
    print(f"{sum(padding) / len(padding):.0%} of the batches was padding, which no layer computed")
    accuracy_by_length(correct, test, options)
    larger = max(test.labels.float().mean().item(), 1 - test.labels.float().mean().item())
    margin = program.Margin(
        "accuracy", correct.float().mean().item(), "always the commoner verdict", larger, 0.15
    )
    return program.close(options, training, "words", margin)


if __name__ == "__main__":
    program.run(main)
