"""One-to-many: the picture of a digit makes an LSTM spell its name, as captions are made.

The image becomes the LSTM's first state and is never seen again; every step writes one letter, which is
the next step's input, until the end sign.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import program
from .digits import NAMES, Digits, load

BATCH, SIZE = 64, 64
LETTERS = ".^" + "".join(sorted(set("".join(NAMES))))  # the end, the start, letters
LONGEST = max(map(len, NAMES)) + 1


def spelt(labels: Tensor) -> Tensor:
    """Letters [LONGEST, B] of the names, filled up with end signs."""
    names = [NAMES[n].ljust(LONGEST, ".") for n in labels.tolist()]
    return torch.tensor([[LETTERS.index(letter) for letter in name] for name in names]).T


class Captioner(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.see = nn.Linear(64, 2 * SIZE)
        self.letter = nn.Embedding(len(LETTERS), 16)
        self.lstm = layers.LSTM(16, SIZE)
        self.head = nn.Linear(SIZE, len(LETTERS))

    def seeded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The image as (h_0, c_0)."""
        h_0, c_0 = self.see(images.flatten(1)).tanh().unsqueeze(0).chunk(2, 2)
        return h_0.contiguous(), c_0.contiguous()

    def forward(self, images: Tensor, letters: Tensor) -> Tensor:
        """Logits [T, B, letters] of each next letter, given the right ones before it."""
        given = torch.cat([torch.full_like(letters[:1], LETTERS.index("^")), letters[:-1]])
        return self.head(self.lstm(self.letter(given), self.seeded(images))[0])

    @torch.no_grad()
    def caption(self, images: Tensor) -> list[str]:
        state, last = self.seeded(images), torch.full((1, len(images)), LETTERS.index("^"))
        written = []
        for _ in range(LONGEST):
            output, state = self.lstm(self.letter(last), state)
            last = self.head(output).argmax(-1)
            written.append(last)
        columns = torch.cat(written).T.tolist()
        return ["".join(LETTERS[n] for n in column).partition(".")[0] for column in columns]


def draw(test: Digits, captions: list[str], options) -> None:
    """The first digits, and as many of those spelt wrong as there are, with what was written."""
    wrong = [n for n, label in enumerate(test.labels.tolist()) if captions[n] != NAMES[label]]
    figure = program.new_figure(8, 3.6)
    figure.suptitle("Digits and what the LSTM wrote (below: mistakes)")
    for row, chosen in enumerate((range(8), wrong[:8])):
        for column, n in enumerate(chosen):
            axes = figure.add_subplot(2, 8, 8 * row + column + 1, xticks=[], yticks=[])
            axes.imshow(test.images[n], cmap="gray_r")
            truth = f"\nit is {NAMES[test.labels[n]]}" if n in wrong else ""
            axes.set_xlabel(captions[n] + truth, color="C3" if n in wrong else "black")
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("captions", __doc__, 600, 300), arguments)
    train, test = load()
    model = Captioner(options.layers)

    def loss_of(step: int) -> tuple[Tensor, int]:
        chosen = program.draw(len(train.labels), BATCH, step, options.seed)
        letters = spelt(train.labels[chosen])
        logits = model(train.images[chosen], letters)
        return cross_entropy(logits.flatten(0, 1), letters.flatten()), letters.numel()

    training = program.train(loss_of, model.parameters(), options.steps, 5e-3)
    captions = model.caption(test.images)
    right = sum(c == NAMES[n] for c, n in zip(captions, test.labels.tolist(), strict=True))
    draw(test, captions, options)
    commonest = test.labels.bincount().max().item() / len(test.labels)
    margin = program.Margin(
        "names spelt right", right / len(captions), "always the commonest", commonest, 0.7
    )
    return program.close(options, training, "letters", margin)


if __name__ == "__main__":
    program.run(main)
