"""Transfer: what a language model learnt from sentences without labels helps to judge a few with labels.

An LSTM first learns to guess the next word of 7,500 sentences of film reviews. Its embedding and recurrent
layers then judge sentiment, with only 400 labelled sentences to learn from: frozen under a new head;
then fine-tuned, at a smaller rate; and, for comparison, the same model from scratch.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkern

from . import program
from .reviews import Reviews, load

WORDS, SIZE, BATCH, LABELLED = 2000, 64, 64, 400


class Body(nn.Module):
    """What is transferred: the embedding and the recurrent layers."""

    def __init__(self, layers):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, SIZE)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = layers.LSTM(SIZE, SIZE)

    def forward(self, numbers: Tensor, lengths: Tensor) -> Tensor:
        """numbers [T, B] -> outputs [T, B, SIZE], zero at the padding."""
        x = self.embedding(numbers)
        if isinstance(self.lstm, seqkern.LSTM):
            return self.lstm(x, lengths=lengths)[0]
        packed, _ = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(packed, total_length=len(x))[0]


class Judge(nn.Module):
    def __init__(self, body: Body):
        super().__init__()
        self.body = body
        self.head = nn.Sequential(nn.LayerNorm(2 * SIZE), nn.Dropout(0.5), nn.Linear(2 * SIZE, 2))

    def forward(self, numbers: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, 2] from the mean and the maximum of the outputs."""
        outputs = self.body(numbers, lengths)
        mean = outputs.sum(0) / lengths[:, None]
        return self.head(torch.cat([mean, outputs.amax(0)], 1))


def learn_language(body: Body, reviews: Reviews, options) -> program.Training:
    head = nn.Linear(SIZE, WORDS)

    def loss_of(step: int) -> tuple[Tensor, int]:
        numbers, lengths, _ = reviews.batch(program.draw(len(reviews), BATCH, step, options.seed))
        inside = torch.arange(len(numbers) - 1)[:, None] < lengths - 1
        guesses = head(body(numbers, lengths)[:-1][inside])
        return cross_entropy(guesses, numbers[1:][inside]), int(inside.sum())

    parameters = [*body.parameters(), *head.parameters()]
    return program.train(loss_of, parameters, options.steps, 5e-3, "language")


def learn_sentiment(
    judge: Judge, reviews: Reviews, options, label: str, rate: float
) -> program.Training:
    def loss_of(step: int) -> tuple[Tensor, int]:
        chosen = program.draw(LABELLED, BATCH, step, options.seed)
        numbers, lengths, labels = reviews.batch(chosen)
        return cross_entropy(judge(numbers, lengths), labels), int(lengths.sum())

    steps = max(1, options.steps // 3)
    return program.train(loss_of, judge.train().parameters(), steps, rate, label)


@torch.no_grad()
def accuracy(judge: Judge, reviews: Reviews) -> float:
    numbers, lengths, labels = reviews.batch(torch.arange(len(reviews)))
    return (judge.eval()(numbers, lengths).argmax(1) == labels).float().mean().item()


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("transfer", __doc__, 400, 250), arguments)
    _, train, test = load(WORDS)
    found = {}
    scratch = Judge(Body(options.layers))
    body = copy.deepcopy(scratch.body)
    training = learn_sentiment(scratch, train, options, "from scratch", 5e-3)
    found["from scratch"] = accuracy(scratch, test)

    training += learn_language(body, train, options)
    judge = Judge(body)
    body.requires_grad_(False)
    training += learn_sentiment(judge, train, options, "frozen", 1e-2)
    found["frozen"] = accuracy(judge, test)
    body.requires_grad_(True)
    training += learn_sentiment(judge, train, options, "fine-tuned", 2e-3)
    found["fine-tuned"] = accuracy(judge, test)
    for name, share in found.items():
        print(f"{name:<14} {share:.1%} of unseen sentences judged right, of {LABELLED} with labels")
    margins = [
        program.Margin(f"accuracy {name}", found[name], "from scratch", found["from scratch"], by)
        for name, by in (("fine-tuned", 0.02),)
    ]
    return program.close(options, training, "words", *margins)


if __name__ == "__main__":
    program.run(main)
