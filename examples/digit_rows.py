"""One-to-one, rows as time: handwritten digits read row by row by an RNN, a GRU and an LSTM.

Each image is a sequence of 8 rows of 8 pixels; the last state says which digit it was. The three cells
have as many units, and as many parameters as the textbook says: with d inputs and h units
g (d h + h^2 + h) for g = 1, 3 and 4 gates, and g h more for the second bias that torch keeps.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import program
from .digits import load

BATCH, UNITS = 64, 48
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Reader(nn.Module):
    def __init__(self, layers, cell: str, rows: int):
        super().__init__()
        self.layer = getattr(layers, cell)(rows, UNITS)
        self.head = nn.Linear(UNITS, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, rows, columns] -> logits [B, 10]."""
        output, _ = self.layer(images.transpose(0, 1))
        return self.head(output[-1])


def expected_parameters(cell: str, d: int, h: int) -> tuple[int, int]:
    """By the textbook's formula, and the second bias."""
    return GATES[cell] * (d * h + h * h + h), GATES[cell] * h


def draw(curves: dict[str, list[float]], accuracies: dict[str, float], options) -> None:
    figure = program.new_figure()
    axes = figure.add_subplot(
        xlabel="training step", ylabel="training loss", yscale="log", title="Digits read row by row"
    )
    for cell, losses in curves.items():
        smooth = torch.tensor(losses).unfold(0, min(20, len(losses)), 1).mean(1)
        axes.plot(smooth, label=f"{cell}: {accuracies[cell]:.1%} of unseen digits right")
    axes.legend()
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("digit_rows", __doc__, 500, 250), arguments)
    train, test = load()
    rows, columns = train.images.shape[1:]
    curves, accuracies, training = {}, {}, program.Training()
    counted = True
    for cell, gates in GATES.items():
        torch.manual_seed(options.seed)
        model = Reader(options.layers, cell, columns)

        def loss_of(step: int, model: Reader = model) -> tuple[Tensor, int]:
            chosen = program.draw(len(train.labels), BATCH, step, options.seed)
            loss = cross_entropy(model(train.images[chosen]), train.labels[chosen])
            return loss, BATCH * rows

        one = program.train(loss_of, model.parameters(), options.steps, 5e-3, cell)
        with torch.no_grad():
            right = model(test.images).argmax(1) == test.labels
        training += one
        curves[cell], accuracies[cell] = one.losses, right.float().mean().item()
        formula, second = expected_parameters(cell, columns, UNITS)
        held = sum(p.numel() for p in model.layer.parameters())
        counted &= held == formula + second
        print(
            f"{cell:<5} {gates} (dh + h^2 + h) = {formula:>6}, second bias {second:>4}, "
            f"parameters {held:>6}; {accuracies[cell]:.1%} right, {one.seconds:.1f} s"
        )
    draw(curves, accuracies, options)
    commonest = test.labels.bincount().max().item() / len(test.labels)
    margins = [
        program.Margin(f"accuracy of {cell}", accuracies[cell], "commonest digit", commonest, 0.7)
        for cell in ("LSTM", "GRU", "RNN")
    ]
    status = program.close(options, training, "rows", *margins)
    return status if counted else 1


if __name__ == "__main__":
    program.run(main)
