"""Many-to-one on numbers: who says this vowel? Series of 7 to 29 steps, classified by a bidirectional GRU.

Nine men say two Japanese vowels; each step has 12 coefficients of the sound. The series of a batch have
lengths of their own, which the GRU takes as they are: `lengths=`, or packed for torch.nn.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from . import program
from .reviews import package_folder

BATCH, SIZE, SPEAKERS, COEFFICIENTS = 32, 48, 9, 12


def load(part: str) -> tuple[list[Tensor], Tensor]:
    """Series [T_n, 12] and speakers [N], from the text file in aeon: channels, then class, by colons."""
    path = package_folder("aeon", "aeon") / f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
    lines = path.read_text(encoding="utf-8").partition("@data")[2].split()
    series, speakers = [], []
    for line in lines:
        *channels, speaker = line.split(":")
        series.append(torch.tensor([[float(x) for x in c.split(",")] for c in channels]).T)
        speakers.append(int(speaker) - 1)
    return series, torch.tensor(speakers)


class Classifier(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.gru = layers.GRU(COEFFICIENTS, SIZE, bidirectional=True)
        self.head = nn.Linear(2 * SIZE, SPEAKERS)

    def forward(self, series: list[Tensor]) -> Tensor:
        """Series [T_n, 12] -> logits [N, speakers]."""
        lengths = torch.tensor([len(one) for one in series])
        h_n = program.final_states(self.gru, pad_sequence(series), lengths)
        return self.head(torch.cat(h_n.unbind(), 1))


def nearest_mean(train: list[Tensor], speakers: Tensor, test: list[Tensor]) -> Tensor:
    """The baseline: each series' mean over time, and the speaker whose own mean is nearest."""
    means, unseen = (torch.stack([one.mean(0) for one in part]) for part in (train, test))
    centres = torch.stack([means[speakers == n].mean(0) for n in range(SPEAKERS)])
    return torch.cdist(unseen, centres).argmin(1)


def draw(confusion: Tensor, options) -> None:
    figure = program.new_figure(6, 5.2)
    axes = figure.add_subplot(
        xlabel="speaker found", ylabel="speaker", title="Who says it? Unseen series"
    )
    picture = axes.imshow(confusion, cmap="Blues", extent=(0.5, 9.5, 9.5, 0.5))
    for row, counts in enumerate(confusion.tolist(), 1):
        for column, count in enumerate(counts, 1):
            color = "white" if count > confusion.max() / 2 else "black"
            axes.text(column, row, count or "", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(1, 10))
    axes.set_yticks(range(1, 10))
    figure.colorbar(picture, label="series")
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("vowels", __doc__, 250, 120), arguments)
    (train, speakers), (test, test_speakers) = load("TRAIN"), load("TEST")
    model = Classifier(options.layers)

    def loss_of(step: int) -> tuple[Tensor, int]:
        chosen = program.draw(len(train), BATCH, step, options.seed)
        series = [train[n] for n in chosen.tolist()]
        return cross_entropy(model(series), speakers[chosen]), sum(map(len, series))

    training = program.train(loss_of, model.parameters(), options.steps, 5e-3)
    with torch.no_grad():
        found = model(test).argmax(1)
    pairs = (test_speakers * SPEAKERS + found).bincount(minlength=SPEAKERS**2)
    draw(pairs.view(SPEAKERS, SPEAKERS), options)

    def share(guesses: Tensor) -> float:
        return (guesses == test_speakers).float().mean().item()

    nearest = share(nearest_mean(train, speakers, test))
    commonest = share(torch.full_like(test_speakers, test_speakers.bincount().argmax()))
    return program.close(
        options,
        training,
        "steps",
        program.Margin("accuracy", share(found), "commonest speaker", commonest, 0.6),
        program.Margin("accuracy", share(found), "nearest mean", nearest, 0.02),
    )


if __name__ == "__main__":
    program.run(main)
