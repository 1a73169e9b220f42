"""LSTM or GRU? The same task, data, steps and number of units: accuracy against seconds of training.

The task is that of examples.tagging, in both directions. Beside the cells as they are, a GRU of as many
parameters as the LSTM: 3 gates of more units instead of 4.
"""

import torch

from . import program
from .source import Source, load
from .tagging import Tagger, by_character, score, train_tagger

UNITS, WIDER = 48, 58  # the wider GRU has as many parameters as the LSTM
POINTS = 10  # of each curve


def curve(
    model: Tagger, train: Source, test: Source, options, label: str
) -> tuple[program.Training, list[tuple[float, float]]]:
    """The training, and its seconds and accuracies on the way."""
    points = []
    shown = {max(1, options.steps * n // POINTS) for n in range(1, POINTS + 1)}

    def watch(done: int, seconds: float) -> None:
        if done in shown:
            points.append((seconds, score(model, test).accuracy))
            model.train()

    return train_tagger(model, train, options, label, watch=watch), points


def draw(curves: dict[str, list[tuple[float, float]]], alone: float, options) -> None:
    figure = program.new_figure()
    axes = figure.add_subplot(
        xlabel="seconds of training",
        ylabel="accuracy on unseen modules",
        title="LSTM or GRU: token classes of Python source",
    )
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
    axes.axhline(alone, color="black", linestyle="--", linewidth=1, label="each character alone")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("lstm_or_gru", __doc__, 200, 120), arguments)
    train, test = load()
    alone = by_character(train, test).accuracy
    curves, training, reached = {}, program.Training(), {}
    for cell, units in (("LSTM", UNITS), ("GRU", UNITS), ("GRU", WIDER)):
        torch.manual_seed(options.seed)
        model = Tagger(options.layers, cell, units, 1, bidirectional=True)
        parameters = sum(p.numel() for p in model.layers.parameters())
        name = f"{cell}, {units} units, {parameters:,} parameters"
        one, curves[name] = curve(model, train, test, options, f"{cell} {units}")
        training += one
        accuracy = reached[f"{cell} {units}"] = curves[name][-1][1]
        print(f"{name:<34} {accuracy:.3f} right, {one.milliseconds:.1f} ms a step")
    draw(curves, alone, options)
    margins = [
        program.Margin(f"accuracy of {name}", accuracy, "each character alone", alone, 0.2)
        for name, accuracy in reached.items()
    ]
    return program.close(options, training, "characters", *margins)


if __name__ == "__main__":
    program.run(main)
