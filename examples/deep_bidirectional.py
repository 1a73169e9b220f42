"""Deep and bidirectional: what do more layers and a second direction buy, and what do they cost?

The task is that of examples.tagging, with 1 to 4 layers in one direction and in both: accuracy on unseen
modules against the time of a training step.
"""

from dataclasses import dataclass

import torch

from . import program
from .source import load
from .tagging import Tagger, by_character, score, train_tagger

UNITS = 32
DEPTHS = {"full": (1, 2, 3, 4), "small": (1, 2)}


@dataclass
class Point:
    layers: int
    milliseconds: float  # of a training step
    accuracy: float


def draw(lines: dict[str, list[Point]], options) -> None:
    figure = program.new_figure()
    axes = figure.add_subplot(
        xlabel="milliseconds for a training step",
        ylabel="accuracy on unseen modules",
        title=f"Layers and directions of {UNITS} units (numbers: layers)",
    )
    for name, points in lines.items():
        axes.plot([p.milliseconds for p in points], [p.accuracy for p in points], "o-", label=name)
        for p in points:
            place = (p.milliseconds, p.accuracy)
            axes.annotate(p.layers, place, (0, 6), textcoords="offset points", ha="center")
    axes.margins(0.1, 0.15)
    axes.legend(loc="center right")
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("deep_bidirectional", __doc__, 400, 120), arguments)
    train, test = load()
    alone = by_character(train, test).accuracy
    lines, training = {}, program.Training()
    for name, bidirectional in (("one direction", False), ("both directions", True)):
        lines[name] = []
        for layers in DEPTHS[options.budget]:
            torch.manual_seed(options.seed)
            model = Tagger(options.layers, "LSTM", UNITS, layers, bidirectional)
            one = train_tagger(model, train, options, f"{name}, {layers} layers")
            training += one
            point = Point(layers, one.milliseconds, score(model, test).accuracy)
            lines[name].append(point)
            times = f"{point.milliseconds:.1f} ms a step"
            print(f"{name:<16} {layers} layers: {point.accuracy:.3f} right, {times}")
    draw(lines, options)
    best = {name: max(p.accuracy for p in points) for name, points in lines.items()}
    forwards, both = best.values()
    return program.close(
        options,
        training,
        "characters",
        program.Margin("accuracy in both directions", both, "in one", forwards, 0.02),
        program.Margin("accuracy in one direction", forwards, "each character alone", alone, 0.15),
    )


if __name__ == "__main__":
    program.run(main)
