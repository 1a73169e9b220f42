"""Many-to-many: the class of the token that each character of a Python program belongs to.

A window of source begins anywhere, so context decides: is this word a name, or part of a string or a
comment? One LSTM reads forwards only, the other in both directions and so sees where a string ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seqkern.init import orthogonal_, xavier_uniform_

from . import program
from .source import OTHER, TAGS, Source, load

BATCH, LENGTH = 32, 80


class Tagger(nn.Module):
    def __init__(self, layers, cell: str, size: int, num_layers: int, bidirectional: bool):
        super().__init__()
        self.embedding = nn.Embedding(OTHER + 1, 32)
        self.layers = getattr(layers, cell)(
            32, size, num_layers=num_layers, bidirectional=bidirectional
        )
        # Without this more than two layers hardly learn in the time that they are given here.
        orthogonal_(xavier_uniform_(self.layers))
        self.head = nn.Linear(size * (2 if bidirectional else 1), len(TAGS))

    def forward(self, characters: Tensor) -> Tensor:
        """characters [T, B] -> logits [T, B, tags]."""
        return self.head(self.layers(self.embedding(characters))[0])


def train_tagger(
    model: Tagger, source: Source, options, label: str, rate: float = 1e-2, watch=None
) -> program.Training:
    """One training of options.steps steps; watch as in program.train."""

    def loss_of(step: int) -> tuple[Tensor, int]:
        starts = program.draw(len(source.tags) - LENGTH, BATCH, step, options.seed)
        characters, tags = source.windows(LENGTH, starts)
        return cross_entropy(model(characters).flatten(0, 1), tags.flatten()), tags.numel()

    return program.train(loss_of, model.parameters(), options.steps, rate, label, watch=watch)


@dataclass
class Scores:
    accuracy: float
    f1: list[float]  # by tag

    @staticmethod
    def of(found: Tensor, tags: Tensor) -> "Scores":
        confusion = (tags.flatten() * len(TAGS) + found.flatten()).bincount(
            minlength=len(TAGS) ** 2
        )
        confusion = confusion.view(len(TAGS), len(TAGS)).double()
        right = confusion.diag()
        f1 = 2 * right / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
        return Scores((right.sum() / confusion.sum()).item(), f1.tolist())


def unseen(source: Source) -> tuple[Tensor, Tensor]:
    """Windows of a whole text, one after the other."""
    return source.windows(LENGTH, torch.arange(0, len(source.tags) - LENGTH, LENGTH))


@torch.no_grad()
def score(model: Tagger, source: Source) -> Scores:
    """On windows of a whole text."""
    characters, tags = unseen(source)
    return Scores.of(model.eval()(characters).argmax(-1), tags)


def by_character(train: Source, test: Source) -> Scores:
    """The baseline: each character's commonest tag, whatever stands around it."""
    pairs = (train.characters * len(TAGS) + train.tags).bincount(minlength=(OTHER + 1) * len(TAGS))
    characters, tags = unseen(test)
    return Scores.of(pairs.view(-1, len(TAGS)).argmax(1)[characters], tags)


def draw_f1(scores: dict[str, Scores], options) -> None:
    figure = program.new_figure()
    axes = figure.add_subplot(
        ylabel="F1 on unseen modules",
        title="Token class of each character (in brackets: share of all that are right)",
        ylim=(0, 1),
    )
    width = 0.8 / len(scores)
    for n, (name, one) in enumerate(scores.items()):
        places = [place + (n - (len(scores) - 1) / 2) * width for place in range(len(TAGS))]
        axes.bar(places, one.f1, width, label=f"{name} ({one.accuracy:.3f})")
    axes.set_xticks(range(len(TAGS)), TAGS)
    figure.legend(ncols=len(scores), loc="outside lower center", fontsize=9)
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("tagging", __doc__, 300, 200), arguments)
    train, test = load()
    scores, training = {"each character alone": by_character(train, test)}, program.Training()
    for name, bidirectional in (("forwards", False), ("both directions", True)):
        # As many parameters: two directions of 64 units, one of 100.
        size = 64 if bidirectional else 100
        model = Tagger(options.layers, "LSTM", size, 1, bidirectional)
        training += train_tagger(model, train, options, name)
        scores[name] = score(model, test)
    print(f"{'F1':<21}" + "".join(f"{tag:>10}" for tag in TAGS))
    for name, one in scores.items():
        print(f"{name:<21}" + "".join(f"{f1:>10.3f}" for f1 in one.f1))
    draw_f1(scores, options)
    alone, forwards, both = (one.accuracy for one in scores.values())
    return program.close(
        options,
        training,
        "characters",
        program.Margin("accuracy in both directions", both, "each character alone", alone, 0.2),
        program.Margin("accuracy in both directions", both, "forwards", forwards, 0.02),
    )


if __name__ == "__main__":
    program.run(main)
