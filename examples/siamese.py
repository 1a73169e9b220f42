"""Several inputs and outputs: two digits go through one shared GRU; are they the same, and which?

The layer that reads the rows is one module called twice, so both inputs train its weights. The model has
three outputs with a loss each: whether the digits are equal, from the two states alone, and each one's
name.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from . import program
from .digits import Digits, load

BATCH, SIZE = 64, 48


class Twins(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.gru = layers.GRU(8, SIZE)
        self.name = nn.Linear(SIZE, 10)
        self.equal = nn.Sequential(nn.Linear(SIZE, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 8, 8] -> logits of equality [B] and of both names [B, 10]."""
        a, b = (self.gru(images.transpose(0, 1))[1][0] for images in (first, second))
        return self.equal((a - b).abs()).squeeze(1), self.name(a), self.name(b)


def pairs(digits: Digits, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of two digits each; half of the pairs are equal, each of another writing."""
    first = torch.randint(len(digits.labels), (count,), generator=generator)
    second = torch.randint(len(digits.labels), (count,), generator=generator)
    for n in range(0, count, 2):
        (same,) = (digits.labels == digits.labels[first[n]]).nonzero(as_tuple=True)
        second[n] = same[torch.randint(len(same), (1,), generator=generator)]
    return first, second


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("siamese", __doc__, 400, 250), arguments)
    train, test = load()
    model = Twins(options.layers)
    generator = torch.Generator().manual_seed(options.seed)

    def loss_of(_: int) -> tuple[Tensor, int]:
        first, second = pairs(train, BATCH, generator)
        labels = train.labels[first], train.labels[second]
        equal, *names = model(train.images[first], train.images[second])
        loss = binary_cross_entropy_with_logits(equal, (labels[0] == labels[1]).float())
        for logits, label in zip(names, labels, strict=True):
            loss = loss + 0.5 * cross_entropy(logits, label)
        return loss, 2 * BATCH * 8

    training = program.train(loss_of, model.parameters(), options.steps, 5e-3)
    first, second = pairs(test, 2000, torch.Generator().manual_seed(1))
    labels = test.labels[first], test.labels[second]
    with torch.no_grad():
        equal, name, _ = model(test.images[first], test.images[second])
    truth = labels[0] == labels[1]
    right = ((equal > 0) == truth).float().mean().item()
    commoner = max(truth.float().mean().item(), 1 - truth.float().mean().item())
    named = (name.argmax(1) == labels[0]).float().mean().item()
    commonest = (labels[0].bincount().max() / len(labels[0])).item()
    return program.close(
        options,
        training,
        "rows",
        program.Margin("pairs judged right", right, "always the commoner", commoner, 0.3),
        program.Margin("digits named right", named, "always the commonest", commonest, 0.7),
    )


if __name__ == "__main__":
    program.run(main)
