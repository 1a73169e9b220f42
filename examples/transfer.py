"""Transfer: what one model learnt from long film reviews helps to judge sentences where labels are few.

A language model reads the ends of 8,000 reviews and guesses each next word; a second one, with two outputs,
the verdict as well. The embedding and the recurrent layer of each then judge sentences of other authors, of
which 200 have a label: frozen under a new head; then fine-tuned, at a smaller rate; and, for comparison,
from scratch. In so little time the language model alone learns what follows what, not what is praise: it
helps no more than none.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkern

from . import program
from .reviews import Reviews, load, load_long

WORDS, SIZE, BATCH, LONG, LABELLED = 4000, 64, 64, 8000, 200
SCRATCH = "from scratch"
GUESSED = 256  # words of each batch: a softmax over all words is the dearest part


class Body(nn.Module):
    """What is transferred: the embedding and the recurrent layer."""

    def __init__(self, layers):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, SIZE)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = layers.LSTM(SIZE, SIZE)

    def forward(self, numbers: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """numbers [T, B] -> outputs [T, B, SIZE], zero at the padding, and their means [B, SIZE]."""
        x = dropout(self.embedding(numbers), 0.3, self.training)
        if isinstance(self.lstm, seqkern.LSTM):
            outputs, _ = self.lstm(x, lengths=lengths)
        else:
            packed, _ = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
            outputs, _ = pad_packed_sequence(packed)
        return outputs, outputs.sum(0) / lengths[:, None]


class Reader(nn.Module):
    """The body under two outputs."""

    def __init__(self, body: Body):
        super().__init__()
        self.body, self.word, self.verdict = body, nn.Linear(SIZE, WORDS), nn.Linear(SIZE, 2)

    def losses(self, numbers: Tensor, lengths: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of the next words, some of them drawn by chance, and of the verdict."""
        outputs, mean = self.body(numbers, lengths)
        steps, rows = (torch.arange(len(numbers) - 1)[:, None] < lengths - 1).nonzero().T
        chosen = torch.randint(len(steps), (GUESSED,))
        steps, rows = steps[chosen], rows[chosen]
        words = cross_entropy(self.word(outputs[steps, rows]), numbers[steps + 1, rows])
        return words, cross_entropy(self.verdict(mean), labels)


class Judge(nn.Module):
    def __init__(self, body: Body):
        super().__init__()
        self.body, self.head = body, nn.Sequential(nn.Dropout(0.5), nn.Linear(SIZE, 2))

    def forward(self, numbers: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.body(numbers, lengths)[1])


def read_reviews(body: Body, reviews: Reviews, verdicts: bool, options) -> program.Training:
    reader = Reader(body)

    def loss_of(step: int) -> tuple[Tensor, int]:
        batch = reviews.batch(program.draw(len(reviews), BATCH, step, options.seed))
        words, verdict = reader.losses(*batch)
        return (0.1 * words + verdict if verdicts else words), int(batch[1].sum())

    label = "words, verdicts" if verdicts else "words"
    return program.train(loss_of, reader.parameters(), options.steps, 5e-3, label)


def judge_sentences(
    judge: Judge, reviews: Reviews, options, label: str, rate: float
) -> program.Training:
    def loss_of(step: int) -> tuple[Tensor, int]:
        numbers, lengths, labels = reviews.batch(program.draw(LABELLED, BATCH, step, options.seed))
        return cross_entropy(judge(numbers, lengths), labels), int(lengths.sum())

    return program.train(loss_of, judge.train().parameters(), 60, rate, label)


@torch.no_grad()
def accuracy(judge: Judge, reviews: Reviews) -> float:
    numbers, lengths, labels = reviews.batch(torch.arange(len(reviews)))
    return (judge.eval()(numbers, lengths).argmax(1) == labels).float().mean().item()


def draw(found: dict[str, float], options) -> None:
    figure = program.new_figure(8, 3.2)
    axes = figure.add_subplot(
        xlabel=f"accuracy on unseen sentences, {LABELLED} labelled ones to learn from",
        title="Sentiment, by what the recurrent layer learnt before",
        xlim=(0.4, 0.8),
    )
    colors = ["C7" if name == SCRATCH else "C1" if "verdicts" in name else "C0" for name in found]
    axes.bar_label(
        axes.barh(list(found), list(found.values()), color=colors), fmt="%.3f", padding=3
    )
    axes.axvline(0.5, color="black", linestyle="--", linewidth=1, label="guessing")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("transfer", __doc__, 300, 200), arguments)
    vocabulary, train, test = load(WORDS)
    fresh = Body(options.layers)
    scratch = Judge(copy.deepcopy(fresh))
    training = judge_sentences(scratch, train, options, SCRATCH, 5e-3)
    found = {SCRATCH: accuracy(scratch, test)}
    for name, verdicts in (("language model", False), ("with verdicts", True)):
        body = copy.deepcopy(fresh)
        training += read_reviews(body, load_long(vocabulary, LONG), verdicts, options)
        judge = Judge(body)
        body.requires_grad_(False)
        training += judge_sentences(judge, train, options, "frozen", 1e-2)
        found[f"{name}, frozen"] = accuracy(judge, test)
        body.requires_grad_(True)
        training += judge_sentences(judge, train, options, "fine-tuned", 1e-3)
        found[f"{name}, fine-tuned"] = accuracy(judge, test)
    for name, share in found.items():
        print(f"{name:<26} {share:.1%} of unseen sentences judged right, {LABELLED} had labels")
    draw(found, options)
    margins = [
        program.Margin(f"accuracy, {name}", found[name], SCRATCH, found[SCRATCH], 0.05)
        for name in ("with verdicts, fine-tuned", "with verdicts, frozen")
    ]
    return program.close(options, training, "words", *margins)


if __name__ == "__main__":
    program.run(main)
